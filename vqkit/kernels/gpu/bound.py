"""How far a score from tensor cores can lie from the exact one. The derivation is in docs/search.md, "On a GPU".

Tensor cores do not round like IEEE float32. Measured models of them [Khattak and Mikaitis 2025; Fasi et al. 2021;
Badash et al. 2026] agree on this: the products of a block of b terms are exact; they and the running sum are aligned to
the largest exponent among them and cut off there, with some guard bits; the sum is cut off to float32. Without counting
on the guard bits, each of the b + 1 addends loses less than 2^-23 of the largest, and the sum as much again: less than
(b + 2) 2^-23 of a bound on all terms and partial sums for each block.

Source: F. A. Khattak, M. Mikaitis, "Accurate Models of NVIDIA Tensor Cores", arXiv 2512.07004 (A100: b = 8, one guard
bit; H100, H200 and B200: b = 16, two); M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA
tensor cores", PeerJ CS 2021; E. Badash et al., "Hawkeye: Reproducing GPU-Level Non-Determinism", arXiv 2603.20421 (sums
of 9 and 17 addends on the A100 and H100).
"""

import math

from vqkit.kernels.gpu import INTERPRETER
from vqkit.kernels.rounding import SLACK

BLOCKS = {80: 8, 90: 16, 100: 16}  # terms of one block of additions, by compute capability times ten
UNIT = 2.0**-24  # unit roundoff of float32
CUT = 2.0**-23  # what cutting off after 24 bits loses at most, relative to the largest addend
SPLIT = 3 * 2.0**-16 * (1 + 2.0**-7)  # what three products of bfloat16 halves leave out: docs/search.md, "AMX"
GROWTH = 1 + 2.0**-5  # sizes of all products of halves, and of partial sums, over |x| |e|
MOST_PADDING = 128  # numbers that a row is padded by at the most, where the depth is near the end of the derivation
MOST = 2.0**-8  # largest relative error that the derivation covers


def is_proven(architecture: int) -> bool:
    """Whether the accumulators of a GPU have a stated source, so that a certificate can rest on them."""
    return architecture == INTERPRETER or architecture in BLOCKS


def accumulation_error(architecture: int, terms: int) -> float:
    """Bound on the error of a sum of products, relative to a bound on all terms and partial sums.

    Args:
        architecture: compute capability times ten; in the interpreter sums are IEEE float32, in any order.
        terms: how many products are added up.
    """
    if architecture == INTERPRETER:
        return terms * UNIT / (1 - terms * UNIT)
    block = BLOCKS[architecture]
    return math.ceil(terms / block) * (block + 2) * CUT


def relative_error(architecture: int, depth: int, passes: int) -> float:
    """Bound on the error of a score, relative to |y| |f|; infinite where it is not proven.

    Args:
        architecture: compute capability times ten.
        depth: padded depth of the product.
        passes: 3 for products of bfloat16 halves, 1 where the inputs have 16 bits.
    """
    if not is_proven(architecture):
        return math.inf
    split = SPLIT if passes == 3 else 0.0
    # y and f are rounded once each, and so is the score.
    error = SLACK * (split + GROWTH * accumulation_error(architecture, depth * passes) + 3 * UNIT)
    return error if error <= MOST else math.inf


BIAS_ERROR = SLACK * 4 * UNIT  # relative to |f|^2 / 2: f is rounded once and squared, the bias and the score once each
