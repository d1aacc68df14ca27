"""The 2-Wasserstein distance between the distributions of codes and vectors.

Source: Fang et al. 2025 (arXiv:2506.15078), Wasserstein VQ.
"""

import torch
from torch import Tensor

from vqkit.functional import matrix_square_root
from vqkit.parts.estimators import straight_through
from vqkit.parts.losses import SummedLoss
from vqkit.parts.selection import Selection
from vqkit.precision import widened


class DistributionMatching(SummedLoss):
    """Moves codes and vectors towards one distribution: the 2-Wasserstein distance between the Gaussians of their means
    and covariances.

        W^2 = |mean_z - mean_e|^2 + tr(S_z + S_e - 2 (S_z^1/2 S_e S_z^1/2)^1/2)

    in the units of the latents, so that it grows as sqrt(D); its gradient reaches both and is at most one in length for
    a shift of all vectors. In training the vectors are the valid ones of all ranks, so that every rank has to compute
    it at every step; in eval mode they are this rank's. Where rounding of W^2 hides W, at some 1e-7 of the spread,
    value and gradient are 0. On a CUDA device it waits for decompositions of D x D matrices.

    Args:
        weight: factor in the total.

    Source: Wasserstein VQ, Fang et al. 2025 (arXiv:2506.15078), its loss L_W, the root of W^2, with weight 0.5.
    Differs: the gradient goes to both sides, as the equation has it; the released code holds the vectors constant,
    takes them from a queue of 65,536, and divides both sides by the largest standard deviation. Covariances divide by
    the count, not by one less, so that one vector has one. No eps under the roots: where a covariance lacks rank, the
    gradient is the least of the possible ones.
    """

    name = "distribution_matching"
    trains_codebook = True
    attracts_codes = True
    compares_with_all_codes = True

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__(weight)

    def sums(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """Those of the vectors, less the mean code, of their outer products and of ones; the same of the codes."""
        assert selection.codes is not None  # only quantizers with a codebook take losses that train one
        # In float64 one sum over ranks is enough: squares less the square of the mean lose nothing that matters, and
        # what little they lose (more in float32, where a device has no more) is less counted from the mean code.
        origin = widened(selection.codes.detach()).mean(0)
        z, codes = widened(selection.z) - origin, widened(selection.codes) - origin
        return _sums(z, selection.valid.to(z.dtype)), _sums(codes, torch.ones_like(codes[:, 0]))

    def of_sums(self, selection: Selection, total: Tensor, own: Tensor) -> Tensor:
        """W."""
        dim = selection.z.shape[1]
        z_mean, z_covariance = _moments(total, dim)
        mean, covariance = _moments(own, dim)
        apart = (z_mean - mean).square().sum()
        spread = z_covariance.trace() + covariance.trace()
        squared = apart + spread - 2 * _trace_of_root(z_covariance, covariance)
        limits = torch.finfo(own.dtype)
        resolution = (8 * dim * limits.eps * (apart + spread)).detach().clamp(min=limits.tiny)
        distance = torch.where(squared > resolution, squared.clamp(min=resolution).sqrt(), 0)
        return torch.where(total[0] > 0, distance, 0).to(selection.z.dtype)


def _sums(rows: Tensor, weights: Tensor) -> Tensor:
    """Weights (1), rows (D) and their outer products (D x D), each summed over rows, in one vector."""
    weighted = rows * weights.unsqueeze(-1)
    return torch.cat([weights.sum()[None], weighted.sum(0), (weighted.mT @ rows).flatten()])


def _moments(sums: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D)."""
    averages = sums[1:] / sums[0].clamp(min=1)
    mean, square = averages[:dim], averages[dim:].reshape(dim, dim)
    return mean, square - torch.outer(mean, mean)


def _trace_of_root(first: Tensor, second: Tensor) -> Tensor:
    """tr((S^1/2 T S^1/2)^1/2), the sum of the singular values of T^1/2 S^1/2.

    Its gradient has inverse roots of both matrices; singular values that are zero are left out of the inverse, where
    the derivatives of the decompositions themselves would be infinite.
    """
    with torch.no_grad():
        first_root, second_root = matrix_square_root(first), matrix_square_root(second)
        left, values, right = torch.linalg.svd(second_root @ first_root)
        nonzero = values > len(values) * torch.finfo(values.dtype).eps * values[:1]
        inverse_root = torch.where(nonzero, values, torch.inf).rsqrt()
        to_first = second_root @ left * inverse_root
        to_second = first_root @ right.mT * inverse_root
        first_slope, second_slope = to_first @ to_first.mT / 2, to_second @ to_second.mT / 2
    return straight_through(values.sum(), (first_slope * first).sum() + (second_slope * second).sum())
