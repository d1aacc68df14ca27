"""Scores of rows and codes on the tensor cores: the pass over all codes, and the second look at a few rows."""

import triton
import triton.language as tl

from vqkit.kernels.gpu.split_operands import product, split_product


@triton.jit(do_not_specialize=["padded_rows", "padded_codes", "tiles_of_a_split", "groups"])
def scan_kernel(
    x_ptr, codes_ptr, bias_ptr, best_ptr, second_ptr, third_ptr, best_tile_ptr, second_tile_ptr,
    padded_rows, padded_codes, tiles_of_a_split, groups,
    WIDTH: tl.constexpr, BD: tl.constexpr, HALVES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """The two best groups of codes and the third best score of BN rows and the codes of one split, for each slot."""
    split, group = tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    x_ptr += (group * padded_rows + rows[:, None]) * WIDTH + tl.arange(0, BD)[None, :]
    x_plane = groups.to(tl.int64) * padded_rows * WIDTH
    codes_plane = groups.to(tl.int64) * padded_codes * WIDTH
    high, low = load_rows(x_ptr, x_plane, HALVES)
    best = tl.full([BN, 4], float("inf"), tl.float32)
    second, third = best, best
    best_tile = tl.zeros([BN, 4], tl.int32)
    second_tile = best_tile
    first = split * tiles_of_a_split
    last = tl.minimum(first + tiles_of_a_split, padded_codes // BK)
    for tile in tl.range(first, last, num_stages=STAGES):
        codes = group * padded_codes + tile * BK + tl.arange(0, BK)
        scores = tile_scores(
            high, low, x_ptr, x_plane, codes_ptr, codes_plane, bias_ptr, codes, WIDTH, BD, HALVES, BN, BK, STAGES
        )
        # Columns 8 j + 2 t + b of a tile are in slot t: one thread holds them, in the layout of the tensor cores.
        least = tl.min(tl.min(tl.reshape(scores, [BN, BK // 8, 4, 2]), 3), 1)
        is_second = least < second
        third = tl.where(is_second, second, tl.minimum(third, least))
        is_best = least < best
        second_tile = tl.where(is_best, best_tile, tl.where(is_second, tile, second_tile))
        second = tl.where(is_best, best, tl.where(is_second, least, second))
        best_tile = tl.where(is_best, tile, best_tile)
        best = tl.where(is_best, least, best)
    at = ((group * padded_rows + rows) * tl.num_programs(1) + split)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(best_ptr + at, best)
    tl.store(second_ptr + at, second)
    tl.store(third_ptr + at, third)
    tl.store(best_tile_ptr + at, best_tile)
    tl.store(second_tile_ptr + at, second_tile)


@triton.jit(do_not_specialize=["number", "padded_rows", "padded_codes", "tiles_of_a_part", "groups"])
def list_kernel(
    x_ptr, codes_ptr, bias_ptr, state_ptr, listed_ptr, limits_ptr, found_ptr, counts_ptr,
    number, padded_rows, padded_codes, tiles_of_a_part, groups,
    CANDIDATES: tl.constexpr,
    WIDTH: tl.constexpr, BD: tl.constexpr, HALVES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Writes down the codes of listed rows whose score is within their limit; their order does not matter."""
    part, group = tl.program_id(1), tl.program_id(2).to(tl.int64)
    count = tl.load(state_ptr + group * 4 + 3)
    x_plane = groups.to(tl.int64) * padded_rows * WIDTH
    codes_plane = groups.to(tl.int64) * padded_codes * WIDTH
    first = part * tiles_of_a_part
    last = tl.minimum(first + tiles_of_a_part, padded_codes // BK)
    for block in tl.range(tl.program_id(0), tl.cdiv(count, BN), tl.num_programs(0)):
        place = block * BN + tl.arange(0, BN)
        rows = tl.load(listed_ptr + group * number + place, place < count, 0)
        limit = tl.load(limits_ptr + group * number + rows, place < count, float("-inf"))
        at = x_ptr + (group * padded_rows + rows[:, None]) * WIDTH + tl.arange(0, BD)[None, :]
        high, low = load_rows(at, x_plane, HALVES)
        for tile in tl.range(first, last, num_stages=STAGES):
            codes = tile * BK + tl.arange(0, BK)
            scores = tile_scores(
                high, low, at, x_plane, codes_ptr, codes_plane, bias_ptr, group * padded_codes + codes,
                WIDTH, BD, HALVES, BN, BK, STAGES,
            )  # fmt: skip
            near = scores <= limit[:, None]
            if tl.max(near.to(tl.int32)) > 0:
                mine = group * number + rows[:, None] + tl.zeros([BN, BK], tl.int32)
                slot = tl.atomic_add(counts_ptr + mine, 1, near)
                inside = near & (slot < CANDIDATES)
                tl.store(found_ptr + mine * CANDIDATES + slot, codes[None, :] + tl.zeros([BN, BK], tl.int32), inside)


@triton.jit
def load_rows(x_ptr, plane, HALVES: tl.constexpr):
    """The halves of some numbers of the rows; `low` is `high` again where there is one."""
    high = tl.load(x_ptr)
    low = high
    if HALVES == 2:
        low = tl.load(x_ptr + plane)
    return high, low


@triton.jit
def tile_scores(
    high, low, x_ptr, x_plane, codes_ptr, codes_plane, bias_ptr, codes,
    WIDTH: tl.constexpr, BD: tl.constexpr, HALVES: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Scores (BN, BK), less is better, of rows and of the codes numbered `codes`. Where the depth is one chunk, the
    rows are in `high` and `low`; else their chunks are read again.
    """
    sums = tl.zeros([BN, BK], tl.float32)
    at = codes_ptr + codes[None, :] * WIDTH + tl.arange(0, BD)[:, None]
    if WIDTH == BD:
        sums = _add_products(high, low, at, codes_plane, sums, HALVES)
    else:
        for start in tl.range(0, WIDTH, BD, num_stages=STAGES):
            high, low = load_rows(x_ptr + start, x_plane, HALVES)
            sums = _add_products(high, low, at + start, codes_plane, sums, HALVES)
    return tl.load(bias_ptr + codes)[None, :] - sums


@triton.jit
def _add_products(high, low, codes_ptr, plane, sums, HALVES: tl.constexpr):
    e = tl.load(codes_ptr)
    if HALVES == 2:
        return split_product(high, low, e, tl.load(codes_ptr + plane), sums)
    else:
        return product(high, e, sums)
