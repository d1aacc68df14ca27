"""The grids of a multi-scale quantizer: maps become grids and grids maps, and indices of all grids lie in a row."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from vqkit.quantizers.resizing import Resizing, matrices, resized, touches
from vqkit.runtime import known, transformed


@dataclass(frozen=True, eq=False)
class _Matrices:
    """For each axis the matrix from a map to the sums of the cells of a grid, and that from these to a map."""

    down: list[Tensor | None]
    up: list[Tensor | None]


class Pyramid:
    """Grids of growing size over one map, the last of which is the map.

    Args:
        scales: size of each grid, coarse first: a number for the same along all axes, or one for each axis.
        axes: of the map, 1, 2 or 3, where all scales are numbers.
        up: how a grid is enlarged to the map.

    Attributes:
        grids: size of each grid along each axis.
        ends: number of cells of all grids up to each.

    Raises:
        ValueError: there is no scale, or one is smaller than one before it.
    """

    def __init__(self, scales: Sequence[int | Sequence[int]], axes: int, up: Resizing) -> None:
        grids = tuple((scale,) * axes if isinstance(scale, int | float) else tuple(scale) for scale in scales)
        whole = all(isinstance(size, int) for grid in grids for size in grid)
        if not grids or not whole or len({len(grid) for grid in grids}) > 1 or not 1 <= len(grids[0]) <= 3:
            raise ValueError(
                f"scales={scales}, axes={axes}: expected at least one size, each a whole number, or a number for each "
                "of 1 to 3 axes"
            )
        smaller = any(fine < coarse for pair in pairwise(grids) for coarse, fine in zip(*pair, strict=True))
        if min(map(min, grids)) < 1 or smaller:
            raise ValueError(
                f"scales={scales}: expected sizes of at least 1, coarse first, none smaller than one before it"
            )
        self.grids = grids
        self.ends = tuple(accumulate(map(math.prod, grids)))
        self.up = up
        self._built: tuple[tuple[torch.dtype, torch.device], list[_Matrices]] | None = None

    # ------------------------------------------------------------------ vectors

    def shrink(self, number: int, maps: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the valid vectors in each cell of a grid, and which cells have some.

        Args:
            number: of the grid.
            maps: (B, *S, D), anything where not valid.
            valid: (B, *S) bool.

        Returns:
            (B, *grid, D), 0 in cells without a valid vector; (B, *grid) bool.
        """
        filled = maps if known(valid.all, valid.device) else torch.where(valid.unsqueeze(-1), maps, 0)
        down = self._matrices(maps.dtype, maps.device)[number].down
        counts = resized(valid.unsqueeze(-1).to(maps.dtype), down)
        return resized(filled, down) / counts.clamp(min=1), counts.squeeze(-1) > 0.5

    def enlarge(self, number: int, cells: Tensor) -> Tensor:
        """The map of a grid: (B, *grid, D) -> (B, *S, D)."""
        return resized(cells, self._matrices(cells.dtype, cells.device)[number].up)

    def cover(self, counted: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Which positions the cells that count touch: (B, *S) bool, of each sample those of its finest grid with any.

        Args:
            counted: (B, *grid) bool, of the first grids or of all.
            dtype: of the matrices.
        """
        covered: Tensor | None = None
        for some, sizes in zip(counted, self._matrices(dtype, counted[0].device), strict=False):
            spread = [None if down is None else down.mT for down in sizes.down]
            touched = resized(some.unsqueeze(-1).to(dtype), spread).squeeze(-1) > 0.5
            covered = touched if covered is None else where_any(some, touched, covered)
        assert covered is not None  # there is a first grid
        return covered

    def resize_sums(self, sums: Sequence[Tensor], resizing: Resizing) -> Tensor:
        """The map (B, *S, D) after each grid at the size of the grid behind it, where there is one: (B, m, D)."""
        made = [
            resized(maps, matrices(resizing.weights, self.grids[-1], grid, maps.dtype, maps.device)).flatten(1, -2)
            for maps, grid in zip(sums, self.grids[1:], strict=False)
        ]
        return torch.cat([sums[0].new_zeros(len(sums[0]), 0, sums[0].shape[-1]), *made], dim=1)

    def _matrices(self, dtype: torch.dtype, device: torch.device) -> list[_Matrices]:
        if self._built is not None and self._built[0] == (dtype, device):
            return self._built[1]
        full = self.grids[-1]
        with torch.inference_mode(False):  # a training may use them later
            made = [
                _Matrices(
                    matrices(touches, full, grid, dtype, device), matrices(self.up.weights, grid, full, dtype, device)
                )
                for grid in self.grids
            ]
        if not torch.compiler.is_compiling() and not transformed():
            self._built = (dtype, device), made
        return made

    # ------------------------------------------------------------------ indices

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Of each grid (B, *grid, ...) -> (B, L, ...), one after another."""
        return torch.cat([part.flatten(1, len(self.grids[0])) for part in parts], dim=1)

    def split(self, indices: Tensor) -> list[Tensor]:
        """What `join` joined, of all grids or of the first ones: (B, n, ...) -> of each (B, *grid, ...)."""
        ends = self.ends[: self.ends.index(indices.shape[1]) + 1]
        pairs = zip(pairwise((0, *ends)), self.grids, strict=False)
        return [indices[:, first:last].unflatten(1, grid) for (first, last), grid in pairs]


def any_of_each(flags: Tensor, like: Tensor) -> Tensor:
    """(B, ...) bool -> (B, 1, ...), whether any of a sample is True, with as many axes as `like`."""
    return flags.flatten(1).any(1).reshape(-1, *[1] * (like.ndim - 1))


def where_any(some: Tensor, touched: Tensor, covered: Tensor) -> Tensor:
    """(B, ...) bool: `touched` in samples of which any of `some` is True, `covered` in the others."""
    finest = any_of_each(some, touched)
    return (finest & touched) | (~finest & covered)  # ONNX Runtime chooses between numbers alone
