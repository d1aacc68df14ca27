"""Where a code stands: a sample of its places over many files."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Occurrence(NamedTuple):
    """A token that is a code.

    Attributes:
        source: number of the grid that it stands in.
        place: its index in that grid.
    """

    source: int
    place: tuple[int, ...]


def sample_occurrences(grids: Sequence[Tensor], code: int, most: int, *, seed: int = 0) -> list[Occurrence]:
    """Some of the places where a code stands, in the order of the grids.

    Each place is as likely as any other, so that the sample shows what the code stands for and not where it fits best.

    Args:
        grids: integers of any shape, the tokens of a file each.
        code: its number.
        most: how many places; all of them where there are fewer.
        seed: of the choice.

    Raises:
        ValueError: `most` is below 1.
    """
    if most < 1:
        raise ValueError(f"most={most}: expected at least 1 place")
    counts = torch.tensor([int((grid == code).sum()) for grid in grids], dtype=torch.int64)
    ends = counts.cumsum(0)
    total = int(counts.sum())
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    found = []
    for number in chosen.tolist():
        source = int(torch.searchsorted(ends, number, right=True))
        place = (grids[source] == code).nonzero()[number - int(ends[source] - counts[source])]
        found.append(Occurrence(source, tuple(place.tolist())))
    return found
