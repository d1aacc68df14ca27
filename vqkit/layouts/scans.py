"""Scans: the order in which positions come, as the number (from 0) at which each position of a grid is reached.

Any permutation of 0 ... N - 1 in the shape of the grid serves as well, such as the raster of a transposed picture.
"""

import math

import torch
from torch import Tensor


def raster(*extent: int) -> Tensor:
    """Row by row, the last axis fastest, on a grid of any number of axes (a video is frames, height, width).

    Args:
        extent: the size of each axis, at least 0.

    Returns:
        (*extent) int64.
    """
    if not extent or min(extent) < 0:
        raise ValueError(f"the extent of the grid is {extent}: expected at least one axis, of sizes of at least 0")
    return torch.arange(math.prod(extent)).view(extent)


def zigzag(height: int, width: int) -> Tensor:
    """Along the diagonals, in turn upwards and downwards: (0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (0, 2), ...

    Source: JPEG, ITU-T recommendation T.81 (https://www.w3.org/Graphics/JPEG/itu-t81.pdf), figure A.6.

    Args:
        height: rows, at least 0.
        width: columns, at least 0.

    Returns:
        (height, width) int64.
    """
    row, column = _coordinates(height, width)
    diagonal = row + column
    return ranks(diagonal * (height + width) + torch.where(diagonal % 2 == 1, row, column))


def hilbert(height: int, width: int) -> Tensor:
    """Along a Hilbert curve from the upper left corner to the upper right one, so that nearby steps are near places.

    Source: Hilbert 1891, "Ueber die stetige Abbildung einer Linie auf ein Flächenstück"
        (https://doi.org/10.1007/BF01199431); as an order of tokens, Point Transformer V3, Wu et al. 2023
        (https://arxiv.org/abs/2312.10035).
    Differs: the curve fills squares whose side is a power of two. On another grid it is that of the smallest such
        square around it without the places outside, and jumps over these.

    Args:
        height: rows, at least 0.
        width: columns, at least 0.

    Returns:
        (height, width) int64.
    """
    row, column = _coordinates(height, width)
    side = 1 << (max(height, width, 1) - 1).bit_length()
    distance, half = torch.zeros_like(row), side // 2
    while half:
        right, below = (column & half) > 0, (row & half) > 0
        distance += half * half * torch.where(right, 3 - below.long(), below.long())
        turned = right & ~below  # the last quarter is entered from its far corner
        row, column = torch.where(turned, side - 1 - row, row), torch.where(turned, side - 1 - column, column)
        row, column = torch.where(below, row, column), torch.where(below, column, row)
        half //= 2
    return ranks(distance)


def strided(length: int, segments: int) -> Tensor:
    """The first position of each of several equal segments, then the second of each, and so on: 0, 4, 8, 12, 1, 5, ...

    Args:
        length: positions, at least 0.
        segments: at least 1; the last are shorter where `length` is no multiple.

    Returns:
        (length,) int64.
    """
    if segments < 1:
        raise ValueError(f"segments is {segments}: expected at least 1")
    position, span = raster(length), max(-(-length // segments), 1)
    return ranks(position % span * segments + position // span)


def ranks(keys: Tensor) -> Tensor:
    """How many smaller keys there are of each, equal ones counted once; shape in, shape out."""
    return torch.unique(keys, return_inverse=True)[1]


def _coordinates(height: int, width: int) -> tuple[Tensor, Tensor]:
    number = raster(height, width)
    return number // max(width, 1), number % max(width, 1)
