"""Kernels that measure a GPU: how fast it reads its cache and compares numbers, and how exactly it adds up products."""

import triton
import triton.language as tl

from vqkit.kernels.gpu.split_operands import product

COMPARISONS = 16  # of each number, in one turn of the loop


@triton.jit(do_not_specialize=["turns", "blocks"])
def read_kernel(x_ptr, out_ptr, turns, blocks, BLOCK: tl.constexpr):
    """Each program reads all blocks of x, `turns` times over, starting at one of its own."""
    place = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(turns * blocks):
        block = (tl.program_id(0) + turn) % blocks
        total += tl.load(x_ptr + block * BLOCK + place, cache_modifier=".cg")
    tl.store(out_ptr + tl.program_id(0), tl.sum(total, 0))


@triton.jit(do_not_specialize=["turns"])
def compare_kernel(x_ptr, out_ptr, turns, BLOCK: tl.constexpr, HALF: tl.constexpr):
    """Limits numbers from above and from below in turn, which no compiler can put together."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x_ptr + place)
    for turn in range(turns):
        limits_ptr = x_ptr + (turn % 32) * 2 * HALF
        for step in tl.static_range(HALF):
            values = tl.minimum(values, tl.load(limits_ptr + 2 * step))
            values = tl.maximum(values, tl.load(limits_ptr + 2 * step + 1))
    tl.store(out_ptr + place, values)


@triton.jit(do_not_specialize=["depth"])
def product_kernel(a_ptr, b_ptr, out_ptr, depth, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr):
    """Products (N, D) (D, K) on the tensor cores, D in steps of BD, as the search forms its scores."""
    rows = tl.program_id(0) * BN + tl.arange(0, BN)
    codes = tl.program_id(1) * BK + tl.arange(0, BK)
    place = tl.arange(0, BD)
    sums = tl.zeros([BN, BK], tl.float32)
    for start in range(0, depth, BD):
        a = tl.load(a_ptr + rows[:, None] * depth + start + place[None, :])
        b = tl.load(b_ptr + codes[None, :] * depth + start + place[:, None])
        sums = product(a, b, sums)
    tl.store(out_ptr + rows[:, None] * (BK * tl.num_programs(1)) + codes[None, :], sums)
