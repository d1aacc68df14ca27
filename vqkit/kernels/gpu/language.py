"""What the kernels share inside a program."""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))


@triton.jit
def product(a, b, acc):
    """Adds a b to acc on the tensor cores, for a and b of 16 bits: exact products, float32 sums.

    Triton's interpreter multiplies the bit patterns of bfloat16 numbers (through 3.8), so there they are converted.
    """
    if INTERPRETED:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")
