"""Rows and codes as the tensor cores take them: centred, split into 16-bit halves, padded to whole tiles.

A float32 number v becomes two bfloat16 numbers, `high` (v rounded) and `low` (what is left, rounded); inputs of 16 bits
stay as they are, one plane. Padding needs no masks later: padded codes have the bias infinity, so that they never win.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from vqkit.kernels import gpu
from vqkit.kernels.gpu.pairs import COSINE, EUCLIDEAN
from vqkit.kernels.torch_search.search import FAR, SAMPLE

BLOCK_NUMBERS = 4096  # of the vectors that a program splits at once
LONG = tl.constexpr(2.0**62)  # longer vectors are left out of the products, where scores could overflow
FAR_AWAY = tl.constexpr(FAR)
SAMPLED = tl.constexpr(SAMPLE)


class RowPlanes(NamedTuple):
    """Rows, ready for products.

    Attributes:
        planes: (P, G, N', D') of 16 bits; P = 2 halves, or 1 plane; zeros where a row is not finite or too long.
        norms: (G, N') float32 lengths, never too small; NaN where a row is not finite, infinite where it is too long.
    """

    planes: Tensor
    norms: Tensor


class CodePlanes(NamedTuple):
    """Codes, ready for products.

    Attributes:
        planes: (P, G, K', D') of 16 bits; zeros for what cannot win in a product.
        bias: (G, K') float32, added to -y . f: half the squared length, or 0; infinite for what cannot win.
        usable: (G, K') int8, 1 for codes that may win at all: valid and finite.
        state: (G, 4) int32: bits of the largest length of a usable code, K less the lowest usable code, K less the
            lowest valid code (0 where there is none), and a counter that starts at 0.
    """

    planes: Tensor
    bias: Tensor
    usable: Tensor
    state: Tensor


def median_codes(codes: Tensor) -> Tensor:
    """(G, D) float32: the median of a few codes (G, K, D), as `vqkit.kernels.torch_search.search.centre_of`."""
    groups, number, depth = codes.shape
    centre = codes.new_empty(groups, depth, dtype=torch.float32)
    step = -(-number // SAMPLE)
    block = 64
    gpu.launch(_centre_kernel, (groups, -(-depth // block)), codes, centre, number, step, depth, BD=block)
    return centre


def row_planes(x: Tensor, centre: Tensor | None, padded: int, width: int, count: int) -> RowPlanes:
    """Planes of rows (G, N, D), padded to N' rows of depth D'; count is P."""
    groups, number, depth = x.shape
    planes = _empty_planes(x, count, padded, width)
    norms = x.new_empty(groups, padded, dtype=torch.float32)
    rows, chunk = _block(width)
    gpu.launch(
        _rows_kernel,
        (-(-padded // rows), groups),
        *(x, x if centre is None else centre, planes, norms, number, padded, groups),
        **_constants(depth, width, count, centre, rows, chunk),
    )
    return RowPlanes(planes, norms)


def code_planes(
    codes: Tensor, centre: Tensor | None, valid: Tensor | None, metric: int, padded: int, width: int, count: int
) -> CodePlanes:
    """Planes of codes (G, K, D), padded to K' codes of depth D'; count is P."""
    groups, number, depth = codes.shape
    planes = _empty_planes(codes, count, padded, width)
    bias = codes.new_empty(groups, padded, dtype=torch.float32)
    usable = codes.new_empty(groups, padded, dtype=torch.int8)
    state = codes.new_zeros(groups, 4, dtype=torch.int32)
    rows, chunk = _block(width)
    gpu.launch(
        _codes_kernel,
        (-(-padded // rows), groups),
        *(codes, codes if centre is None else centre, usable if valid is None else valid.contiguous().view(torch.int8)),
        *(planes, bias, usable, state, number, padded, groups),
        METRIC=metric,
        MASKED=valid is not None,
        **_constants(depth, width, count, centre, rows, chunk),
    )
    return CodePlanes(planes, bias, usable, state)


def _empty_planes(vectors: Tensor, count: int, padded: int, width: int) -> Tensor:
    dtype = vectors.dtype if count == 1 and vectors.dtype != torch.float32 else torch.bfloat16
    return vectors.new_empty(count, vectors.shape[0], padded, width, dtype=dtype)


def _block(width: int) -> tuple[int, int]:
    chunk = min(width & -width, 128)  # a power of two that divides the padded depth
    return max(4, min(64, BLOCK_NUMBERS // chunk)), chunk


def _constants(depth: int, width: int, count: int, centre: Tensor | None, rows: int, chunk: int) -> dict[str, Any]:
    return {"D": depth, "WIDTH": width, "PLANES": count, "CENTRED": centre is not None, "BR": rows, "BD": chunk}


@triton.jit(do_not_specialize=["number", "step"])
def _centre_kernel(codes_ptr, centre_ptr, number, step, D: tl.constexpr, BD: tl.constexpr):
    """Median over codes 0, step, 2 step, ... of each coordinate; 0 where it is huge or not a number."""
    group = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BD + tl.arange(0, BD)
    sample = tl.arange(0, 16)
    count = (number + step - 1) // step
    at = (group * number + sample[None, :] * step) * D + place[:, None]
    inside = (sample[None, :] < count) & (place[:, None] < D)
    values = tl.load(codes_ptr + at, inside, float("inf")).to(tl.float32)
    values = tl.sort(tl.where(values == values, values, float("inf")))
    median = tl.sum(tl.where(sample[None, :] == count // 2, values, 0), 1)
    tl.store(centre_ptr + group * D + place, tl.where(tl.abs(median) < FAR_AWAY, median, 0), place < D)


@triton.jit(do_not_specialize=["number", "padded", "groups"])
def _rows_kernel(
    x_ptr, centre_ptr, planes_ptr, norms_ptr, number, padded, groups,
    D: tl.constexpr, WIDTH: tl.constexpr, PLANES: tl.constexpr, CENTRED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    square = tl.zeros([BR], tl.float64)
    finite = tl.full([BR], 1, tl.int1)
    for start in tl.range(0, WIDTH, BD):
        values = _centred(x_ptr, centre_ptr, group, rows, start, number, D, CENTRED, BD)
        finite &= tl.sum((tl.abs(values) < float("inf")).to(tl.int32), 1) == BD
        wide = values.to(tl.float64)
        square += tl.sum(wide * wide, 1)
    # Squares below the smallest float32 vanish where products flush them; a length is never taken for too small.
    norm = (tl.sqrt(square) * (1 + 2.0**-22)).to(tl.float32)
    kept = finite & (norm < LONG)
    norm = tl.where(finite, tl.where(kept, norm, float("inf")), float("nan"))
    tl.store(norms_ptr + group * padded + rows, norm, rows < padded)
    for start in tl.range(0, WIDTH, BD):
        values = _centred(x_ptr, centre_ptr, group, rows, start, number, D, CENTRED, BD)
        values = tl.where(kept[:, None], values, 0)
        _store_halves(planes_ptr, values, group, rows, start, padded, groups, WIDTH, PLANES, BD)


@triton.jit(do_not_specialize=["number", "padded", "groups"])
def _codes_kernel(
    codes_ptr, centre_ptr, valid_ptr, planes_ptr, bias_ptr, usable_ptr, state_ptr, number, padded, groups,
    METRIC: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, PLANES: tl.constexpr, CENTRED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    codes = tl.program_id(0) * BR + tl.arange(0, BR)
    valid = codes < number
    if MASKED:
        valid &= tl.load(valid_ptr + group * number + codes, valid, 0) != 0
    square = tl.zeros([BR], tl.float64)
    usable = valid
    for start in tl.range(0, WIDTH, BD):
        values = _centred(codes_ptr, centre_ptr, group, codes, start, number, D, CENTRED, BD)
        usable &= tl.sum((tl.abs(values) < float("inf")).to(tl.int32), 1) == BD
        wide = values.to(tl.float64)
        square += tl.sum(wide * wide, 1)
    length = tl.where(usable, tl.sqrt(square), 0)
    scale = tl.full([BR], 1, tl.float64)
    bias = tl.zeros([BR], tl.float64)
    if METRIC == COSINE:
        scale = 1 / tl.where(length > 0, length, 1)
        length = tl.where(length > 0, 1.0, 0.0).to(tl.float64)
    if METRIC == EUCLIDEAN:
        bias = 0.5 * square
    kept = usable & (length < LONG)
    tl.store(bias_ptr + group * padded + codes, tl.where(kept, bias, float("inf")).to(tl.float32), codes < padded)
    tl.store(usable_ptr + group * padded + codes, usable.to(tl.int8), codes < padded)
    largest = tl.max((length * (1 + 2.0**-22)).to(tl.float32), 0)
    # Lengths are not negative, so that their bits are in their order.
    tl.atomic_max(state_ptr + group * 4, largest.to(tl.int32, bitcast=True))
    tl.atomic_max(state_ptr + group * 4 + 1, tl.max(tl.where(usable, number - codes, 0), 0))
    tl.atomic_max(state_ptr + group * 4 + 2, tl.max(tl.where(valid, number - codes, 0), 0))
    for start in tl.range(0, WIDTH, BD):
        values = _centred(codes_ptr, centre_ptr, group, codes, start, number, D, CENTRED, BD)
        values = tl.where(kept[:, None], values, 0)
        if METRIC == COSINE:
            values = (values.to(tl.float64) * scale[:, None]).to(tl.float32)
        _store_halves(planes_ptr, values, group, codes, start, padded, groups, WIDTH, PLANES, BD)


@triton.jit
def _centred(
    vectors_ptr, centre_ptr, group, rows, start, number, D: tl.constexpr, CENTRED: tl.constexpr, BD: tl.constexpr
):
    place = start + tl.arange(0, BD)
    inside = place < D
    at = (group * number + rows[:, None]) * D + place[None, :]
    values = tl.load(vectors_ptr + at, (rows < number)[:, None] & inside[None, :], 0).to(tl.float32)
    if CENTRED:
        values -= tl.load(centre_ptr + group * D + place, inside, 0)[None, :]
    return values


@triton.jit
def _store_halves(
    planes_ptr, values, group, rows, start, padded, groups, WIDTH: tl.constexpr, PLANES: tl.constexpr, BD: tl.constexpr
):
    at = (group * padded + rows[:, None]) * WIDTH + start + tl.arange(0, BD)[None, :]
    inside = (rows < padded)[:, None]
    high = values.to(planes_ptr.dtype.element_ty)
    tl.store(planes_ptr + at, high, inside)
    if PLANES == 2:
        low = (values - high.to(tl.float32)).to(planes_ptr.dtype.element_ty)
        tl.store(planes_ptr + at + groups.to(tl.int64) * padded * WIDTH, low, inside)
