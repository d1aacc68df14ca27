"""Tokenizers of plain vectors and of series of them, which keep their units to themselves."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.distributed import all_reduce_sum, from_first_rank
from vqkit.precision import FullPrecisionModule, widest_dtype
from vqkit.quantizers.base import BaseQuantizer
from vqkit.saving.config import Configured
from vqkit.tokenizers.tokenizer import Tokenizer, TokenizerOutput, first_tensor, in_dtype_of


class Scaling(Configured, FullPrecisionModule, ABC):
    """What is taken from vectors before they are encoded, and given back when they are decoded: (x - mean) / scale.

    State:
        mean: (C,) of the training vectors.
        scale: (C,), by which differences from the mean are divided.
        is_fitted: () bool, whether both are those of data.

    Args:
        dim: C, channels of the vectors.
    """

    mean: Tensor
    scale: Tensor
    is_fitted: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: expected the number of channels, at least 1")
        self.dim = dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("is_fitted", torch.tensor(False))

    @abstractmethod
    def scale_of(self, variance: Tensor) -> Tensor:
        """The scale (C,) for channels of this variance (C,), all positive where some variance is."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Scaled vectors, of (B, C, ...)."""
        return (vectors - self._column(self.mean, vectors)) / self._column(self.scale, vectors)

    def inverse(self, scaled: Tensor) -> Tensor:
        """Vectors (B, C, ...) in their own units."""
        return scaled * self._column(self.scale, scaled) + self._column(self.mean, scaled)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> None:
        """Take mean and scale from data; under data parallelism every rank must call it, with batches of its own.

        Args:
            batches: (B, C, ...), finite.

        Raises:
            ValueError: there is no vector, or one of them has other channels or is not finite.
        """
        # Around the first vector of each channel, so that a large mean does not swallow the variance.
        device = self.mean.device
        count, origin = 0, torch.zeros(self.dim, dtype=widest_dtype(device), device=device)
        sums = origin.new_zeros(2, self.dim)
        for batch in batches:
            if batch.ndim < 2 or batch.shape[1] != self.dim:
                raise ValueError(f"a batch has shape {tuple(batch.shape)}: expected (B, {self.dim}, ...), dim channels")
            rows = batch.to(origin).movedim(1, -1).reshape(-1, self.dim)
            if count == 0 and len(rows):
                origin = rows[0]
            sums += torch.stack([(rows - origin).sum(0), (rows - origin).square().sum(0)])
            count += len(rows)
        # To moments around one origin, which add up over ranks; a channel that does not vary has none around itself.
        common = from_first_rank(origin)
        shift = origin - common
        first = sums[0] + count * shift
        second = sums[1] + 2 * shift * sums[0] + count * shift.square()
        packed = all_reduce_sum(torch.cat([origin.new_full((1,), count), first, second]))
        total, (first, second) = packed[0], packed[1:].view(2, self.dim)
        if not total or not packed.isfinite().all():
            raise ValueError(f"fit saw {int(count)} vectors, expected some, all of them finite: leave out NaN rows")
        mean = first / total
        self.mean.copy_(common + mean)
        self.scale.copy_(self.scale_of((second / total - mean.square()).clamp(min=0)))
        self.is_fitted.fill_(True)

    @staticmethod
    def _column(values: Tensor, vectors: Tensor) -> Tensor:
        return values.view(-1, *[1] * (vectors.ndim - 2))

    def extra_repr(self) -> str:
        """The number of channels."""
        return f"dim={self.dim}"


class CommonScale(Scaling):
    """One scale for all channels, sqrt(mean variance): distances keep their ratios, as neighbours must."""

    def scale_of(self, variance: Tensor) -> Tensor:
        """See `Scaling`."""
        common = variance.mean().sqrt()
        return torch.where(common > 0, common, 1).expand(self.dim)


class Standardization(Scaling):
    """A scale for each channel, its standard deviation: for channels of different units, as a robot's joints and grip.

    A channel that does not vary is left at scale 1.
    """

    def scale_of(self, variance: Tensor) -> Tensor:
        """See `Scaling`."""
        return torch.where(variance > 0, variance.sqrt(), 1)


class VectorTokenizer(Tokenizer):
    """A tokenizer of vectors (B, C), or of series of them (B, C, T), in units of their own.

    The scaling is part of it and saved with it, so that what was trained on one set of vectors gives the same indices
    to the vectors of tomorrow. Encoder and decoder see scaled vectors. `vqkit.backbones.mlp` has those of single
    vectors, `vqkit.backbones.conv1d` causal and centred ones of series.

    Args:
        encoder: from scaled vectors to latents.
        quantizer: of the latents; its `channel_dim` is -1 or 1 for vectors, and 1 for series.
        decoder: from latents to scaled vectors.
        scaling: of as many channels as the vectors have; fit it before training (`trainers.vectors` does).

    Raises:
        ValueError: as for `Tokenizer`, or the scaling has another number of channels than encoder or decoder.

    Examples:
        >>> from vqkit import Quantizer, ResidualQuantizer
        >>> from vqkit.backbones.mlp import MLPDecoder, MLPEncoder
        >>> tokenizer = VectorTokenizer(
        ...     MLPEncoder(in_channels=768),
        ...     ResidualQuantizer(lambda: Quantizer("ema", dim=32, codebook_size=256), 3),
        ...     MLPDecoder(out_channels=768),
        ...     scaling=CommonScale(768),
        ... )
        >>> tokenizer.eval().encode(torch.randn(4, 768)).shape
        torch.Size([4, 3])
    """

    def __init__(self, encoder: nn.Module, quantizer: BaseQuantizer, decoder: nn.Module, *, scaling: Scaling) -> None:
        super().__init__(encoder, quantizer, decoder, value_range=None)
        for part, module, name in (("encoder", encoder, "in_channels"), ("decoder", decoder, "out_channels")):
            channels = getattr(module, name, scaling.dim)
            if channels != scaling.dim:
                raise ValueError(
                    f"{part}.{name}={channels} and scaling.dim={scaling.dim}: both are the channels of the vectors; "
                    "give both the same"
                )
        self.scaling = scaling

    @property
    def channels(self) -> int:
        """C, of the vectors."""
        return self.scaling.dim

    @torch.no_grad()
    def latents(self, data: Tensor) -> Tensor:
        """What the quantizer gets of vectors (B, C), or of series (B, C, T)."""
        return self.encoder(in_dtype_of(self.encoder, self._scaled(data)))

    def _reconstruct(self, data: Tensor) -> TokenizerOutput:
        return super()._reconstruct(self._scaled(data))

    def _indices(self, data: Tensor) -> Tensor:
        return super()._indices(self._scaled(data))

    def _decode(self, quantized: Tensor) -> Tensor:
        return self.scaling.inverse(super()._decode(quantized))

    def _latents(self, loader: Iterable[Any]) -> Iterator[Tensor]:
        device = self.scaling.mean.device
        return super()._latents(self._scaled(first_tensor(batch).to(device)) for batch in loader)

    def _scaled(self, data: Tensor) -> Tensor:
        if data.ndim < 2 or data.shape[1] != self.channels:
            raise ValueError(
                f"data has shape {tuple(data.shape)}: expected (B, {self.channels}) vectors, or series "
                f"(B, {self.channels}, T) with the channels first"
            )
        return self.scaling(data)
