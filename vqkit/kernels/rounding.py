"""How far a computed score can lie from the exact one. The derivation is in docs/search.md, section "The bound".

Let u be the unit roundoff (2^-24 in float32). A score is computed from rows and codes that are rounded once each, from
a bias that is rounded three times, and by D products and D additions in any order, with or without fused
multiply-add. No term passes more than n = D + 3 roundings, so the error is at most

    gamma (h |e|^2 + |x| |e|),    gamma = n u / (1 - n u)                      [Higham 2002, Lemma 3.1 and (3.5)]

with h = 1/2 for "euclidean" and 0 otherwise, x and e less the centre.

Source: N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd edition, SIAM 2002, section 3.1.
"""

import torch
from torch import Tensor

ROUNDINGS = 3  # of a term, apart from the D of its product and its additions: of x, of e, of the product or the bias
SLACK = 1.01  # norms and the bound are rounded themselves, and what float64 would call a tie must not be certain
MOST = 2**-8  # largest n u that the slack covers: D up to 65,000 in float32


def gamma(roundings: int, dtype: torch.dtype) -> float:
    """Higham's n u / (1 - n u) (3.5); infinite where the derivation no longer holds."""
    total = roundings * torch.finfo(dtype).eps / 2
    return total / (1 - total) if total <= MOST else torch.inf


def row_norms(x: Tensor) -> Tensor:
    """Euclidean norms (N,) of rows (N, D), never too small: squares below the smallest normal number may vanish."""
    return torch.linalg.vector_norm(x, dim=1) + (x.shape[1] * torch.finfo(x.dtype).tiny) ** 0.5


def score_error(norms: Tensor, largest: Tensor, kth: Tensor, metric: str, depth: int) -> Tensor:
    """Bound on the rounding error of every score that can matter.

    A code as near as the k-th best, at distance sqrt(2 kth + |x|^2), has at most norm |x| + that distance; a code of
    twice that norm is farther away whatever its computed score, so one code far out does not widen the bound for all.

    Args:
        norms: (N,) of the rows, from `row_norms`.
        largest: () largest norm of a usable code.
        kth: (N,) computed score of the k-th best code.
        metric: "euclidean", "dot" or "cosine".
        depth: D.

    Returns:
        (N,), infinite or NaN where scores may overflow.
    """
    n = depth + ROUNDINGS
    if metric == "euclidean":
        reach = torch.minimum(largest, 2 * (norms + (2 * kth + norms.square()).clamp(min=0).sqrt()))
        size = reach * (reach + 2 * norms)
    else:
        reach = largest
        size = 2 * reach * norms
    # Flushed subnormal numbers cost at most the smallest normal one, times the other factor: not in Higham's bound.
    underflow = 2 * n * torch.finfo(norms.dtype).tiny * (1 + norms + reach)
    return SLACK / 2 * gamma(n, norms.dtype) * size + underflow
