"""Rows and codes compared one by one in float64, inside a program: what the tie rule of the search is made of.

The same sums as `vqkit.kernels.torch_search.float64_ties` forms: docs/search.md, section "Ties".
"""

import triton
import triton.language as tl

EUCLIDEAN, DOT, COSINE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TINY = tl.constexpr(2.0**-1022)  # the smallest normal float64: lengths are at least that


@triton.jit
def pair_scores(x_ptr, codes_ptr, ids, mask, depth, METRIC: tl.constexpr, BD: tl.constexpr):
    """Scores (C,) of codes `ids` for the row at x_ptr, less is better, infinite outside of the mask; and |e|^2 (C,)."""
    score = tl.zeros_like(ids).to(tl.float64)
    square = score
    for start in range(0, depth, BD):
        place = start + tl.arange(0, BD)
        inside = place < depth
        x = tl.load(x_ptr + place, inside, 0).to(tl.float64)[None, :]
        e = _gather(codes_ptr, ids, mask, place, inside, depth)
        if METRIC == EUCLIDEAN:
            score += tl.sum((x - e) * (x - e), 1)
        else:
            score -= tl.sum(x * e, 1)
        if METRIC == COSINE:
            square += tl.sum(e * e, 1)
    if METRIC == COSINE:
        score = score / tl.maximum(tl.sqrt(square), TINY)
    return tl.where(mask, score, float("inf")), square


@triton.jit
def pair_differences(x_ptr, codes_ptr, ids, mask, square, other, depth, METRIC: tl.constexpr, BD: tl.constexpr):
    """By how much codes `ids` are worse for the row than the code `other`, and the size that the rounding error is
    relative to: both (C,), infinite difference outside of the mask. `square` is |e|^2 (C,), for COSINE.
    """
    difference = tl.zeros_like(ids).to(tl.float64)
    size, along, along_size, across, across_size = difference, difference, difference, difference, difference
    other_ptr = codes_ptr + other.to(tl.int64) * depth
    other_square = tl.sum(tl.zeros([1], tl.float64), 0)
    if METRIC == COSINE:
        for start in range(0, depth, BD):
            place = start + tl.arange(0, BD)
            r = tl.load(other_ptr + place, place < depth, 0).to(tl.float64)
            other_square += tl.sum(r * r, 0)
    first = tl.sqrt(square) < tl.sqrt(other_square)
    for start in range(0, depth, BD):
        place = start + tl.arange(0, BD)
        inside = place < depth
        x = tl.load(x_ptr + place, inside, 0).to(tl.float64)[None, :]
        r = tl.load(other_ptr + place, inside, 0).to(tl.float64)[None, :]
        e = _gather(codes_ptr, ids, mask, place, inside, depth)
        if METRIC == EUCLIDEAN:
            difference += tl.sum((e - r) * ((e - x) + (r - x)), 1)
            size += tl.sum(tl.abs(e - r) * (tl.abs(e - x) + tl.abs(r - x)), 1)
        elif METRIC == DOT:
            difference += tl.sum((r - e) * x, 1)
            size += tl.sum(tl.abs((r - e) * x), 1)
        else:
            short = tl.where(first[:, None], e, r)
            long = tl.where(first[:, None], r, e)
            along += tl.sum((long - short) * (long + short), 1)
            along_size += tl.sum(tl.abs(long - short) * (tl.abs(long) + tl.abs(short)), 1)
            difference += tl.sum(x * (long - short), 1)
            size += tl.sum(tl.abs(x * (long - short)), 1)
            across += tl.sum(x * short, 1)
            across_size += tl.sum(tl.abs(x * short), 1)
    if METRIC == COSINE:
        shorter = tl.where(first, tl.sqrt(square), tl.sqrt(other_square))
        longer = tl.maximum(tl.where(first, tl.sqrt(other_square), tl.sqrt(square)), TINY)
        scale = tl.where(shorter > 0, 1 / tl.where(shorter > 0, (longer + shorter) * shorter, 1), 0)
        difference = (difference - across * along * scale) / longer
        difference = tl.where(first, difference, -difference)
        size = (size + across_size * along_size * scale) / longer
    return tl.where(mask, difference, float("inf")), size


@triton.jit
def _gather(codes_ptr, ids, mask, place, inside, depth):
    at = ids.to(tl.int64)[:, None] * depth + place[None, :]
    return tl.load(codes_ptr + at, mask[:, None] & inside[None, :], 0).to(tl.float64)
