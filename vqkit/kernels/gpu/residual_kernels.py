"""The kernels of a residual search: all levels of a tile of rows, and of single rows in float64; see `residual.py`."""

import triton
import triton.language as tl

from vqkit.kernels.gpu.decide import nearest_candidate, score_limit
from vqkit.kernels.gpu.pairs import EUCLIDEAN
from vqkit.kernels.gpu.scan import load_rows, tile_scores
from vqkit.kernels.gpu.split_operands import LONG, split


@triton.jit(do_not_specialize=["number", "levels", "size", "padded_codes", "padded_rows"])
def levels_kernel(
    x_ptr, codes_ptr, book_ptr, centre_ptr, bias_ptr, state_ptr, total_ptr, halves_ptr, indices_ptr,
    listed_ptr, level_ptr, count_ptr,
    number, levels, size, padded_codes, padded_rows, relative, bias_relative, underflow, tie,
    METRIC: tl.constexpr, CENTRED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BD: tl.constexpr,
    CHUNK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One tile of rows, level after level; rows with more than two candidates are listed and leave."""
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    open_rows = rows < number  # those not listed yet
    halves_plane = padded_rows.to(tl.int64) * WIDTH
    book_plane = levels.to(tl.int64) * padded_codes * WIDTH
    for level in tl.range(0, levels):
        norm = _split_rows(
            x_ptr, total_ptr, centre_ptr + level * D, halves_ptr, halves_plane, rows, open_rows, CENTRED, D, WIDTH, BD
        )
        tl.debug_barrier()  # other threads read what one wrote
        first = padded_codes.to(tl.int64) * level
        one, two, one_value, two_value, third = _best_codes(
            halves_ptr + rows[:, None] * WIDTH, halves_plane, book_ptr, book_plane, bias_ptr, first,
            padded_codes // BK, WIDTH, CHUNK, BN, BK, STAGES,
        )  # fmt: skip
        largest = tl.load(state_ptr + level * 4 + tl.zeros([BN], tl.int32)).to(tl.float32, bitcast=True)
        limit, proven = score_limit(one_value, norm, largest, relative, bias_relative, underflow, METRIC)
        certain = proven & (third > limit) & (one_value < float("inf"))
        refused = open_rows & ~certain
        place = tl.atomic_add(count_ptr + tl.zeros([BN], tl.int32), 1, refused)
        tl.store(listed_ptr + place, rows.to(tl.int32), refused)
        tl.store(level_ptr + rows, tl.zeros([BN], tl.int32) + level, refused)
        open_rows &= certain

        level_codes = codes_ptr + size.to(tl.int64) * level * D
        close = open_rows & (two_value <= limit)
        if tl.max(close.to(tl.int32), 0) > 0:
            one = _nearer(x_ptr, total_ptr, level_codes, rows, one, two, close, tie, METRIC, D, WIDTH, BD)
        tl.store(indices_ptr + rows * levels + level, one.to(tl.int64), open_rows)
        tl.debug_barrier()  # other threads may have to read what one will write
        for start in tl.range(0, WIDTH, BD, num_stages=1):
            depth = start + tl.arange(0, BD)
            inside = open_rows[:, None] & (depth < D)[None, :]
            at = rows[:, None] * D + depth[None, :]
            e = tl.load(level_codes + one.to(tl.int64)[:, None] * D + depth[None, :], inside, 0)
            tl.store(total_ptr + at, tl.load(total_ptr + at, inside, 0) + e, inside)
        tl.debug_barrier()


@triton.jit
def _split_rows(
    x_ptr, total_ptr, centre_ptr, halves_ptr, plane, rows, mask,
    CENTRED: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Writes what is left of the rows, less the centre, as two bfloat16 halves; its lengths, never too small.

    Numbers that products could overflow with, or that are none, become 0; the length of their row is infinite.
    """
    square = tl.zeros_like(rows).to(tl.float32)
    for start in tl.range(0, WIDTH, BD, num_stages=1):
        depth = start + tl.arange(0, BD)
        left = _left(x_ptr, total_ptr, rows, depth, mask, D)
        if CENTRED:
            left -= tl.load(centre_ptr + depth, depth < D, 0)[None, :]
            left = tl.where(mask[:, None], left, 0)
        square += tl.sum(left * left, 1)
        left = tl.where(tl.abs(left) < LONG, left, 0)
        high, low = split(left, tl.bfloat16)
        at = halves_ptr + rows[:, None] * WIDTH + depth[None, :]
        tl.store(at, high)
        tl.store(at + plane, low)
    # The rounding of up to 1024 squares and of the root, and squares that vanish below the smallest float32.
    length = tl.sqrt(square) * (1 + 2.0**-14) + 2.0**-58
    return tl.where(length < LONG, length, float("inf"))


@triton.jit
def _left(x_ptr, total_ptr, rows, depth, mask, D: tl.constexpr):
    inside = mask[:, None] & (depth < D)[None, :]
    at = rows[:, None] * D + depth[None, :]
    return tl.load(x_ptr + at, inside, 0) - tl.load(total_ptr + at, inside, 0)


@triton.jit
def _best_codes(
    halves_ptr, halves_plane, book_ptr, book_plane, bias_ptr, first, tiles,
    WIDTH: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The two codes of smallest score of each row (those in different slots), their scores, and the next score."""
    slot = tl.arange(0, BK)
    halves_ptr += tl.arange(0, CHUNK)[None, :]
    high, low = load_rows(halves_ptr, halves_plane, 2)
    best = tl.full([BN, BK], float("inf"), tl.float32)
    second = best
    best_tile = tl.zeros([BN, BK], tl.int32)
    for tile in tl.range(0, tiles, num_stages=STAGES):
        scores = tile_scores(
            high, low, halves_ptr, halves_plane, book_ptr, book_plane, bias_ptr, first + tile * BK + slot,
            WIDTH, CHUNK, 2, BN, BK, STAGES,
        )  # fmt: skip
        second = tl.minimum(second, tl.maximum(best, scores))
        best_tile = tl.where(scores < best, tile, best_tile)
        best = tl.minimum(best, scores)
    slots = tl.zeros([BN, BK], tl.int32) + slot[None, :]
    one_value, one_slot = _least_of_rows(best, slots, BK)
    is_one = slots == one_slot[:, None]
    rest = tl.where(is_one, float("inf"), best)
    two_value, two_slot = _least_of_rows(rest, slots, BK)
    is_two = slots == two_slot[:, None]
    third = tl.minimum(tl.min(tl.where(is_two, float("inf"), rest), 1), tl.min(second, 1))
    one = tl.sum(tl.where(is_one, best_tile, 0), 1) * BK + one_slot
    two = tl.sum(tl.where(is_two, best_tile, 0), 1) * BK + two_slot
    return one, two, one_value, two_value, third


@triton.jit
def _least_of_rows(values, slots, BK: tl.constexpr):
    """The smallest value of each row, and the first slot where it is."""
    least = tl.min(values, 1)
    return least, tl.min(tl.where(values == least[:, None], slots, BK - 1), 1)


@triton.jit
def _nearer(
    x_ptr, total_ptr, codes_ptr, rows, one, two, close, tie,
    METRIC: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """The nearer of two codes for the rows that are `close`, in float64, the lower one of a tie; else `one`.

    With two candidates the tie rule of `pairs.py` comes to this: tied where the difference is within its error.
    """
    difference = tl.zeros_like(rows).to(tl.float64)
    magnitude = difference
    for start in tl.range(0, WIDTH, BD, num_stages=1):
        depth = start + tl.arange(0, BD)
        inside = close[:, None] & (depth < D)[None, :]
        left = _left(x_ptr, total_ptr, rows, depth, close, D).to(tl.float64)
        a = tl.load(codes_ptr + one.to(tl.int64)[:, None] * D + depth[None, :], inside, 0).to(tl.float64)
        b = tl.load(codes_ptr + two.to(tl.int64)[:, None] * D + depth[None, :], inside, 0).to(tl.float64)
        if METRIC == EUCLIDEAN:
            difference += tl.sum((b - a) * ((b - left) + (a - left)), 1)
            magnitude += tl.sum(tl.abs(b - a) * (tl.abs(b - left) + tl.abs(a - left)), 1)
        else:
            difference += tl.sum((a - b) * left, 1)
            magnitude += tl.sum(tl.abs((a - b) * left), 1)
    tied = tl.abs(difference) <= tie * magnitude
    chosen = tl.where(tied, tl.minimum(one, two), tl.where(difference < 0, two, one))
    return tl.where(close, chosen, one)


@triton.jit(do_not_specialize=["levels", "size", "padded_codes"])
def settle_levels_kernel(
    x_ptr, codes_ptr, usable_ptr, state_ptr, total_ptr, left_ptr, indices_ptr, listed_ptr, level_ptr, count_ptr,
    levels, size, padded_codes, tie,
    METRIC: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Listed rows, one after another, from the level on at which they were listed."""
    for entry in tl.range(tl.program_id(0), tl.load(count_ptr), tl.num_programs(0)):
        row = tl.load(listed_ptr + entry).to(tl.int64)
        for level in tl.range(tl.load(level_ptr + row), levels):
            finite = 1
            for start in tl.range(0, D, BD, num_stages=1):
                depth = start + tl.arange(0, BD)
                left = tl.load(x_ptr + row * D + depth, depth < D, 0) - tl.load(
                    total_ptr + row * D + depth, depth < D, 0
                )
                tl.store(left_ptr + row * D + depth, left, depth < D)
                finite &= tl.min((tl.abs(left) < float("inf")).to(tl.int32), 0)
            tl.debug_barrier()  # other threads read what one wrote
            usable, valid = tl.load(state_ptr + level * 4 + 1), tl.load(state_ptr + level * 4 + 2)
            level_codes = codes_ptr + size.to(tl.int64) * level * D
            chosen = size - tl.where(usable > 0, usable, valid)  # of rows that tie with every code
            if (finite > 0) & (usable > 0):
                chosen = nearest_candidate(
                    left_ptr + row * D, level_codes, usable_ptr + padded_codes.to(tl.int64) * level,
                    tl.zeros([BK], tl.int32), 0, size, tie, D, METRIC, BD, BK,
                )  # fmt: skip
            tl.store(indices_ptr + row * levels + level, chosen.to(tl.int64))
            for start in tl.range(0, D, BD, num_stages=1):
                depth = start + tl.arange(0, BD)
                at = total_ptr + row * D + depth
                e = tl.load(level_codes + chosen.to(tl.int64) * D + depth, depth < D, 0)
                tl.store(at, tl.load(at, depth < D, 0) + e, depth < D)
            tl.debug_barrier()
