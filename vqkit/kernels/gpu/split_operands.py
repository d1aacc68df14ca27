"""Float32 vectors as pairs of 16-bit numbers, which is what tensor cores multiply, and products of such pairs.

A number v becomes `high` (v rounded to 16 bits) and `low` (what is left, rounded). high high' + high low' + low high'
is then the product of two vectors, for three products of 16 bits, less what each split leaves and low low'. What that
is relative to |x| |y|, and what the format asks for:

    bfloat16    3 2^-16     the exponents of float32: nothing overflows. The search takes it, which looks twice at what
                            such scores do not decide; inputs of 16 bits stay as they are there, one half.
    float16     3 2^-22     numbers from 2^15 down to 2^-24, so vectors are divided by a power of two first. Soft
                            assignment takes it, which has no second look. TF32 leaves as much, in twice the time.

Padding needs no masks later: padded codes have the bias infinity, so that they never win.

Source: the split is that of Henry, Tang, Heinecke 2019, https://arxiv.org/abs/1904.06376.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from vqkit.kernels import gpu
from vqkit.kernels.gpu.pairs import COSINE, EUCLIDEAN
from vqkit.kernels.gpu.tiles import ALL_REGISTERS
from vqkit.kernels.torch_search.search import FAR, SAMPLE

BLOCK_NUMBERS = 4096  # of the vectors that a program splits at once
LONG = tl.constexpr(2.0**62)  # longer vectors are left out of the products of the search, where scores could overflow
FAR_AWAY = tl.constexpr(FAR)
INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
TOP = tl.constexpr(2.0**14)  # what 1 to 2 units become in float16, which ends at 2^16
SMALLEST_UNIT, LARGEST_UNIT = tl.constexpr(2.0**-100), tl.constexpr(2.0**126)  # whose inverses are normal numbers


class SplitVectors(NamedTuple):
    """Vectors in units, ready for products.

    Attributes:
        halves: (2, N', D') float16, the high and the low half; zeros where there is no row or coordinate.
        unit: (N',) or, for one unit for all, (): powers of two; the halves hold `TOP` / unit times the vectors.
    """

    halves: Tensor
    unit: Tensor


class SplitRows(NamedTuple):
    """Rows of the search, ready for products.

    Attributes:
        halves: (P, G, N', D') of 16 bits; P = 2, or 1 for whole numbers; zeros where a row is not finite or too long.
        norms: (G, N') float32 lengths, never too small; NaN where a row is not finite, infinite where it is too long.
    """

    halves: Tensor
    norms: Tensor


class SplitCodes(NamedTuple):
    """Codes of the search, ready for products.

    Attributes:
        halves: (P, G, K', D') of 16 bits; zeros for what cannot win in a product.
        bias: (G, K') float32, added to -y . f: half the squared length, or 0; infinite for what cannot win.
        usable: (G, K') int8, 1 for codes that may win at all: valid and finite.
        state: (G, 4) int32: bits of the largest length of a usable code, K less the lowest usable code, K less the
            lowest valid code (0 where there is none), and a counter that starts at 0.
    """

    halves: Tensor
    bias: Tensor
    usable: Tensor
    state: Tensor


def split_vectors(vectors: Tensor, padded: int, width: int, *, common: bool) -> SplitVectors:
    """Halves of vectors (N, D) of float32, which are overwritten; padded to (N', D'); `common` for one unit for all."""
    number, depth = vectors.shape
    largest = torch.linalg.vector_norm(vectors, torch.inf, dim=1)
    largest = largest.amax() if common else F.pad(largest, (0, padded - number))
    # The largest powers of two that are not above these.
    unit = (largest.contiguous().view(torch.int32) & 0x7F800000).view(torch.float32)
    unit = unit.clamp(SMALLEST_UNIT.value, LARGEST_UNIT.value)
    vectors.div_(unit if common else unit[:number, None])
    halves = vectors.new_zeros(2, padded, width, dtype=torch.float16)
    high, low = halves[:, :number, :depth]
    high.copy_(vectors.mul_(TOP.value))
    low.copy_(vectors.sub_(high))
    return SplitVectors(halves, unit)


def median_codes(codes: Tensor) -> Tensor:
    """(G, D) float32: the median of a few codes (G, K, D), as `vqkit.kernels.torch_search.search.centre_of`."""
    groups, number, depth = codes.shape
    centre = codes.new_empty(groups, depth, dtype=torch.float32)
    block = 64
    gpu.launch(
        _centre_kernel, (groups, -(-depth // block)), codes, centre, number, -(-number // SAMPLE), depth, BD=block
    )
    return centre


def split_rows(x: Tensor, centre: Tensor | None, padded: int, width: int, count: int) -> SplitRows:
    """Halves of rows (G, N, D), less a centre (G, D), padded to (N', D'); count is P."""
    halves = _empty_halves(x, count, padded, width)
    norms = x.new_empty(x.shape[0], padded, dtype=torch.float32)
    _launch(_rows_kernel, x, centre, halves, (halves, norms))
    return SplitRows(halves, norms)


def split_codes(
    codes: Tensor, centre: Tensor | None, valid: Tensor | None, metric: int, padded: int, width: int, count: int
) -> SplitCodes:
    """Halves of codes (G, K, D), less a centre (G, D), padded to (K', D'); count is P."""
    halves = _empty_halves(codes, count, padded, width)
    bias = codes.new_empty(codes.shape[0], padded, dtype=torch.float32)
    usable = torch.empty_like(bias, dtype=torch.int8)
    state = codes.new_zeros(codes.shape[0], 4, dtype=torch.int32)
    flags = usable if valid is None else valid.contiguous().view(torch.int8)
    results = flags, halves, bias, usable, state
    _launch(_codes_kernel, codes, centre, halves, results, METRIC=metric, MASKED=valid is not None)
    return SplitCodes(halves, bias, usable, state)


def _empty_halves(vectors: Tensor, count: int, padded: int, width: int) -> Tensor:
    dtype = vectors.dtype if count == 1 and vectors.dtype != torch.float32 else torch.bfloat16
    return vectors.new_empty(count, vectors.shape[0], padded, width, dtype=dtype)


def _launch(
    kernel: Any, vectors: Tensor, centre: Tensor | None, halves: Tensor, tensors: tuple[Tensor, ...], **options: Any
) -> None:
    (groups, number, depth), (count, _, padded, width) = vectors.shape, halves.shape
    chunk = min(width & -width, 128)  # a power of two that divides the padded depth
    rows = max(4, min(64, BLOCK_NUMBERS // chunk))
    gpu.launch(
        kernel,
        (-(-padded // rows), groups),
        *(vectors, vectors if centre is None else centre, *tensors, number, padded, groups),
        **options,
        **{"D": depth, "WIDTH": width, "HALVES": count, "CENTRED": centre is not None, "BR": rows, "BD": chunk},
        maxnreg=ALL_REGISTERS,
    )


@triton.jit
def product(a, b, acc):
    """Adds a b to acc on the tensor cores, for a and b of 16 bits: exact products, float32 sums.

    Triton's interpreter multiplies the bit patterns of bfloat16 numbers (through 3.8), so there they are converted.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def split_product(a_high, a_low, b_high, b_low, acc):
    """Adds a b to acc, for a and b in halves; small products come first: they lose least where the sum is small."""
    acc = product(a_low, b_high, acc)
    acc = product(a_high, b_low, acc)
    return product(a_high, b_high, acc)


@triton.jit
def split(values, dtype: tl.constexpr):
    """Float32 numbers as two of 16 bits."""
    high = values.to(dtype)
    return high, (values - high.to(tl.float32)).to(dtype)


@triton.jit
def power_of_two(values):
    """The largest powers of two that are not above the values, within what a unit may be."""
    exponents = values.to(tl.int32, bitcast=True) & 0x7F800000
    return tl.minimum(tl.maximum(exponents.to(tl.float32, bitcast=True), SMALLEST_UNIT), LARGEST_UNIT)


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
    x_ptr, centre_ptr, halves_ptr, norms_ptr, number, padded, groups,
    D: tl.constexpr, WIDTH: tl.constexpr, HALVES: tl.constexpr, CENTRED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * BR + tl.arange(0, BR)
    square, finite = _squares(x_ptr, centre_ptr, group, rows, number, D, WIDTH, CENTRED, BR, BD)
    # Squares below the smallest float32 vanish where products flush them; a length is never taken for too small.
    norm = (tl.sqrt(square) * (1 + 2.0**-22)).to(tl.float32)
    kept = finite & (norm < LONG)
    norm = tl.where(finite, tl.where(kept, norm, float("inf")), float("nan"))
    tl.store(norms_ptr + group * padded + rows, norm, rows < padded)
    for start in tl.range(0, WIDTH, BD):
        values = _centred(x_ptr, centre_ptr, group, rows, start, number, D, CENTRED, BD)
        values = tl.where(kept[:, None], values, 0)
        _store_halves(halves_ptr, values, group, rows, start, padded, groups, WIDTH, HALVES, BD)


@triton.jit(do_not_specialize=["number", "padded", "groups"])
def _codes_kernel(
    codes_ptr, centre_ptr, valid_ptr, halves_ptr, bias_ptr, usable_ptr, state_ptr, number, padded, groups,
    METRIC: tl.constexpr, MASKED: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, HALVES: tl.constexpr, CENTRED: tl.constexpr,
    BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    group = tl.program_id(1).to(tl.int64)
    codes = tl.program_id(0) * BR + tl.arange(0, BR)
    square, finite = _squares(codes_ptr, centre_ptr, group, codes, number, D, WIDTH, CENTRED, BR, BD)
    valid = codes < number
    if MASKED:
        valid &= tl.load(valid_ptr + group * number + codes, valid, 0) != 0
    usable = valid & finite
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
        _store_halves(halves_ptr, values, group, codes, start, padded, groups, WIDTH, HALVES, BD)


@triton.jit
def _squares(
    vectors_ptr, centre_ptr, group, rows, number,
    D: tl.constexpr, WIDTH: tl.constexpr, CENTRED: tl.constexpr, BR: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Squared lengths (BR,) in float64, and which vectors are finite."""
    square = tl.zeros([BR], tl.float64)
    finite = tl.full([BR], 1, tl.int1)
    for start in tl.range(0, WIDTH, BD):
        values = _centred(vectors_ptr, centre_ptr, group, rows, start, number, D, CENTRED, BD)
        finite &= tl.sum((tl.abs(values) < float("inf")).to(tl.int32), 1) == BD
        wide = values.to(tl.float64)
        square += tl.sum(wide * wide, 1)
    return square, finite


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
    halves_ptr, values, group, rows, start, padded, groups, WIDTH: tl.constexpr, HALVES: tl.constexpr, BD: tl.constexpr
):
    at = (group * padded + rows[:, None]) * WIDTH + start + tl.arange(0, BD)[None, :]
    inside = (rows < padded)[:, None]
    high, low = split(values, halves_ptr.dtype.element_ty)
    tl.store(halves_ptr + at, high, inside)
    if HALVES == 2:
        tl.store(halves_ptr + at + groups.to(tl.int64) * padded * WIDTH, low, inside)
