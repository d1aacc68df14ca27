"""Tensor mathematics without state: what several parts compute, and what tests compare against."""

import torch
import torch.nn.functional as F
from torch import Tensor


def straight_through(value: Tensor, surrogate: Tensor) -> Tensor:
    """Exactly `value` in the forward pass, the gradient of `surrogate` in the backward pass.

    The usual form `surrogate + (value - surrogate).detach()` rounds: its value is not bit for bit `value`, so that
    decoding the indices of a batch gives something else than the batch gave.

    Args:
        value: any shape; no gradient flows into it.
        surrogate: same shape and dtype.

    Source: the identity for a discrete choice is Bengio, Léonard, Courville 2013 (arXiv 1308.3432).
    """
    return _StraightThrough.apply(value.detach(), surrogate)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()  # a view could not be written to

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def connected_zero(tensor: Tensor) -> Tensor:
    """A scalar () 0 that has a graph where `tensor` has one, and sends it no gradient: `backward` may start from it."""
    return _ConnectedZero.apply(tensor)


class _ConnectedZero(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        return tensor.new_zeros(())

    @staticmethod
    def setup_context(ctx: object, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> None:
        return None


def spread(vectors: Tensor, valid: Tensor | None = None) -> Tensor:
    """Root mean square distance of a set of vectors from their mean, per dimension: the scale of a cloud of points.

    Args:
        vectors: (N, D).
        valid: (N,) bool, which of them count; None for all.

    Returns:
        scalar (): sqrt(mean over dimensions of the variance over those that count); 0 where fewer than two do.
    """
    weight = (vectors.new_ones(len(vectors)) if valid is None else valid.to(vectors.dtype)).unsqueeze(-1)
    count = weight.sum().clamp(min=1)
    mean = (vectors * weight).sum(0) / count
    return (((vectors - mean) * weight).square().sum(0) / count).mean().sqrt()


def exact_sum(numbers: Tensor) -> Tensor:
    """(..., D) int64 -> (...): their sum, by additions of two.

    ONNX Runtime reduces int64 in float64, which is exact up to 2^53 only; it adds two numbers as integers.
    """
    while numbers.shape[-1] > 1:
        half = numbers.shape[-1] // 2
        paired = numbers[..., :half] + numbers[..., half : 2 * half]
        numbers = torch.cat([paired, numbers[..., 2 * half :]], dim=-1)
    return numbers.squeeze(-1)


def unit(vectors: Tensor) -> Tensor:
    """Scale to unit length along the last dimension; a zero vector stays zero. Shape in, shape out."""
    return F.normalize(vectors, dim=-1)


def matrix_square_root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a symmetric positive semi-definite (D, D) matrix; small negative eigenvalues count as
    zero.
    """
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


@torch.no_grad()
def matching_map(inputs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map after which `inputs` (K, H) have the mean and covariance of `samples` (M, D).

    With the covariances U L U^T and V S V^T, largest eigenvalues first: W = V (S / L)^(1/2) U^T, in float64. As many
    directions are taken as both sides have; inputs of fewer than D (H < D, K <= D, or dependent columns) get the
    leading ones of the samples and no spread in the others.

    Returns:
        W (D, H) and c (D,), for inputs W^T + c.
    """
    mean, variances, directions = _principal_axes(inputs)
    target, wanted, axes = _principal_axes(samples)
    # Below this, what varies is the rounding of float32.
    rank = min(int((variances > 1e-10 * variances[0]).sum()), len(wanted))
    scales = (wanted[:rank] / variances[:rank]).sqrt()
    weight = (axes[:, :rank] * scales) @ directions[:, :rank].mT
    return weight, target - weight @ mean


def _principal_axes(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), variances (D,) in falling order, and their directions (D, D) in columns; all float64."""
    mean = rows.mean(0, dtype=torch.float64)
    covariance = mean.new_zeros(len(mean), len(mean))
    for chunk in rows.split(2**14):
        centered = chunk.to(torch.float64) - mean
        covariance += centered.mT @ centered / len(rows)
    variances, directions = torch.linalg.eigh(covariance)
    return mean, variances.clamp(min=0).flip(0), directions.flip(1)
