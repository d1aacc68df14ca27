"""The passes over all logits behind soft assignment: sums of each row, sums of each code, and the two gradients.

Each program owns a tile of rows or of codes and streams the other side past it; the logits of a tile live in registers
only. Both sides come as halves (`split_operands.py`), in whole tiles. l_nk is the logit of row n and code k, m_n the
largest of the row, x_nk = l_nk - m_n.
"""

import triton
import triton.language as tl

from vqkit.kernels.gpu.split_operands import SMALLEST_UNIT, TOP, power_of_two, product, split, split_product

FLOOR = tl.constexpr(-200.0)  # exp of it is 0, and 0 times it is no NaN, as 0 times minus infinity would be

ROW_LINES = ("factor", "largest", "linear", "weight", "query", "constant")  # of the table with a number for each row
FACTOR, LARGEST, LINEAR, WEIGHT, QUERY, CONSTANT = (tl.constexpr(line) for line in range(6))
BIAS, VALUE = tl.constexpr(0), tl.constexpr(1)  # lines of the table with a number for each code


@triton.jit(do_not_specialize=["rows", "codes", "tiles", "per_split"])
def row_sums_kernel(
    z_ptr, codes_ptr, query_ptr, by_row_ptr, by_code_ptr, sums_ptr, rows, codes, tiles, per_split,
    WIDTH: tl.constexpr, HAS_LINEAR: tl.constexpr, HAS_VALUE: tl.constexpr, HAS_QUERY: tl.constexpr,
    BO: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Of each row m, sum_k exp(x) and sum_k exp(x) (linear x + weight value_k + query q), into sums (3, S, N')."""
    owned = tl.program_id(0).to(tl.int64) * BO + tl.arange(0, BO)
    part = tl.program_id(1)
    factor = tl.load(by_row_ptr + FACTOR * rows + owned)
    linear = tl.load(by_row_ptr + LINEAR * rows + owned)
    weight = tl.load(by_row_ptr + WEIGHT * rows + owned)
    query = tl.load(by_row_ptr + QUERY * rows + owned)
    largest = tl.full([BO], float("-inf"), tl.float32)
    total = tl.zeros([BO], tl.float32)
    weighted = tl.zeros([BO], tl.float32)
    for tile in range(part * per_split, tl.minimum((part + 1) * per_split, tiles)):
        streamed = tile * BS + tl.arange(0, BS).to(tl.int64)
        logits = _products(z_ptr, codes_ptr, owned, streamed, rows, codes, WIDTH, BD, TENSOR_MEMORY)
        logits = logits * factor[:, None] + tl.load(by_code_ptr + BIAS * codes + streamed)[None, :]
        grown = tl.maximum(largest, tl.max(logits, 1))
        shift = tl.where(total > 0, largest - grown, 0.0)
        # The sum of linear x so far was relative to the smaller of the two.
        weighted = tl.exp(shift) * (weighted + linear * shift * total)
        total = tl.exp(shift) * total
        largest = grown
        x = _below(logits, tl.where(largest == float("-inf"), 0.0, largest)[:, None])
        share = tl.exp(x)
        total += tl.sum(share, 1)
        if HAS_LINEAR:
            weighted += linear * tl.sum(share * x, 1)
        if HAS_VALUE:
            value = tl.load(by_code_ptr + VALUE * codes + streamed)
            weighted += weight * tl.sum(share * value[None, :], 1)
        if HAS_QUERY:
            q = _products(query_ptr, codes_ptr, owned, streamed, rows, codes, WIDTH, BD, TENSOR_MEMORY)
            weighted += query * tl.sum(share * q, 1)
    at = sums_ptr + part.to(tl.int64) * rows + owned
    plane = tl.num_programs(1).to(tl.int64) * rows
    tl.store(at, largest)
    tl.store(at + plane, total)
    tl.store(at + 2 * plane, weighted)


@triton.jit(do_not_specialize=["rows", "codes", "tiles", "per_split"])
def code_sums_kernel(
    z_ptr, codes_ptr, by_row_ptr, sums_ptr, rows, codes, tiles, per_split,
    WIDTH: tl.constexpr, BO: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr,
    TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """Of each code sum_n weight_n exp(x), into sums (S, K')."""
    owned = tl.program_id(0).to(tl.int64) * BO + tl.arange(0, BO)
    part = tl.program_id(1)
    sums = tl.zeros([BO, BS], tl.float32)  # added up at the end, once, instead of across threads at each tile
    for tile in range(part * per_split, tl.minimum((part + 1) * per_split, tiles)):
        streamed = tile * BS + tl.arange(0, BS).to(tl.int64)
        logits = _products(codes_ptr, z_ptr, owned, streamed, codes, rows, WIDTH, BD, TENSOR_MEMORY)
        factor = tl.load(by_row_ptr + FACTOR * rows + streamed)
        largest = tl.load(by_row_ptr + LARGEST * rows + streamed)
        weight = tl.load(by_row_ptr + WEIGHT * rows + streamed)
        sums += weight[None, :] * tl.exp(logits * factor[None, :] - largest[None, :])
    tl.store(sums_ptr + part.to(tl.int64) * codes + owned, tl.sum(sums, 1))


@triton.jit(do_not_specialize=["number", "rows", "codes", "tiles", "per_split"])
def gradient_kernel(
    z_ptr, codes_ptr, query_ptr, by_row_ptr, by_code_ptr, out_ptr, number, rows, codes, tiles, per_split,
    D: tl.constexpr, WIDTH: tl.constexpr, OWNS_ROWS: tl.constexpr,
    HAS_LINEAR: tl.constexpr, HAS_VALUE: tl.constexpr, HAS_QUERY: tl.constexpr,
    BO: tl.constexpr, BS: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr,
    TENSOR_MEMORY: tl.constexpr,
):  # fmt: skip
    """With G_nk = exp(x) (linear x + weight value_k + query q + constant), G codes of each row, or G^T z of each code.

    Into out (S, number, D), BC of its coordinates a program; the logits are formed anew for each BC.
    """
    owned = tl.program_id(0).to(tl.int64) * BO + tl.arange(0, BO)
    part = tl.program_id(1)
    place = tl.program_id(2) * BC + tl.arange(0, BC)
    result = tl.zeros([BO, BC], tl.float32)
    unit = tl.full([BO], SMALLEST_UNIT, tl.float32)
    for tile in range(part * per_split, tl.minimum((part + 1) * per_split, tiles)):
        streamed = tile * BS + tl.arange(0, BS).to(tl.int64)
        if OWNS_ROWS:
            row, code, vectors_ptr, plane = owned, streamed, codes_ptr, codes
            logits = _products(z_ptr, codes_ptr, owned, streamed, rows, codes, WIDTH, BD, TENSOR_MEMORY)
        else:
            row, code, vectors_ptr, plane = streamed, owned, z_ptr, rows
            logits = _products(codes_ptr, z_ptr, owned, streamed, codes, rows, WIDTH, BD, TENSOR_MEMORY)
        logits = logits * _along(by_row_ptr + FACTOR * rows, row, OWNS_ROWS)
        logits += _along(by_code_ptr + BIAS * codes, code, not OWNS_ROWS)
        x = _below(logits, _along(by_row_ptr + LARGEST * rows, row, OWNS_ROWS))
        gradient = tl.zeros_like(x) + _along(by_row_ptr + CONSTANT * rows, row, OWNS_ROWS)
        if HAS_LINEAR:
            gradient += x * _along(by_row_ptr + LINEAR * rows, row, OWNS_ROWS)
        if HAS_VALUE:
            value = _along(by_code_ptr + VALUE * codes, code, not OWNS_ROWS)
            gradient += value * _along(by_row_ptr + WEIGHT * rows, row, OWNS_ROWS)
        if HAS_QUERY:
            if OWNS_ROWS:
                q = _products(query_ptr, codes_ptr, owned, streamed, rows, codes, WIDTH, BD, TENSOR_MEMORY)
            else:
                q = _products(codes_ptr, query_ptr, owned, streamed, codes, rows, WIDTH, BD, TENSOR_MEMORY)
            gradient += q * _along(by_row_ptr + QUERY * rows, row, OWNS_ROWS)
        gradient *= tl.exp(x)
        # As halves, G can only be from 2^15 down to 2^-24: so it is taken in a unit that follows the largest so far.
        grown = tl.maximum(unit, power_of_two(tl.max(tl.abs(gradient), 1)))
        result *= tl.div_rn(unit, grown)[:, None]  # the approximate quotient might not be exactly 1
        unit = grown
        gradient *= (1 / (unit / TOP))[:, None]
        high, low = split(gradient, tl.float16)
        vectors = vectors_ptr + streamed[:, None] * WIDTH + place[None, :]
        for turn in range(3):
            half = tl.multiple_of(tl.where(turn == 0, plane.to(tl.int64) * WIDTH, 0), 16)
            operand = tl.load(vectors + half, (place < WIDTH)[None, :], 0)
            result = product(tl.where(turn == 1, low, high), operand, result)
    at = (part.to(tl.int64) * number + owned[:, None]) * D + place[None, :]
    tl.store(out_ptr + at, result * (unit / TOP)[:, None], (owned < number)[:, None] & (place < D)[None, :])


@triton.jit
def _products(
    a_ptr, b_ptr, a_rows, b_rows, a_number, b_number, WIDTH: tl.constexpr, BD: tl.constexpr, TENSOR_MEMORY: tl.constexpr
):
    """All products (BO, BS) of two tiles of vectors, given as halves."""
    result = tl.zeros([a_rows.shape[0], b_rows.shape[0]], tl.float32)
    a_low = a_number.to(tl.int64) * WIDTH
    b_low = b_number.to(tl.int64) * WIDTH
    a = a_ptr + a_rows[:, None] * WIDTH + tl.arange(0, BD)[None, :]
    b = b_ptr + b_rows[None, :] * WIDTH + tl.arange(0, BD)[:, None]
    if TENSOR_MEMORY:
        # Each product in a loop has its own sums there, and they are copied from one to the next. So there is one.
        for step in range(0, 3 * WIDTH, BD):
            start = tl.multiple_of(step % WIDTH, BD)
            a_half = tl.multiple_of(tl.where(step // WIDTH == 1, a_low, 0), BD)
            b_half = tl.multiple_of(tl.where(step // WIDTH == 0, b_low, 0), BD)
            result = product(tl.load(a + (a_half + start)), tl.load(b + (b_half + start)), result)
    else:
        for start in range(0, WIDTH, BD):
            a_high, b_high = tl.load(a + start), tl.load(b + start)
            result = split_product(a_high, tl.load(a + a_low + start), b_high, tl.load(b + b_low + start), result)
    return result


@triton.jit
def _below(logits, largest):
    """Logits less the largest, not less than `FLOOR`; NaN where a logit is."""
    return tl.maximum(logits - largest, FLOOR, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _along(line_ptr, at, FIRST: tl.constexpr):
    """Numbers of a line of a table, to be spread along the first or the second axis of a tile."""
    values = tl.load(line_ptr + at)
    if FIRST:
        return values[:, None]
    else:
        return values[None, :]
