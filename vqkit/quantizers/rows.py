"""Composites whose levels have grids of different sizes: indices hold the grids one after another, in a row."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import distributed
from vqkit.indices import check_indices
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.composite import SampleDropout
from vqkit.quantizers.reduction import Reduction
from vqkit.runtime import check_plain


class RowQuantizer(SampleDropout):
    """Levels that are summed, coarse first, each with a number of indices of its own.

    A level is what one stage quantizes, and has several codebooks where the stage has levels itself. Subclasses say
    how many indices each has (`cells`), and how a row is cut into levels and joined.

    Args:
        stages: one for each level, or a single one for all.
        dropout: see `SampleDropout`.
        reduction: see `CompositeQuantizer`.
        channel_dim: see `BaseQuantizer`.
        seed: see `SampleDropout`.

    Raises:
        ValueError: stages differ in `dim` or in their number of levels.
    """

    member_name = "stage"
    index_per_position = False
    prefixes: tuple[int, ...] | None = None
    """How many codes of one codebook each level chooses from, the first so many; None: all."""
    stages: Sequence[BaseQuantizer]

    def __init__(
        self, stages: Sequence[BaseQuantizer], *, dropout: float, reduction: Reduction, channel_dim: int, seed: int
    ) -> None:
        dims, levels = [one.dim for one in stages], [one.num_codebooks if one.level_axis else 0 for one in stages]
        if len(set(dims)) > 1:
            raise ValueError(f"stage built quantizers of dim {dims}: expected one size, since they are summed")
        if len(set(levels)) > 1:
            raise ValueError(f"stage built quantizers of {levels} levels: expected the same number, of all or of none")
        super().__init__(stages, dims[0], dropout=dropout, reduction=reduction, channel_dim=channel_dim, seed=seed)
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]  # it forgets its element type
        self.level_axis, self.num_codebooks = stages[0].level_axis, stages[0].num_codebooks

    @property
    @abstractmethod
    def cells(self) -> tuple[int, ...]:
        """Indices of each level, coarse first: of a step, or of a sample where `positions_per_step` is None."""

    @abstractmethod
    def split_levels(self, indices: Tensor) -> list[Tensor]:
        """Of each level its indices: (B, L[, levels]) -> (B, *grid[, levels]), coarse first.

        Raises:
            ValueError: `indices` is no such row.
        """

    @abstractmethod
    def join_levels(self, indices: Iterable[Tensor], shape: Sequence[int] = ()) -> Tensor:
        """What `split_levels` gave, in a row again: (B, *grid, ...) of each level -> (B, L, ...)."""

    @property
    def members(self) -> Iterable[BaseQuantizer]:
        """The stages, coarse first: one for each level, or a single one for all."""
        return self.stages

    @property
    def calls(self) -> Sequence[BaseQuantizer]:
        """The stage of each level."""
        return list(self.stages) * (len(self.cells) // len(self.stages))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """The size of each codebook of an index; of the largest level, where they differ."""
        return tuple(map(max, zip(*(stage.codebook_sizes for stage in self.stages), strict=True)))

    @property
    def level_sizes(self) -> tuple[int, ...]:
        """How many codes each level chooses from, and of a stage with levels each of these; see `by_level`."""
        if self.prefixes is not None:
            return self.prefixes
        return tuple(size for stage in self.calls for size in stage.codebook_sizes)

    @property
    def indices_per_step(self) -> tuple[int, ...]:
        """`cells` for each of `level_sizes`; see `BaseQuantizer`."""
        return tuple(count for count in self.cells for _ in range(self.num_codebooks))

    @property
    def bits_per_token(self) -> float:
        """The mean over the indices of all levels; see `BaseQuantizer`."""
        pairs = zip(self.indices_per_step, self.level_sizes, strict=True)
        return sum(count * math.log2(size) for count, size in pairs) / sum(self.cells)

    def initialize_stage(self, stage: BaseQuantizer, batches: Sequence[Tensor], seed: int) -> None:
        """Initialize a stage on all vectors (M, dim) of some batches; on other ranks on theirs."""
        rows = torch.cat([self.latent_spread.new_zeros(0, self.dim), *batches])
        batch = max(math.ceil(len(rows) / max(len(batches), 1)), 1)
        samples = max(len(rows), 1) * distributed.world_size()  # of this rank all; it may have none
        stage.initialize(rows.split(batch), samples=samples, seed=seed)

    # ------------------------------------------------------------------ indices

    def prefix(self, indices: Tensor, num_levels: int) -> Tensor:
        """Indices of the first levels alone, with -1 in the place of the finer ones, as `decode` takes them.

        Args:
            indices: (B, L[, levels]).
            num_levels: how many to keep, 0 ... number of levels.

        Raises:
            ValueError: `num_levels` is no such number, or `indices` no such row.
        """
        if not 0 <= num_levels <= len(self.cells):
            raise ValueError(f"num_levels={num_levels}: expected 0 ... {len(self.cells)}, the levels to keep")
        parts = self.split_levels(indices)
        return self.join_levels(
            [part if number < num_levels else torch.full_like(part, -1) for number, part in enumerate(parts)]
        )

    def by_level(self, indices: Tensor) -> Tensor:
        """(B, L[, levels]) -> (B, L, columns), -1 in the columns of other levels; see `BaseQuantizer`."""
        width, columns = self.num_codebooks, len(self.level_sizes)
        made = []
        for number, part in enumerate(self.split_levels(indices)):
            own = part if self.level_axis else part.unsqueeze(-1)
            made.append(F.pad(own, (number * width, columns - (number + 1) * width), value=-1))
        return self.join_levels(made)

    def to_grids(self, indices: Tensor) -> list[Tensor]:
        """(B, L[, levels]) -> (B, *grid) of each of `level_sizes`; see `BaseQuantizer`."""
        parts = self.split_levels(indices)
        return [grid for part in parts for grid in (part.unbind(-1) if self.level_axis else (part,))]

    def from_grids(self, grids: Sequence[Tensor]) -> Tensor:
        """What `to_grids` was given; see `BaseQuantizer`."""
        width = self.num_codebooks
        if not self.level_axis:
            return self.join_levels(grids)
        starts = range(0, len(grids), width)
        return self.join_levels([torch.stack(list(grids[first : first + width]), dim=-1) for first in starts])

    def decode(self, indices: Tensor) -> Tensor:
        """Vectors of (B, L[, levels]), in the layout of `forward`; -1 adds nothing. See `BaseQuantizer`.

        Raises:
            ValueError: not integers, no such row, or codes that a level does not have.
        """
        if len(set(self.level_sizes)) > 1:
            self.check_codes(indices)
        return super().decode(indices)

    def check_codes(self, indices: Tensor) -> None:
        """Refuse what is no index of its level.

        Raises:
            ValueError: see `decode`.
        """
        sizes, width = self.level_sizes, self.num_codebooks
        if len(set(sizes)) == 1:
            check_indices(indices, self.codebook_sizes, level_axis=self.level_axis)
            return
        check_plain("indices", indices)
        for number, part in enumerate(self.split_levels(indices)):
            check_indices(part, sizes[number * width : (number + 1) * width], level_axis=self.level_axis)


def first_levels_of(quantizer: BaseQuantizer, indices: Tensor, count: int | None, *, name: str = "levels=") -> Tensor:
    """The first levels of indices, as `decode` takes them; None keeps all.

    Args:
        quantizer: which gave them, a row of levels or any other.
        indices: of `encode`.
        count: how many levels, at least 1.
        name: what a message calls `count`.

    Raises:
        ValueError: there are no levels, or not so many.
    """
    if count is None:
        return indices
    most = quantizer.num_codebooks if quantizer.level_axis else 0
    if isinstance(quantizer, RowQuantizer):
        most = len(quantizer.cells)
    if not 1 <= count <= most:
        raise ValueError(
            f"{name}{count}: expected 1 to {most}"
            if most
            else f"{name}{count}: this tokenizer has one codebook and no levels"
        )
    return quantizer.prefix(indices, count) if isinstance(quantizer, RowQuantizer) else indices[..., :count]
