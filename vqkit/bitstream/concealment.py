"""What takes the place of indices that a damaged file does not give."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqkit.bitstream.fingerprint import quantizer_of


class NearestNeighbour:
    """The nearest index that is there, along the first axis of the grid on which there is one; of two as near the
    earlier.

    Packets hold rows, so what is missing lies between rows that are there. A level of which nothing is there stays -1,
    which adds nothing to the coarser ones.
    """

    def __call__(self, values: Tensor, missing: Tensor, level: int) -> Tensor:
        """Fill a grid.

        Args:
            values: (*grid) int64, -1 where there is none.
            missing: (*grid) bool, where to put others.
            level: not used.
        """
        filled = values
        for axis in range(values.ndim):
            filled = torch.where(missing & (filled < 0), _nearest_along(filled, axis), filled)
        return filled


class CodebookMean:
    """Of each level the code that is nearest to the mean of its codebook, whatever is around.

    Args:
        tables: code vectors (K, D) of each level; what is not finite does not count.

    Raises:
        ValueError: there is none of a level.
    """

    def __init__(self, tables: Sequence[Tensor | None]) -> None:
        self.codes = []
        for level, table in enumerate(tables):
            if table is None:
                raise ValueError(
                    f"tables has none of level {level}, whose codes are not stored: bake the quantizer, or conceal "
                    "with NearestNeighbour()"
                )
            vectors = table.detach().double()
            finite = vectors.isfinite().all(-1)
            far = (vectors - vectors[finite].mean(0)).square().sum(-1)
            self.codes.append(int(far.masked_fill(~finite, math.inf).argmin()))

    @classmethod
    def of(cls, module: nn.Module) -> "CodebookMean":
        """That of a tokenizer or a quantizer.

        Raises:
            ValueError: it computes its codes.
        """
        return cls(quantizer_of(module).level_tables())

    def __call__(self, values: Tensor, missing: Tensor, level: int) -> Tensor:
        """Fill a grid; see `NearestNeighbour`, but for `level`, which is its number."""
        return values.masked_fill(missing, self.codes[level])


def _nearest_along(values: Tensor, axis: int) -> Tensor:
    """At each cell the nearest index of at least 0 along an axis, -1 where there is none."""
    length = values.shape[axis]
    places = torch.arange(length).reshape(-1, *[1] * (values.ndim - axis - 1)).expand_as(values)
    before = torch.where(values < 0, -1, places).cummax(axis).values
    after = torch.where(values < 0, length, places).flip(axis).cummin(axis).values.flip(axis)
    far = 2 * length
    closer = torch.where(before < 0, far, places - before) <= torch.where(after == length, far, after - places)
    found = torch.where(closer, before, after).clamp(0, length - 1)
    return values.gather(axis, found)
