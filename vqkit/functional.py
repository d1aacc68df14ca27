"""Tensor mathematics without state: what several parts compute, and what tests compare against."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit.precision import widened, widest_dtype


def connected_zero(tensor: Tensor) -> Tensor:
    """A scalar () 0 that has a graph where `tensor` has one, and sends it no gradient: `backward` may start from it."""
    if torch.compiler.is_compiling():
        return 0 * tensor.flatten()[:1].sum()
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

    @staticmethod
    def jvp(ctx: object, tangent: Tensor) -> Tensor:
        return tangent.new_zeros(())


def unit(vectors: Tensor) -> Tensor:
    """Scale to unit length along the last dimension; a zero vector stays zero. Shape in, shape out."""
    return F.normalize(vectors, dim=-1)


def matrix_square_root(matrix: Tensor) -> Tensor:
    """Symmetric square root of a symmetric positive semi-definite (D, D) matrix; small negative eigenvalues count as
    zero.
    """
    values, vectors = eigen(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def eigen(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (..., D), smallest first, and eigenvectors (..., D, D) in columns of symmetric matrices (..., D, D).

    Decomposed on the host where the device has no float64: such devices lack decompositions, too.
    """
    host = matrices.cpu() if widest_dtype(matrices.device) == torch.float32 else matrices
    values, vectors = torch.linalg.eigh(host)
    return values.to(matrices.device), vectors.to(matrices.device)


def negligible(dtype: torch.dtype, size: int) -> float:
    """Share of the largest eigenvalue of (D, D) covariances below which only rounding varies: that of the float32 data,
    or of the decomposition.
    """
    return max(1e-10, size * torch.finfo(dtype).eps)


@torch.no_grad()
def matching_map(inputs: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map after which `inputs` (K, H) have the mean and covariance of `samples` (M, D).

    With the covariances U L U^T and V S V^T, largest eigenvalues first: W = V (S / L)^(1/2) U^T, in the widest dtype.
    As many directions are taken as both sides have; inputs of fewer than D (H < D, K <= D, or dependent columns) get
    the leading ones of the samples and no spread in the others.

    Returns:
        W (D, H) and c (D,), for inputs W^T + c.
    """
    mean, variances, directions = _principal_axes(inputs)
    target, wanted, axes = _principal_axes(samples)
    least = negligible(variances.dtype, len(variances)) * variances[0]
    rank = min(int((variances > least).sum()), len(wanted))
    scales = (wanted[:rank] / variances[:rank]).sqrt()
    weight = (axes[:, :rank] * scales) @ directions[:, :rank].mT
    return weight, target - weight @ mean


def _principal_axes(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), variances (D,) in falling order, and their directions (D, D) in columns; all in the widest dtype."""
    mean = rows.mean(0, dtype=widest_dtype(rows.device))
    covariance = mean.new_zeros(len(mean), len(mean))
    for chunk in rows.split(2**14):
        centered = widened(chunk) - mean
        covariance += centered.mT @ centered / len(rows)
    variances, directions = eigen(covariance)
    return mean, variances.clamp(min=0).flip(0), directions.flip(1)
