"""A small spatial quantizer: a half-size map first, then what it leaves over. It exists to hold the base class to its
word."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import BaseQuantizer, Quantized, Quantizer
from vqkit.parts.estimators import straight_through
from vqkit.quantizers.initialization import collect_vectors


class TwoScaleQuantizer(BaseQuantizer):
    """(B, D, H, W) with fixed H and W; indices (B, HW/4 + HW), coarse first."""

    def __init__(self, dim: int, codebook_size: int, height: int, width: int, *, channel_dim: int = 1) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        self.height, self.width = height, width
        self.codebook_size = codebook_size
        self.coarse = Quantizer("vq", dim=dim, codebook_size=codebook_size)
        self.fine = Quantizer("ema", dim=dim, codebook_size=codebook_size)

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        half = F.avg_pool2d(latents.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        half_valid = (
            valid.reshape(len(valid), self.height // 2, 2, self.width // 2, 2).transpose(2, 3).flatten(3).any(-1)
        )
        first = self.coarse.quantize(half, half_valid)
        second = self.fine.quantize(latents - self._enlarge(first.vectors).detach(), valid)
        total = self._enlarge(first.vectors) + second.vectors
        indices = torch.cat([first.indices.flatten(1), second.indices.flatten(1)], dim=1)
        vectors = torch.where(valid.unsqueeze(-1), straight_through(total, latents), 0)
        return Quantized(vectors, indices, valid, members=[first, second])

    def penalize(self, quantized: Quantized) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = quantized.members
        (coarse_loss, coarse), (fine_loss, fine) = self.coarse.penalize(first), self.fine.penalize(second)
        return coarse_loss + fine_loss, {f"coarse_{name}": value for name, value in coarse.items()} | fine

    def lookup(self, indices: Tensor) -> Tensor:
        split = (self.height // 2) * (self.width // 2)
        coarse = self.coarse.lookup(indices[:, :split]).unflatten(1, (self.height // 2, self.width // 2))
        fine = self.fine.lookup(indices[:, split:]).unflatten(1, (self.height, self.width))
        valid = indices[:, split:].unflatten(1, (self.height, self.width)) >= 0
        return torch.where(valid.unsqueeze(-1), self._enlarge(coarse) + fine, 0)

    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        rows, _ = collect_vectors(self, latents, samples or 4096)
        self.coarse.initialize([rows], seed=seed)
        self.fine.initialize([rows / 4], seed=seed)

    def step(self) -> None:
        self.coarse.step()
        self.fine.step()

    @staticmethod
    def _enlarge(maps: Tensor) -> Tensor:
        return maps.repeat_interleave(2, 1).repeat_interleave(2, 2)
