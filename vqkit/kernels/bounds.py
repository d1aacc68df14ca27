"""How far a computed score can lie from the exact one, on processors and tensor cores. docs/search.md derives it all.

**IEEE sums.** Let u be the unit roundoff (2^-24 in float32). A score is computed from rows and codes that are rounded
once each, from a bias that is rounded three times, and by D products and D additions in any order, with or without
fused multiply-add. No term passes more than n = D + 3 roundings, so the error is at most

    gamma (h |e|^2 + |x| |e|),    gamma = n u / (1 - n u)                      [Higham 2002, Lemma 3.1 and (3.5)]

with h = 1/2 for "euclidean" and 0 otherwise, x and e less the centre.

**Tensor cores** do not round so. Measured models of them [Khattak and Mikaitis 2025; Fasi et al. 2021; Badash et al.
2026] agree on this: the products of a block of b terms are exact; they and the running sum are aligned to the largest
exponent among them and cut off there, with some guard bits; the sum is cut off to float32. Without counting on the
guard bits, each of the b + 1 addends loses less than 2^-23 of the largest, and the sum as much again: less than
(b + 2) 2^-23 of a bound on all terms and partial sums for each block.

The compiled search has the same bounds, and that of AMX, in `native/bounds.inl`.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002
(https://doi.org/10.1137/1.9780898718027), section 3.1; F. A. Khattak, M. Mikaitis, "Accurate Models of NVIDIA Tensor
Cores", https://arxiv.org/abs/2512.07004 (A100: b = 8, one guard bit; H100, H200 and B200: b = 16, two); M. Fasi, N. J.
Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021; E. Badash et al., "Hawkeye:
Reproducing GPU-Level Non-Determinism", https://arxiv.org/abs/2603.20421 (sums of 9 and 17 addends on the A100 and
H100).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.kernels.gpu import INTERPRETER

ROUNDINGS = 3  # of a term, apart from the D of its product and its additions: of x, of e, of the product or the bias
SLACK = 1.01  # norms and the bound are rounded themselves, and what float64 would call a tie must not be certain
MOST = 2.0**-8  # largest relative error that the derivations cover: D up to 65,000 in float32
UNIT = 2.0**-24  # unit roundoff of float32

BLOCKS = {80: 8, 90: 16, 100: 16}  # terms of one block of additions, by compute capability times ten
CUT = 2.0**-23  # what cutting off after 24 bits loses at most, relative to the largest addend
SPLIT = 3 * 2.0**-16 * (1 + 2.0**-7)  # what three products of split bfloat16 operands leave out: docs/search.md, "AMX"
GROWTH = 1 + 2.0**-5  # sizes of all three products, and of partial sums, over |x| |e|
MOST_PADDING = 128  # numbers that a row is padded by at the most, where the depth is near the end of the derivation
BIAS_ERROR = SLACK * 4 * UNIT  # relative to |f|^2 / 2: f is rounded once and squared, the bias and the score once each


def product_is_lowered(device: torch.device) -> bool:
    """Whether the user let float32 products be computed with fewer bits (`set_float32_matmul_precision` and kin)."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision not in ("none", "ieee")


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Of what is computed from tensors: float64 if one of them is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def gamma(roundings: int, dtype: torch.dtype) -> float:
    """Higham's n u / (1 - n u) (3.5); infinite where the derivation no longer holds."""
    total = roundings * torch.finfo(dtype).eps / 2
    return total / (1 - total) if total <= MOST else torch.inf


def tie_error(depth: int, dtype: torch.dtype) -> float:
    """Bound on the error of a difference of scores, over the same sum of absolute values: docs/search.md, "Ties"."""
    return gamma(4 * (depth + 4), dtype)


def score_error(x: Tensor, largest: Tensor, kth: Tensor, metric: str) -> Tensor:
    """Bound on the rounding error of every score that can matter.

    A code as near as the k-th best, at distance sqrt(2 kth + |x|^2), has at most norm |x| + that distance; a code of
    twice that norm is farther away whatever its computed score, so one code far out does not widen the bound for all.

    Args:
        x: (N, D) rows as scores are formed from them.
        largest: () largest norm of a usable code.
        kth: (N,) computed score of the k-th best code.
        metric: "euclidean", "dot" or "cosine".

    Returns:
        (N,), infinite or NaN where scores may overflow.
    """
    n, smallest = x.shape[1] + ROUNDINGS, torch.finfo(x.dtype).tiny
    # Never too small: squares below the smallest normal number may vanish.
    norms = torch.linalg.vector_norm(x, dim=1) + (x.shape[1] * smallest) ** 0.5
    if metric == "euclidean":
        reach = torch.minimum(largest, 2 * (norms + (2 * kth + norms.square()).clamp(min=0).sqrt()))
        size = reach * (reach + 2 * norms)
    else:
        reach = largest
        size = 2 * reach * norms
    # Flushed subnormal numbers cost at most the smallest normal one, times the other factor: not in Higham's bound.
    return SLACK / 2 * gamma(n, x.dtype) * size + 2 * n * smallest * (1 + norms + reach)


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


def tensor_core_error(architecture: int, depth: int, products: int) -> float:
    """Bound on the error of a score, relative to |y| |f|; infinite where it is not proven.

    Args:
        architecture: compute capability times ten.
        depth: padded depth of the product.
        products: 3 for split bfloat16 operands, 1 where the inputs have 16 bits.
    """
    if not is_proven(architecture):
        return math.inf
    split = SPLIT if products == 3 else 0.0
    # y and f are rounded once each, and so is the score.
    error = SLACK * (split + GROWTH * accumulation_error(architecture, depth * products) + 3 * UNIT)
    return error if error <= MOST else math.inf


class KernelBounds(NamedTuple):
    """What the fused kernels take to decide which rows are certain.

    Attributes:
        relative: of a score, over |y| |f|.
        bias: of a score, over |f|^2.
        underflow: of a score, over 1 + |y| + |f|.
        tie: as `tie_error`, in float64.
    """

    relative: float
    bias: float
    underflow: float
    tie: float


def kernel_bounds(relative: float, depth: int, padded: int, *, euclidean: bool) -> KernelBounds:
    """Those of a search with a relative error, of rows of a depth and a padded one."""
    underflow = 2 * 3 * (padded + 1) * torch.finfo(torch.float32).tiny
    return KernelBounds(relative, BIAS_ERROR / 2 if euclidean else 0.0, underflow, tie_error(depth, torch.float64))
