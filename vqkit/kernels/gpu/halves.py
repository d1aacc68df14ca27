"""Float32 vectors as pairs of float16 numbers, which carry 22 of their 24 bits through the tensor cores.

A vector is divided by a power of two, so that its largest number is just below 2^15, and split: `high` is it rounded to
float16, `low` what is left, rounded. high high' + high low' + low high' is then the product of two vectors to within
3 2^-22 |x| |y| (what each split leaves, 2^-22, and low low', which is dropped), for three products of 16 bits; bfloat16
in the same form would leave 3 2^-16, and TF32, which leaves as much as float16, takes twice the time.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.kernels import gpu

TOP = 2.0**14  # what 1 to 2 units become: float16 ends at 2^16, and numbers below 2^-24 vanish


class Halves(NamedTuple):
    """Vectors, ready for products.

    Attributes:
        planes: (2, N', W) float16, the high and the low half; zeros where there is no row or coordinate.
        unit: (N',) or, for one unit for all, (): powers of two; the planes hold `TOP` / unit times the vectors.
    """

    planes: Tensor
    unit: Tensor


def width_of(depth: int, device: torch.device) -> int:
    """W for vectors of a depth: whole chunks of the depth that a product takes at once."""
    chunk = chunk_of(depth, device)
    return -(-depth // chunk) * chunk


def chunk_of(depth: int, device: torch.device) -> int:
    """How much of the depth a product takes at once."""
    return 16 if depth <= 16 or gpu.architecture(device) == gpu.INTERPRETER else 32


def split(vectors: Tensor, padded: int, *, common: bool) -> Halves:
    """Halves of vectors (N, D) of float32, which are overwritten; padded to N' rows; `common` for one unit for all."""
    number, depth = vectors.shape
    width = width_of(depth, vectors.device)
    largest = torch.linalg.vector_norm(vectors, torch.inf, dim=1)
    unit = _power_of_two(largest.amax() if common else F.pad(largest, (0, padded - number)))
    vectors.div_(unit if common else unit[:number, None])
    planes = vectors.new_zeros(2, padded, width, dtype=torch.float16)
    high, low = planes[:, :number, :depth]
    high.copy_(vectors.mul_(TOP))
    low.copy_(vectors.sub_(high))
    return Halves(planes, unit)


def _power_of_two(values: Tensor) -> Tensor:
    """The largest powers of two that are not above float32 values, kept where their inverses are normal numbers."""
    exponents = values.contiguous().view(torch.int32) & 0x7F800000
    return exponents.view(torch.float32).clamp(2.0**-100, 2.0**126)
