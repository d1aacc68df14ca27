"""Quantizers that treat every vector by itself: flattening, the low-dimensional code space, and the sum of losses."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit.parts.losses import Loss
from vqkit.parts.selection import Selection
from vqkit.quantizers.base import BaseQuantizer


class VectorQuantizer(BaseQuantizer):
    """A quantizer of single vectors: subclasses write `quantize` and `code_lookup` for (N, D) rows in the code space.

    Args:
        dim: size of the input's channel axis.
        codebook_dim: D, the size of the code space. If it differs from `dim`, two linear maps lead in and out
            (factorized codes, Yu et al. 2021, arXiv 2110.04627); None means `dim`.
        channel_dim: see `BaseQuantizer`.
        losses: penalties, each with its weight; names must differ.

    Raises:
        ValueError: a size is not positive.
    """

    def __init__(
        self,
        dim: int,
        *,
        codebook_dim: int | None = None,
        channel_dim: int = -1,
        losses: Sequence[Loss] = (),
    ) -> None:
        super().__init__(dim, channel_dim=channel_dim)
        if isinstance(losses, nn.Module):
            raise ValueError(f"losses={losses}: expected a list, [{losses}]")
        if codebook_dim is not None and codebook_dim < 1:
            raise ValueError(f"codebook_dim={codebook_dim}: expected at least 1, or None for dim={dim}")
        self.codebook_dim = codebook_dim or dim
        self.losses = nn.ModuleList(losses)
        projected = self.codebook_dim != dim
        self.project_in = nn.Linear(dim, self.codebook_dim, dtype=torch.float32) if projected else nn.Identity()
        self.project_out = nn.Linear(self.codebook_dim, dim, dtype=torch.float32) if projected else nn.Identity()

    def quantize(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Choose a code for each row of `latents` (N, D); what is not `valid` (N,) gets index -1 and counts nowhere."""
        raise NotImplementedError

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Code vectors (..., D) of `indices` (...), all of which are in range."""
        raise NotImplementedError

    @property
    def has_projection(self) -> bool:
        """Whether trainable maps stand between the input and the code space."""
        return self.codebook_dim != self.dim

    def to_code_space(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., D)."""
        return self.project_in(x)

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors for indices: (...) int64 -> (..., dim); 0 where the index is -1."""
        rows = indices.reshape(-1)
        vectors = self.project_out(self.code_lookup(rows.clamp(min=0)))
        vectors = torch.where((rows >= 0).unsqueeze(-1), vectors, 0)
        return vectors.reshape(*indices.shape, self.dim)

    def _forward(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        rows = self.to_code_space(latents.reshape(-1, self.dim))
        quantized, selection = self.quantize(rows, valid.reshape(-1))
        losses = {loss.name: loss(selection, quantized) for loss in self._losses}
        output = self.project_out(quantized)
        # The zero keeps every parameter in the graph when no loss reaches it, or when no vector is valid.
        total = 0 * output.flatten()[:1].sum() + sum(loss.weight * losses[loss.name] for loss in self._losses)
        return output.reshape(latents.shape), selection.indices.reshape(valid.shape), total, losses

    def _bottleneck(self, latents: Tensor) -> Tensor:
        return self.project_out(self.to_code_space(latents))

    @property
    def _losses(self) -> Iterable[Loss]:
        return self.losses  # type: ignore[return-value]  # nn.ModuleList forgets its element type
