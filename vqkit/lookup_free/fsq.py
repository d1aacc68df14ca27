"""Finite scalar quantization: each dimension is bounded and rounded to a few levels."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.base import Selection
from vqkit.functional import straight_through
from vqkit.pointwise import VectorQuantizer
from vqkit.precision import autocast_disabled

_LARGEST_CODEBOOK = 2**62


class FSQ(VectorQuantizer):
    """Finite scalar quantization: no codebook, no losses, nothing that can collapse.

    Each of the D = len(levels) dimensions is bounded to its number of levels L and rounded: with half = (L - 1)(1 -
    eps) / 2, offset = 0.5 for even L and 0 for odd, shift = tan(offset / half): b(z) = half tanh(z + shift) - offset;
    the code is round(b(z)) / floor(L / 2), in [-1, 1]. The index is the mixed-radix number of the levels, first
    dimension fastest.

    Args:
        levels: L of each dimension, each at least 2; recommended for 2^8, 2^10, 2^12, 2^14, 2^16 codes: [8, 6, 5], [8,
            5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [8, 8, 8, 5, 5, 5].
        dim: size of the input's channel axis; None means D. If it differs, linear maps lead in and out.
        channel_dim: see `BaseQuantizer`.

    Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv 2309.15505), sec. 3 and
    appendix A.1; eps = 1e-3.
    Differs: shift = tan(offset / half) is what the paper's listing has; its inverse for tanh would be atanh, which
    other libraries use and which moves 0.2 to 0.4 % of the values to another level. The forward value is the code
    exactly.

    Raises:
        ValueError: fewer than two levels in a dimension, no dimension, or more than 2^62 codes.
    """

    def __init__(self, levels: Sequence[int], *, dim: int | None = None, channel_dim: int = -1) -> None:
        if not levels or min(levels) < 2:
            raise ValueError(
                f"levels={list(levels)}: expected at least one dimension, each of at least 2 levels, such as "
                "[8, 5, 5, 5]"
            )
        if math.prod(levels) > _LARGEST_CODEBOOK:
            raise ValueError(
                f"levels={list(levels)}: {math.prod(levels)} codes do not fit an int64 index; use fewer levels"
            )
        super().__init__(dim or len(levels), codebook_dim=len(levels), channel_dim=channel_dim)
        self.levels = tuple(levels)
        self.codebook_size = math.prod(levels)
        sizes = torch.tensor(self.levels)
        self.register_buffer("level_counts", sizes)
        self.register_buffer("place_values", torch.cat([sizes.new_ones(1), sizes[:-1].cumprod(0)]))
        self.register_buffer("saturated", torch.zeros((), dtype=torch.float32), persistent=False)

    level_counts: Tensor
    place_values: Tensor
    saturated: Tensor

    def quantize(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Bound and round `z` (N, D)."""
        bounded = self.bound(z)
        rounded = bounded.detach().round()
        selected = self._code(rounded)
        digits = (rounded + self._half_width).long()
        indices = torch.where(valid, (digits * self.place_values).sum(-1), -1)
        if self.learning:
            far = (z.detach().abs() > 3).to(self.dtype).mean(-1)
            self.saturated.copy_((far * valid).sum() / valid.sum().clamp(min=1))
        quantized = straight_through(selected, self._code(bounded)) if torch.is_grad_enabled() else selected
        return quantized, Selection(latents=z, z=z, codes=None, indices=indices, selected=selected, valid=valid)

    def bound(self, z: Tensor) -> Tensor:
        """(..., D) -> (..., D) in level units: -L/2 ... L/2 - 1 after rounding for even L, -(L-1)/2 ... (L-1)/2 for
        odd.
        """
        half = (self.level_counts.to(z.dtype) - 1) * (1 - 1e-3) / 2
        offset = torch.where(self.level_counts % 2 == 0, 0.5, 0.0).to(z.dtype)
        return (z + (offset / half).tan()).tanh() * half - offset

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Code vectors (..., D) of `indices` (...)."""
        digits = indices.unsqueeze(-1) // self.place_values % self.level_counts
        return self._code((digits - self._half_width).to(self.dtype))

    def _code(self, rounded: Tensor) -> Tensor:
        return rounded / self._half_width

    @property
    def _half_width(self) -> Tensor:
        return self.level_counts // 2

    @torch.no_grad()
    def initialize(self, latents: Iterable[Tensor], *, samples: int | None = None, seed: int = 0) -> None:
        """Scale the projection into the code space so that each dimension has mean 0 and standard deviation 1.

        The grid itself is fixed. Without a projection there is nothing to set, and `latents` is not read. See
        `BaseQuantizer`.
        """
        if not self.has_projection:
            return
        rows, _ = self._collect(latents, 65_536 if samples is None else samples)
        with autocast_disabled(rows.device):
            z = distributed.gather_rows(self.to_code_space(rows))
        spread = z.std(0, correction=0)
        # A dimension without spread (one vector, equal vectors) keeps its scale.
        scale = torch.where(spread > 1e-6 * z.abs().amax().clamp(min=1e-30), 1 / spread, 1.0)
        assert isinstance(self.project_in, nn.Linear)
        self.project_in.weight.copy_(distributed.from_first_rank(self.project_in.weight * scale.unsqueeze(-1)))
        self.project_in.bias.copy_(distributed.from_first_rank((self.project_in.bias - z.mean(0)) * scale))
        self.health()

    def _health(self) -> dict[str, float]:
        saturated = float(self.saturated)
        if saturated > 0.5:
            self._warn_once(
                "saturation",
                f"{saturated:.0%} of the latents lie beyond 3, where tanh passes almost no gradient: normalise the "
                "encoder's output, or call initialize(latents) with a projection (dim != len(levels))",
            )
        return super()._health() | {"saturated": saturated}

    def extra_repr(self) -> str:
        """Levels and layout."""
        return f"levels={list(self.levels)}, dim={self.dim}, channel_dim={self.channel_dim}"
