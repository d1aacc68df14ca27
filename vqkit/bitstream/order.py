"""An order of codes in which neighbours are alike, found in integers, so that every machine finds the same."""

import torch
from torch import Tensor

_MOST_COORDINATES = 32
_ITERATIONS = 8


def code_order(vectors: Tensor) -> Tensor:
    """The rank of each code in a tree that halves the codes, again and again, along their principal axis.

    Ranks low ... high - 1 are halved at (low + high) // 2, so that codes whose ranks begin with the same bits are a
    group of like codes; groups differ in size by one at most. The vectors are rounded to 16 bits, of more than 32
    coordinates those of the largest variance count, and axes are found by power iteration. Codes at the same place of
    an axis keep their order.

    Args:
        vectors: (K, D), K and D >= 1, read as float32; what is not finite counts as 0.

    Returns:
        (K,) int64 on the CPU, a permutation.

    Source: principal axis trees, McNames 2001 ("A fast nearest-neighbor algorithm based on a principal axis search
        tree", IEEE TPAMI 23(9)).
    """
    points = _rounded(vectors)
    places = torch.arange(len(points))
    members = places.clone()  # the code at each place
    low, high = torch.zeros_like(places), torch.full_like(places, len(places))
    for _ in range((len(points) - 1).bit_length()):
        group = low.unique_consecutive(return_inverse=True)[1]
        along = _along_axis(points[members], group)
        by_place = along.argsort(stable=True)
        members = members[by_place[group[by_place].argsort(stable=True)]]
        middle = (low + high) // 2
        upper = (places >= middle) & (high - low > 1)
        low, high = torch.where(upper, middle, low), torch.where(upper | (high - low == 1), high, middle)
    return members.argsort()


def _rounded(vectors: Tensor) -> Tensor:
    """(K, D) integers of at most 16 bits, in units of a power of 2."""
    exact = vectors.detach().to("cpu", torch.float32).double().nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    exponent = int(torch.frexp(exact.abs().max()).exponent) if exact.numel() else 0
    points = (exact * 2.0 ** (15 - exponent)).round().long()
    centred = points - points.sum(0) // len(points)
    widest = centred.square().sum(0).argsort(stable=True, descending=True)
    return points[:, widest[:_MOST_COORDINATES].sort()[0]]


def _along_axis(points: Tensor, group: Tensor) -> Tensor:
    """How far each point (K, D) lies along the principal axis of its group (K,): (K,) integers."""
    groups, counts = int(group[-1]) + 1, group.bincount()
    sums = points.new_zeros(groups, points.shape[1]).index_add_(0, group, points)
    centred = points - (sums // counts.unsqueeze(-1))[group]
    spread = torch.zeros_like(sums).index_add_(0, group, centred.square())
    widest = (spread == spread.amax(1, keepdim=True)).long()
    axis = widest * (widest.cumsum(1) == 1) << 14  # starts at the first coordinate of the largest spread
    for _ in range(_ITERATIONS):
        along = (centred * axis[group]).sum(1)
        largest = torch.zeros(groups, dtype=torch.int64).scatter_reduce_(0, group, along.abs(), "amax")
        along = along // (largest // 2**18 + 1)[group]
        pulled = torch.zeros_like(sums).index_add_(0, group, centred * along.unsqueeze(-1))
        axis = pulled // (pulled.abs().amax(1, keepdim=True) // 2**14 + 1)
    return (centred * axis[group]).sum(1)
