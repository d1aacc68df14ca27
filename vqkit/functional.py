"""Tensor mathematics without state: what several parts compute, and what tests compare against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """Exactly `value` in the forward pass, the gradient of `surrogate` in the backward pass.

    The usual form `surrogate + (value - surrogate).detach()` rounds: its value is not bit for bit `value`, so that
    decoding the indices of a batch gives something else than the batch gave. Adding an exact zero does not round.

    Args:
        value: any shape; no gradient flows into it.
        surrogate: same shape, finite.

    Source: the identity for a discrete choice is Bengio, Léonard, Courville 2013 (arXiv 1308.3432).
    """
    return value.detach() + (surrogate - surrogate.detach())


def spread(vectors: Tensor) -> Tensor:
    """Root mean square distance of a set of vectors from their mean, per dimension: the scale of a cloud of points.

    Args:
        vectors: (N, D).

    Returns:
        scalar (): sqrt(mean over dimensions of the variance over N); 0 for N = 0 or 1.
    """
    return (vectors - vectors.mean(0, keepdim=True)).square().mean().sqrt() if len(vectors) else vectors.new_zeros(())


def exact_sum(numbers: Tensor) -> Tensor:
    """(..., D) int64 -> (...): their sum, by additions of two.

    ONNX Runtime reduces int64 in float64, which is exact up to 2^53 only; it adds two numbers as integers.
    """
    while numbers.shape[-1] > 1:
        half = numbers.shape[-1] // 2
        paired = numbers[..., :half] + numbers[..., half : 2 * half]
        numbers = torch.cat([paired, numbers[..., 2 * half :]], dim=-1)
    return numbers.squeeze(-1)


def row_mean_square(rows: Tensor) -> Tensor:
    """(N, D) -> (N,): mean of the squares of each row, without a temporary of the size of `rows`."""
    return torch.linalg.vecdot(rows, rows) / rows.shape[-1]


def unit(vectors: Tensor) -> Tensor:
    """Scale to unit length along the last dimension; a zero vector stays zero. Shape in, shape out."""
    return F.normalize(vectors, dim=-1)


def matrix_square_root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a symmetric positive semi-definite (D, D) matrix; small negative eigenvalues count as
    zero.
    """
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
