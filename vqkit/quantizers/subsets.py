"""Subsets of m among N as one number each, without gaps: 0 ... C(N, m) - 1."""

import math

import torch
from torch import Tensor


def rank_of_subsets(members: Tensor) -> Tensor:
    """The number of each subset among those as large, in colexicographic order.

    With members p_1 < ... < p_m it is the sum of C(p_j, j).

    Args:
        members: (..., N) bool, which belong to the subset.

    Returns:
        (...) int64.

    Source: the combinatorial number system, Knuth, TAOCP 4A, 7.2.1.3.
    """
    count = members.shape[-1]
    table = _binomials(count, members.device)
    order = members.long().cumsum(-1)  # j at the j-th member
    places = torch.arange(count, device=members.device)
    return torch.where(members, table[places, order], 0).sum(-1)


def subsets_of_rank(rank: Tensor, count: int, size: int) -> Tensor:
    """What `rank_of_subsets` was given.

    Args:
        rank: (...) int64, 0 ... C(count, size) - 1.
        count: N.
        size: m.

    Returns:
        (..., N) bool.
    """
    table = _binomials(count, rank.device)
    rest, left = rank, torch.full_like(rank, size)
    members = []
    for place in reversed(range(count)):
        below = table[place][left]
        taken = (left > 0) & (rest >= below)
        members.append(taken)
        rest, left = torch.where(taken, rest - below, rest), left - taken.long()
    return torch.stack(members[::-1], dim=-1)


def _binomials(count: int, device: torch.device) -> Tensor:
    """(N, N + 1) int64 with C(p, j) in row p, column j."""
    rows = [[math.comb(place, size) for size in range(count + 1)] for place in range(count)]
    return torch.tensor(rows, device=device)
