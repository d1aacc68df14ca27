"""One bit per dimension: what LFQ and BSQ share, the packing of bits into indices above all."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any, ClassVar

import torch
from torch import Tensor

from vqkit.parts.compatibility import check_losses_without_codebook
from vqkit.parts.estimators import straight_through
from vqkit.parts.losses import Loss
from vqkit.parts.selection import Selection
from vqkit.quantizers.bit_entropy import BitEntropy, near_equal
from vqkit.quantizers.fixed_grid import FixedGrid
from vqkit.runtime import known

LARGEST_INDEX_BITS = 62
"""Bits of one index: 2^62 codes and their number fit an int64."""

MOST_BITS = 2**20
"""Of all levels: the place of each is listed, which a damaged configuration must not make endless."""

_ENOUGH_VECTORS = 100
"""In a smaller batch a bit is the same everywhere by chance."""


class BinaryQuantizer(FixedGrid):
    """The signs of a vector, times a constant. Subclasses set `entry_size` and write `direction` and `surrogate`.

    Indices are packed in integer arithmetic. More than 62 bits make several levels, as equal in width as can be, the
    first of which holds the first dimensions; a level that is left out (-1, or missing behind a prefix) decodes to
    entries of 0.

    Args:
        bits: D, the number of dimensions and bits.
        dim: size of the input's channel axis; None means `bits`. If it differs, linear maps lead in and out.
        losses: penalties, each with its weight; names must differ.
        channel_dim: see `BaseQuantizer`.

    Raises:
        ValueError: `bits` is not positive.
        IncompatibleParts: a loss needs a codebook, or two have one name.
    """

    entry_size: float
    """The size of each entry of a code."""
    lowest_bit_first: ClassVar[bool] = False
    """Whether the first dimension is the lowest bit of an index, or the highest."""

    stuck_bits: Tensor

    def __init__(self, bits: int, *, dim: int | None, losses: Sequence[Loss], channel_dim: int) -> None:
        if not isinstance(bits, int) or not 1 <= bits <= MOST_BITS:
            raise ValueError(f"bits={bits}: expected a whole number in 1 ... {MOST_BITS}, such as 18 for 2^18 codes")
        super().__init__(bits if dim is None else dim, codebook_dim=bits, losses=losses, channel_dim=channel_dim)
        check_losses_without_codebook(type(self).__name__, losses)
        self.bits = bits
        self.level_bits = near_equal(bits, LARGEST_INDEX_BITS)
        self.codebook_size = 2 ** max(self.level_bits)
        self.num_codebooks = len(self.level_bits)
        self.level_axis = self.num_codebooks > 1
        ends = list(accumulate(self.level_bits))
        self._levels = [slice(end - width, end) for end, width in zip(ends, self.level_bits, strict=True)]
        places = [range(width) if self.lowest_bit_first else reversed(range(width)) for width in self.level_bits]
        self.grid_values = [2**place for level in places for place in level]
        self.register_buffer("place_values", torch.tensor(self.grid_values))
        self.register_unsaved("stuck_bits", partial(torch.zeros, (), dtype=torch.float32))

    place_values: Tensor
    grid_buffer = "place_values"

    def grid_mismatch(self, found: Tensor) -> str:
        """What differs."""
        return (
            "place_values: the state packs its bits in another order, or in other levels, than this "
            f"{type(self).__name__}({self.extra_repr()})"
        )

    @classmethod
    def default_parts(cls, *args: Any, **kwargs: Any) -> Sequence[type]:
        """The loss that both have; see `Configured`."""
        return (BitEntropy,)

    @abstractmethod
    def direction(self, latents: Tensor) -> Tensor:
        """(N, D) -> (N, D): what commitment and entropy look at."""

    @abstractmethod
    def surrogate(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, D): what the gradient of the code is passed to."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """2 to the power of the bits of each level."""
        return tuple(2**width for width in self.level_bits)

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        """Take the signs of `latents` (N, D); 0 has the sign -1."""
        bits = latents > 0
        z = self.direction(latents)
        selected = self._entries(bits)
        if self.learning:
            self.watch(latents, bits, valid)
        quantized = straight_through(selected, self.surrogate(z)) if torch.is_grad_enabled() else selected
        indices = self._indices(bits, valid)
        selection = Selection(latents=latents, z=z, codes=None, indices=indices, selected=selected, valid=valid)
        return quantized, selection

    def assign(self, latents: Tensor, valid: Tensor) -> Tensor:
        """The signs alone; see `BaseQuantizer`."""
        if self.passes_through:
            return super().assign(latents, valid)
        indices = self._indices(self.project_in(latents.reshape(-1, self.dim)) > 0, valid.reshape(-1))
        return indices.reshape(*valid.shape, *indices.shape[1:])

    def lookup(self, indices: Tensor) -> Tensor:
        """Vectors for indices: (...[, levels]) int64 -> (..., dim), for any prefix of the levels."""
        levels = indices if self.level_axis else indices.unsqueeze(-1)
        rows = levels.reshape(-1, levels.shape[-1])
        vectors = self.project_out(self.code_lookup(rows))
        found = (rows >= 0).any(-1)
        if not known(found.all, found.device):
            vectors = torch.where(found.unsqueeze(-1), vectors, 0)
        return vectors.reshape(*levels.shape[:-1], self.dim)

    def code_lookup(self, indices: Tensor) -> Tensor:
        """Code vectors (N, D) of `indices` (N, levels); entries of 0 for levels that are -1 or not there."""
        parts = []
        for level, dimensions in zip(indices.unbind(-1), self._levels, strict=False):
            bits = level.unsqueeze(-1) // self.place_values[dimensions] % 2 == 1
            parts.append(torch.where(level.unsqueeze(-1) >= 0, self._entries(bits), 0))
        missing = sum(self.level_bits[len(parts) :])
        return torch.cat([*parts, parts[0].new_zeros(indices.shape[0], missing)], -1)

    def turn(self, indices: Tensor, bits: Tensor) -> Tensor:
        """`indices` (N, levels) int64 with those of their bits turned over where `bits` (N, D) is True; -1 stays."""
        return torch.where(indices >= 0, indices ^ self._pack(bits), -1)

    def _entries(self, bits: Tensor) -> Tensor:
        return bits.to(self.dtype).mul_(2 * self.entry_size).sub_(self.entry_size)

    def _indices(self, bits: Tensor, valid: Tensor) -> Tensor:
        """(N, D) bool -> (N[, levels]) int64, -1 where not valid."""
        indices = torch.where(valid.unsqueeze(-1), self._pack(bits), -1)
        return indices if self.level_axis else indices.squeeze(-1)

    def _pack(self, bits: Tensor) -> Tensor:
        """(N, D) bool -> (N, levels) int64; integers throughout, since a float32 sum holds 24 bits."""
        columns, packed = bits.unbind(-1), []
        for level in self._levels:  # one by one, since all bits times their places would be an (N, D) of int64
            total = columns[level.start] * self.grid_values[level.start]
            for column, place in zip(columns[level][1:], self.grid_values[level][1:], strict=True):
                total.add_(column, alpha=place)
            packed.append(total)
        return torch.stack(packed, -1)

    def watch(self, latents: Tensor, bits: Tensor, valid: Tensor) -> None:
        """Note what `health` tells of: `latents` (N, D), their `bits` (N, D) and which of them are `valid` (N,)."""
        count = valid.sum()
        share = (bits & valid.unsqueeze(-1)).sum(0) / count.clamp(min=1)
        stuck = ((share < 0.01) | (share > 0.99)).to(self.dtype).mean()
        self.stuck_bits.copy_(torch.where(count >= _ENOUGH_VECTORS, stuck, 0))

    def health(self) -> dict[str, float]:
        """The share of `stuck_bits`, which are the same for nearly all vectors; see `BaseQuantizer`."""
        stuck = float(self.stuck_bits)
        if stuck > 0.1:
            self.warn_once(
                "stuck bits",
                f"{stuck:.0%} of the bits are the same for 99 % of the vectors, and say next to nothing: raise the "
                "weight or the diversity of BitEntropy, or call initialize(latents) with a projection (dim != bits)",
            )
        return super().health() | {"stuck_bits": stuck}

    def extra_repr(self) -> str:
        """Bits and layout."""
        levels = f", level_bits={self.level_bits}" if self.level_axis else ""
        return f"bits={self.bits}{levels}, dim={self.dim}, channel_dim={self.channel_dim}"
