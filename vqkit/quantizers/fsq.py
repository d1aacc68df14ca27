"""Finite scalar quantization: each dimension is bounded and rounded to a few levels."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vqkit.parts.estimators import straight_through
from vqkit.parts.selection import Selection
from vqkit.quantizers.fixed_grid import FixedGrid

_LARGEST_CODEBOOK = 2**62
_MOST_CENTERED_LEVELS = 1000
_EXACT_IN_FLOAT32 = 2**24  # a sum of whole numbers below it is exact in any order
_TOGETHER = 16
_EXACT_QUOTIENTS = 2**20  # of an index and a half: those below it lie further from a whole number than they are rounded


class FSQ(FixedGrid):
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

    Source: Mentzer et al. 2023, "Finite Scalar Quantization: VQ-VAE Made Simple" (arXiv:2309.15505), sec. 3 and
    appendix A.1; eps = 1e-3.
    Differs: the forward value is the code exactly. shift = tan(offset / half) is what the paper's listing has, though
    the inverse of tanh is atanh: `CenteredFSQ` is the variant of other libraries.

    Raises:
        ValueError: fewer than two levels in a dimension, no dimension, or more than 2^62 codes.
    """

    def __init__(self, levels: Sequence[int], *, dim: int | None = None, channel_dim: int = -1) -> None:
        if not levels or not all(isinstance(level, int) and level > 1 for level in levels):
            raise ValueError(
                f"levels={list(levels)}: expected at least one dimension, each of at least 2 levels, such as "
                "[8, 5, 5, 5]"
            )
        if math.prod(levels) > _LARGEST_CODEBOOK:
            raise ValueError(
                f"levels={list(levels)}: {math.prod(levels)} codes do not fit an int64 index; use fewer levels"
            )
        super().__init__(len(levels) if dim is None else dim, codebook_dim=len(levels), channel_dim=channel_dim)
        self.levels = tuple(levels)
        self.codebook_size = math.prod(levels)
        self.grid_values = list(levels)
        self.register_buffer("level_counts", torch.tensor(levels))
        self._places = [math.prod(levels[:position]) for position in range(len(levels))]
        self._middle = sum(level // 2 * place for level, place in zip(levels, self._places, strict=True))
        self.register_buffer("place_values", torch.tensor(self._places))
        self.register_unsaved("bound", partial(bound, self.levels, self.slack, self.shift_of, torch.float32))
        self.register_unsaved("radix", partial(radix, self.levels, torch.float32))
        self.register_watched()

    level_counts: Tensor
    place_values: Tensor
    bound: Tensor
    radix: Tensor

    grid_buffer = "level_counts"
    slack: ClassVar[float] = -1e-3
    """By which part the bound is wider than the outermost levels."""
    shift_of = staticmethod(torch.tan)
    """From offset / half to the shift."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The bound is computed anew in another dtype: numbers of float32 would stay rounded in float64."""
        before = self.bound
        super()._apply(fn, recurse)
        if not self.bound.is_meta and (before.is_meta or self.bound.dtype != before.dtype):
            with torch.device("cpu"):
                self.bound.copy_(bound(self.levels, self.slack, self.shift_of, self.dtype))
        return self

    def grid_mismatch(self, found: Tensor) -> str:
        """The levels of both."""
        return f"levels are {list(self.levels)}, and the state has {found.tolist()}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        found = state_dict.get(f"{prefix}place_values")
        if found is not None and found.tolist() != self._places:
            arguments[-1].append(f"{prefix}place_values are {self._places}, and the state has {found.tolist()}")
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Bound and round `latents` (N, D)."""
        together = self._rows_together(latents) * self.codebook_dim
        half, lift, shift, width, slope = self.bound[:, :together].unbind()
        squashed = (latents.view(-1, together) + shift).tanh_()
        levels = torch.addcmul(lift, squashed.detach(), half).round_()
        indices = self._pack(levels.view(latents.shape), valid)
        estimated = levels.div_(width)
        if self.learning:
            self.watch_rows(latents, valid)
        if torch.is_grad_enabled():
            estimated = straight_through(estimated, squashed, slope=slope)
        estimated = estimated.view(latents.shape)
        selected = estimated.detach()
        selection = Selection(latents=latents, z=latents, codes=None, indices=indices, selected=selected, valid=valid)
        return estimated, selection

    def _rows_together(self, latents: Tensor) -> int:
        """How many rows (N, D) are taken as one: along rows as short as D, torch takes five times as long."""
        traced = torch.compiler.is_compiling()  # which makes loops of its own
        return math.gcd(len(latents), _TOGETHER) if latents.is_contiguous() and not traced else 1

    def unbounded(self, shares: Tensor) -> Tensor:
        """Latents (..., D) that the bound takes to a share of its width: what an encoder learns to give this grid.

        Args:
            shares: (..., D), of half the width, around the middle of the levels; beyond -1 and 1 as there.
        """
        most = 1 - torch.finfo(shares.dtype).eps
        return shares.clamp(-most, most).atanh() - self.bound[2, : self.codebook_dim]

    def _pack(self, levels: Tensor, valid: Tensor) -> Tensor:
        """(N, D) whole numbers, of which 0 is the middle one -> (N,) int64; -1 where not valid, and for NaN, which a
        broken projection makes.
        """
        columns = levels.unbind(-1)  # added up one by one, since sums along short rows take longer
        if self.codebook_size <= _EXACT_IN_FLOAT32:
            total = columns[0] + self._middle
            for column, place in zip(columns[1:], self._places[1:], strict=True):
                total.add_(column, alpha=place)
            return torch.where(valid, total.nan_to_num_(nan=-1.0), -1).long()
        indices = torch.full_like(columns[0], self._middle, dtype=torch.int64)
        for column, place in zip(columns, self._places, strict=True):
            indices += column.long() * place
        return torch.where(valid & ~levels.sum(-1).isnan(), indices, -1)

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Code vectors (..., D) of `indices` (...)."""
        if self.codebook_size > _EXACT_QUOTIENTS:
            digits, width = indices.unsqueeze(-1) // self.place_values % self.level_counts, self.level_counts // 2
            return (digits - width).to(self.dtype) / width
        # In floating point, which takes half as long. The halves keep quotients off whole numbers, whichever way a
        # division rounds.
        places, spans, counts, width = self.radix.unbind()
        halves = (indices.to(self.dtype) + 0.5).unsqueeze(-1)
        above = (halves / spans).floor_()
        return (halves / places).floor_().sub_(above.mul_(counts)).sub_(width).div_(width)

    def health(self) -> dict[str, float]:
        """The share of `saturated` latents; see `BaseQuantizer`."""
        saturated = self.share_beyond()
        if saturated > 0.5:
            self.warn_once(
                "saturation",
                f"{saturated:.0%} of the latents lie beyond 3, where tanh passes almost no gradient: normalise the "
                "encoder's output, or call initialize(latents) with a projection (dim != len(levels))",
            )
        return super().health() | {"saturated": saturated}

    def extra_repr(self) -> str:
        """Levels and layout."""
        return f"levels={list(self.levels)}, dim={self.dim}, channel_dim={self.channel_dim}"


def bound(levels: Sequence[int], slack: float, shift_of: Callable[[Tensor], Tensor], dtype: torch.dtype) -> Tensor:
    """Numbers of the bound b in levels, which lies from -L/2 to L/2 - 1 after rounding for even L, and from -(L - 1)/2
    to (L - 1)/2 for odd.

    Returns:
        (5, 16 D): half, -offset and shift, the width floor(L / 2), and half / width, by which a code grows with tanh;
        those of 16 rows, one after another.
    """
    counts = torch.tensor(levels)
    width, steps = (counts // 2).to(dtype), counts.to(dtype) - 1
    half, offset = steps * ((1 + slack) / 2), width - steps / 2
    return torch.stack([half, -offset, shift_of(offset / half), width, half / width]).repeat(1, _TOGETHER)


def radix(levels: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Numbers of an index in the mixed radix of the levels, (4, D): the value of each place, that of the next one, L,
    and the width floor(L / 2).
    """
    counts = torch.tensor(levels)
    spans = counts.cumprod(0)
    return torch.stack([spans // counts, spans, counts, counts // 2]).to(dtype)


class CenteredFSQ(FSQ):
    """Finite scalar quantization in which a latent of 0 is exactly a level, for odd and even L.

    As `FSQ`, but with half = (L - 1)(1 + eps) / 2 and shift = atanh(offset / half), so that b(0) = 0. Of standard
    normal values 0.2 to 0.4 % get another level than by the paper's rule, and of [8, 5, 5, 5] tokens about 1 %: a model
    must be decoded by the rule that it was trained with.

    Args:
        levels: L of each dimension, in 2 ... 1000.
        dim: size of the input's channel axis; None means D. If it differs, linear maps lead in and out.
        channel_dim: see `BaseQuantizer`.

    Source: vector-quantize-pytorch (its FSQ, version 1.32.0), and what was derived from it; eps = 1e-3.
    Differs: the forward value is the code exactly.

    Raises:
        ValueError: no dimension, fewer than 2 or more than 1000 levels in one, or more than 2^62 codes.
    """

    slack = 1e-3
    shift_of = staticmethod(torch.atanh)

    def __init__(self, levels: Sequence[int], *, dim: int | None = None, channel_dim: int = -1) -> None:
        if levels and max(levels) > _MOST_CENTERED_LEVELS:
            raise ValueError(
                f"levels={list(levels)}: expected at most {_MOST_CENTERED_LEVELS} each, since (L - 1)(1 + 1e-3) / 2 "
                "would round to a level beyond the last; use FSQ"
            )
        super().__init__(levels, dim=dim, channel_dim=channel_dim)
