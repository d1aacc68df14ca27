"""Maps of one size taken to another, axis by axis, each by a matrix: for any number of axes, on any device."""

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqkit.parts.part import Part


class Resizing(Part):
    """How a line of `source` positions becomes one of `target` positions.

    A map is resized along each of its axes in turn. The weights depend on the sizes alone, and edges meet edges: the
    middle of position i lies at (i + 1/2) source / target - 1/2 of the source (`align_corners=False`).
    """

    @abstractmethod
    def weights(self, source: int, target: int) -> list[list[float]]:
        """(target, source): what part of each old position a new one is made of."""


class AreaResizing(Resizing):
    """The mean of all positions that a cell touches, each counted once: adaptive average pooling."""

    def weights(self, source: int, target: int) -> list[list[float]]:
        """See `Resizing`."""
        return [[entry / sum(row) for entry in row] for row in touches(source, target)]


class LinearResizing(Resizing):
    """Between the two nearest positions; with a step of several positions, those between are skipped."""

    def weights(self, source: int, target: int) -> list[list[float]]:
        """See `Resizing`."""
        made = [[0.0] * source for _ in range(target)]
        for number, row in enumerate(made):
            place = max((2 * number + 1) * source / (2 * target) - 0.5, 0.0)
            first = int(place)
            row[first] += 1 - (place - first)
            row[min(first + 1, source - 1)] += place - first
        return made


class CubicResizing(Resizing):
    """Keys' cubic convolution over four positions, with slope -0.75 and the edge repeated, as torch's `bicubic`.

    Source: Keys 1981, "Cubic convolution interpolation for digital image processing"
    (https://doi.org/10.1109/TASSP.1981.1163711), sec. II, with a = -0.75 in place of -0.5.
    """

    def weights(self, source: int, target: int) -> list[list[float]]:
        """See `Resizing`."""
        made = [[0.0] * source for _ in range(target)]
        for number, row in enumerate(made):
            place = (2 * number + 1) * source / (2 * target) - 0.5
            first = math.floor(place)
            for tap in range(first - 1, first + 3):
                row[min(max(tap, 0), source - 1)] += _keys(abs(place - tap))
        return made


def touches(source: int, target: int) -> list[list[float]]:
    """(target, source): 1 where the stretch of a new position touches an old one, 0 elsewhere."""
    ends = [(number * source // target, -(-(number + 1) * source // target)) for number in range(target)]
    return [[float(first <= place < last) for place in range(source)] for first, last in ends]


def matrices(
    weights: Callable[[int, int], list[list[float]]],
    source: Sequence[int],
    target: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor | None]:
    """The (target, source) matrix of each axis; None where the size stays."""
    return [
        None if old == new else torch.tensor(weights(old, new), dtype=dtype, device=device)
        for old, new in zip(source, target, strict=True)
    ]


def resized(maps: Tensor, matrices: Sequence[Tensor | None]) -> Tensor:
    """(B, *S, D) with each axis of S multiplied by its (target, source) matrix; None leaves an axis as it is."""
    for axis, matrix in enumerate(matrices, 1):
        if matrix is not None:
            lines = matrix @ maps.flatten(axis + 1)
            maps = lines.unflatten(-1, maps.shape[axis + 1 :])
    return maps


def _keys(distance: float, slope: float = -0.75) -> float:
    """The cubic's weight of a position at this distance, in [0, 2]."""
    if distance <= 1:
        return ((slope + 2) * distance - (slope + 3)) * distance**2 + 1
    return slope * (((distance - 5) * distance + 8) * distance - 4)
