"""Which code is the nearest one: float64 comparisons of the codes that the scores on tensor cores leave over."""

import triton
import triton.language as tl

from vqkit.kernels.gpu.pairs import COSINE, EUCLIDEAN, pair_differences, pair_scores
from vqkit.kernels.gpu.split_operands import LONG

NO_CODE = tl.constexpr(2147483647)  # beyond all numbers of codes


@triton.jit(do_not_specialize=["number", "size", "padded_rows", "padded_codes", "parts"])
def decide_kernel(
    x_ptr, codes_ptr, norms_ptr, bias_ptr, state_ptr, best_ptr, second_ptr, third_ptr, best_tile_ptr, second_tile_ptr,
    indices_ptr, listed_ptr, limits_ptr, counts_ptr,
    number, size, padded_rows, padded_codes, relative, bias_relative, underflow, tie, parts,
    METRIC: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr, SLOTS: tl.constexpr,
    MOST_PARTS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """One row: certain, or listed with the score up to which codes may be the nearest one."""
    row, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ENTRIES: tl.constexpr = MOST_PARTS * SLOTS
    entry = tl.arange(0, ENTRIES)
    at = (group * padded_rows + row) * parts * SLOTS + entry
    there = entry < parts * SLOTS
    best = tl.load(best_ptr + at, there, float("inf"))
    second = tl.load(second_ptr + at, there, float("inf"))
    third = tl.load(third_ptr + at, there, float("inf"))
    one, one_value = _least(best, entry, ENTRIES)
    rest = tl.where(entry == one, second, best)
    two, two_value = _least(rest, entry, ENTRIES)
    three_value = tl.min(tl.where(entry == two, tl.where(two == one, third, second), rest), 0)
    norm = tl.load(norms_ptr + group * padded_rows + row)
    largest = tl.load(state_ptr + group * 4).to(tl.float32, bitcast=True)
    limit, proven = score_limit(one_value, norm, largest, relative, bias_relative, underflow, METRIC)

    one_tile = tl.load(best_tile_ptr + (group * padded_rows + row) * parts * SLOTS + one)
    two_at = (group * padded_rows + row) * parts * SLOTS + two
    two_tile = tl.where(two == one, tl.load(second_tile_ptr + two_at), tl.load(best_tile_ptr + two_at))
    member = tl.arange(0, BK // 2)
    of_one = member < BK // 4
    place = member % (BK // 4)
    tile, slot = tl.where(of_one, one_tile, two_tile), tl.where(of_one, one, two) % SLOTS
    ids = tile * BK + 8 * (place // 2) + 2 * slot + place % 2
    wanted = tl.where(of_one, one_value, two_value) <= limit
    wanted &= tl.load(bias_ptr + group * padded_codes + ids, wanted, float("inf")) < float("inf")

    x_ptr += (group * number + row) * D
    codes_ptr += group * size * D
    indices_ptr += group * number + row
    ordinary = norm == norm
    if METRIC != EUCLIDEAN:
        ordinary &= norm > 0
    decided = proven & (three_value > limit) & (one_value < float("inf"))
    if ordinary & decided:
        scores, square = pair_scores(x_ptr, codes_ptr, ids, wanted, D, METRIC, BD)
        reference = _lowest_of_the_least(scores, ids, wanted)
        difference, magnitude = pair_differences(x_ptr, codes_ptr, ids, wanted, square, reference, D, METRIC, BD)
        least = tl.min(tl.where(wanted, difference + tie * magnitude, float("inf")), 0)
        tied = wanted & (difference - tie * magnitude <= least)
        tl.store(indices_ptr, tl.min(tl.where(tied, ids, NO_CODE), 0).to(tl.int64))
    elif ordinary & (tl.load(state_ptr + group * 4 + 1) > 0):
        place_in_list = tl.atomic_add(state_ptr + group * 4 + 3, 1)
        tl.store(listed_ptr + group * number + place_in_list, row)
        # A row without a bound has all codes for candidates: nothing to list.
        tl.store(limits_ptr + group * number + row, tl.where(proven, limit, float("-inf")))
        tl.store(counts_ptr + group * number + row, tl.where(proven, 0, CANDIDATES + 1))
    else:  # a row that ties with everything, or no usable code
        usable, valid = tl.load(state_ptr + group * 4 + 1), tl.load(state_ptr + group * 4 + 2)
        tl.store(indices_ptr, (size - tl.where(usable > 0, usable, valid)).to(tl.int64))


@triton.jit(do_not_specialize=["number", "size", "padded_codes"])
def settle_kernel(
    x_ptr, codes_ptr, usable_ptr, state_ptr, listed_ptr, found_ptr, counts_ptr, indices_ptr,
    number, size, padded_codes, tie,
    METRIC: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """The nearest code of each listed row, in float64, among its candidates, or among all codes where they are many."""
    group = tl.program_id(1).to(tl.int64)
    count = tl.load(state_ptr + group * 4 + 3)
    lane = tl.arange(0, CANDIDATES)
    codes_ptr += group * size * D
    usable_ptr += group * padded_codes
    for entry in tl.range(tl.program_id(0), count, tl.num_programs(0)):
        row = group * number + tl.load(listed_ptr + group * number + entry)
        candidates = tl.load(counts_ptr + row)
        # None where this pass rounds otherwise than the scan, and its score is just above the limit.
        candidates = tl.where(candidates > CANDIDATES, 0, candidates)
        listed = tl.load(found_ptr + row * CANDIDATES + lane, lane < candidates, 0)
        chosen = nearest_candidate(
            x_ptr + row * D, codes_ptr, usable_ptr, listed, candidates, size, tie, D, METRIC, BD, CANDIDATES
        )
        tl.store(indices_ptr + row, chosen.to(tl.int64))


@triton.jit
def nearest_candidate(
    x_ptr, codes_ptr, usable_ptr, listed, number, size, tie,
    D: tl.constexpr, METRIC: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The nearest usable code of one row in float64, the lowest of a tie: of the first `number` codes that are listed
    (BK,), or of all codes where that is 0.
    """
    blocks = tl.where(number == 0, tl.cdiv(size, BK), 1)
    best = tl.full([1], float("inf"), tl.float64)
    reference = tl.full([1], NO_CODE, tl.int32)
    for block in tl.range(0, blocks):
        ids, mask = _candidates(listed, number, block, usable_ptr, size, BK)
        scores, _ = pair_scores(x_ptr, codes_ptr, ids, mask, D, METRIC, BD)
        lowest, value = _lowest_of_the_least(scores, ids, mask), tl.min(scores, 0)
        reference = tl.where((value < best) | ((value == best) & (lowest < reference)), lowest, reference)
        best = tl.minimum(best, value)
    other = tl.min(reference, 0)
    least = tl.full([1], float("inf"), tl.float64)
    for block in tl.range(0, blocks):
        ids, mask = _candidates(listed, number, block, usable_ptr, size, BK)
        difference, magnitude = _compared(x_ptr, codes_ptr, ids, mask, other, D, METRIC, BD)
        least = tl.minimum(least, tl.min(tl.where(mask, difference + tie * magnitude, float("inf")), 0))
    chosen = tl.full([1], NO_CODE, tl.int32)
    for block in tl.range(0, blocks):
        ids, mask = _candidates(listed, number, block, usable_ptr, size, BK)
        difference, magnitude = _compared(x_ptr, codes_ptr, ids, mask, other, D, METRIC, BD)
        tied = mask & (difference - tie * magnitude <= least)
        chosen = tl.minimum(chosen, tl.min(tl.where(tied, ids, NO_CODE), 0))
    return tl.min(chosen, 0)


@triton.jit
def score_limit(best, norm, largest, relative, bias_relative, underflow, METRIC: tl.constexpr):
    """The score up to which a code may be nearer than the best one, and whether that is proven: docs/search.md."""
    reach = largest
    if METRIC == EUCLIDEAN:
        squared = tl.maximum(2 * best + norm * norm, 0)
        reach = tl.minimum(largest, 2 * (norm + tl.sqrt(squared)))
    error = relative * norm * reach + bias_relative * reach * reach + underflow * (1 + norm + reach)
    limit = best + 2 * error
    # False where anything is not a number, and where the products left out a code that may be within reach.
    proven = (limit < float("inf")) & ((reach < LONG) | (largest < LONG))
    if METRIC == COSINE:
        proven = limit < float("inf")
    return limit, proven


@triton.jit
def _least(values, entry, ENTRIES: tl.constexpr):
    """Where the smallest value is (the first place), and the value."""
    least = tl.min(values, 0)
    return tl.min(tl.where(values == least, entry, ENTRIES - 1), 0), least


@triton.jit
def _lowest_of_the_least(scores, ids, mask):
    return tl.min(tl.where(mask & (scores <= tl.min(scores, 0)), ids, NO_CODE), 0)


@triton.jit
def _candidates(listed, number, block, usable_ptr, size, BK: tl.constexpr):
    """Numbers of the codes that a row is compared with next, and which of them are meant."""
    lane = tl.arange(0, BK)
    ids = tl.where(number == 0, block * BK + lane, listed)
    mask = (ids < size) & ((number == 0) | (lane < number))
    return ids, mask & (tl.load(usable_ptr + ids, mask, 0) != 0)


@triton.jit
def _compared(x_ptr, codes_ptr, ids, mask, other, D: tl.constexpr, METRIC: tl.constexpr, BD: tl.constexpr):
    """As `pair_differences`, with the lengths of the codes, which only the cosine needs."""
    square = tl.zeros_like(ids).to(tl.float64)
    if METRIC == COSINE:
        _, square = pair_scores(x_ptr, codes_ptr, ids, mask, D, METRIC, BD)
    return pair_differences(x_ptr, codes_ptr, ids, mask, square, other, D, METRIC, BD)
