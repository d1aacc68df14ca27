"""What is penalised. A loss is stateless and knows one equation; its weight scales it in the total only."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.functional import matrix_square_root, straight_through, unit
from vqkit.kernels import assignment_entropy, entropy
from vqkit.parts.selection import Selection
from vqkit.saving.config import Configured


class Loss(Configured, nn.Module):
    """A penalty on a selection.

    Class attributes:
        name: its key in `QuantizerOutput.losses`.
        trains_codebook: whether its gradient reaches the codebook.
        fits_data: whether that gradient draws codes to vectors, so that it is enough to train a codebook.
        reads_quantized: whether it looks at the estimator's output, so that its gradient depends on the estimator.
        compares_with_all: whether it compares each vector with all codes, which must then be those that are searched.
        of_bits: whether it speaks of codes that are all patterns of bits, so that no codebook may be stored.

    Args:
        weight: factor in the total; at least 0.

    Raises:
        ValueError: `weight` is negative or not a number.
    """

    name: ClassVar[str]
    trains_codebook: ClassVar[bool] = False
    fits_data: ClassVar[bool] = True
    reads_quantized: ClassVar[bool] = False
    compares_with_all: ClassVar[bool] = False
    of_bits: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"{type(self).__name__} weight={weight}: expected a number of at least 0")
        self.weight = weight

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """The unweighted loss, scalar.

        Args:
            selection: what was chosen, before the estimator.
            quantized: (N, D) the estimator's output.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The weight."""
        return f"weight={self.weight}"


class Commitment(Loss):
    """Pulls the encoder's vectors towards their codes: mse(z, sg(e)), the mean over valid vectors and dimensions.

    Where one table is searched and another read (`CascadedCodebook`), e is the row that was searched: pulled to the
    other, a vector would be pulled out of its cell.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017 (arXiv 1711.00937), eq. 3, third term, with beta = 0.25 as its
    weight.
    Differs: the paper sums over dimensions; the mean makes the weight independent of D (as later code does).
    """

    name = "commitment"

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(z, sg(e))."""
        target = selection.selected if selection.matched is None else selection.matched
        return selection.mean_square(selection.z - target.detach())


class CodebookLoss(Loss):
    """Pulls the codes towards the vectors that chose them: mse(sg(z), e), the mean over valid vectors and dimensions.

    Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 3, second term, weight 1.
    Differs: the quantizer of taming-transformers (Esser et al. 2021) puts beta on this term by default; for that,
    `losses=[Commitment(1.0), CodebookLoss(0.25)]`.
    """

    name = "codebook"
    trains_codebook = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(sg(z), e)."""
        return selection.mean_square(selection.z.detach() - selection.selected)


class DoubleQuantization(Loss):
    """Pulls vectors and codes together through the estimator: mse(quantized, z), the mean over valid vectors and
    dimensions, with its gradient to both.

    Source: IBQ, Shi et al. 2024 (arXiv 2412.02692), the first term of its double quantization loss; the other two are
    `Commitment(1.0)` and `CodebookLoss(0.25)`.
    """

    name = "double_quantization"
    reads_quantized = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(quantized, z)."""
        return selection.mean_square(quantized - selection.z)


class Entropy(Loss):
    """Makes each vector's choice decided and the codes equally used: mean_n H(p_n) - diversity H(mean_n p_n), in nats.

    p_n = softmax(logits_n / temperature) over all codes; nothing of size N x K is held:
    `vqkit.kernels.assignment_entropy`. In training the mean of the second term is over the valid vectors of all ranks,
    so that every rank has to compute it at every step; in eval mode it is over this rank's.

    Args:
        weight: factor in the total.
        temperature: positive.
        diversity: weight of the second entropy relative to the first, at least 0.
        metric: logits are z . e ("dot") or -|z - e|^2 ("euclidean").

    Source: LFQ, Yu et al. 2023 (arXiv 2310.05737), eq. 5, as in IBQ, Shi et al. 2024 (arXiv 2412.02692): weight 0.05,
    temperature 0.01, logits z . e.

    Raises:
        ValueError: an argument is out of its range.
    """

    name = "entropy"
    trains_codebook = True
    fits_data = False
    compares_with_all = True

    def __init__(
        self,
        weight: float = 0.05,
        *,
        temperature: float = 0.01,
        diversity: float = 1.0,
        metric: Literal["dot", "euclidean"] = "dot",
    ) -> None:
        super().__init__(weight)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, 0.01 in the paper")
        if not 0 <= diversity < math.inf:
            raise ValueError(f"diversity={diversity}: expected a number of at least 0, 1.0 in the paper")
        if metric not in ("dot", "euclidean"):
            raise ValueError(f"metric={metric!r}: expected 'dot' or 'euclidean'")
        self.temperature = temperature
        self.diversity = diversity
        self.metric: Literal["dot", "euclidean"] = metric

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mean_n H(p_n) - diversity H(mean_n p_n)."""
        assert selection.codes is not None  # only quantizers with a codebook take losses that train one
        weights = selection.valid.to(selection.z.dtype)
        per_sample, mean = assignment_entropy(
            selection.z, selection.codes, temperature=self.temperature, metric=self.metric, weights=weights
        )
        count = weights.sum()
        if self.training:
            total = distributed.sum_over_ranks(torch.cat([mean * count, count[None]]))
            mean = total[:-1] / total[-1].clamp(min=1)
        return selection.mean(per_sample) - self.diversity * entropy(mean)

    def extra_repr(self) -> str:
        """The constants."""
        return (
            f"weight={self.weight}, temperature={self.temperature}, diversity={self.diversity}, metric={self.metric!r}"
        )


class Orthogonality(Loss):
    """Drives codes apart in angle: |C C^T - I|_F^2 / K^2 with the K codes scaled to unit length as rows of C.

    It is the mean over pairs of codes of their squared cosine, each with itself left out. The D x D matrix C^T C has
    the same squares, so nothing of size K x K is formed. It looks at no data: a codebook needs another trainer too.
    Without a valid vector it is 0, as every loss is.

    Args:
        weight: factor in the total.

    Source: Shin et al. 2021 (arXiv 2112.00384), the orthogonal regularization of the codebook; weight 10 as later
    libraries default to on their account.
    Differs: always over all codes; those libraries can restrict it to the codes of the batch or to a random subset, to
    save a K x K matrix.
    """

    name = "orthogonality"
    trains_codebook = True
    fits_data = False

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """|C C^T - I|_F^2 / K^2."""
        assert selection.codes is not None  # only quantizers with a codebook take losses that train one
        codes, size = unit(selection.codes), len(selection.codes)
        # |C C^T|^2 - 2 tr(C C^T) + K, where the trace is K less the number of zero vectors.
        squares = (codes.mT @ codes).square().sum()
        return selection.valid.any() * (squares - 2 * codes.square().sum() + size) / size**2


class DistributionMatching(Loss):
    """Moves codes and vectors towards one distribution: the 2-Wasserstein distance between the Gaussians of their means
    and covariances.

        W^2 = |mean_z - mean_e|^2 + tr(S_z + S_e - 2 (S_z^1/2 S_e S_z^1/2)^1/2)

    in the units of the latents, so that it grows as sqrt(D); its gradient reaches both and is at most one in length for
    a shift of all vectors. In training the vectors are the valid ones of all ranks, so that every rank has to compute
    it at every step; in eval mode they are this rank's. Where rounding of W^2 hides W, at some 1e-7 of the spread,
    value and gradient are 0. On a CUDA device it waits for decompositions of D x D matrices.

    Args:
        weight: factor in the total.

    Source: Wasserstein VQ, Fang et al. 2025 (arXiv 2506.15078), its loss L_W, the root of W^2, with weight 0.5.
    Differs: the gradient goes to both sides, as the equation has it; the released code holds the vectors constant,
    takes them from a queue of 65,536, and divides both sides by the largest standard deviation. Covariances divide by
    the count, not by one less, so that one vector has one. No eps under the roots: where a covariance lacks rank, the
    gradient is the least of the possible ones.
    """

    name = "distribution_matching"
    trains_codebook = True
    compares_with_all = True

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """W."""
        assert selection.codes is not None  # only quantizers with a codebook take losses that train one
        # In float64 one sum over ranks is enough: squares less the square of the mean lose nothing that matters,
        # and what little they lose is less when both are counted from the mean code.
        origin = selection.codes.detach().double().mean(0)
        z, codes = selection.z.double() - origin, selection.codes.double() - origin
        sums = _sums(z, selection.valid.double())
        if self.training:
            sums = distributed.sum_over_ranks(sums)
        z_mean, z_covariance = _moments(sums, z.shape[1])
        mean, covariance = _moments(_sums(codes, torch.ones_like(codes[:, 0])), z.shape[1])
        apart = (z_mean - mean).square().sum()
        spread = z_covariance.trace() + covariance.trace()
        squared = apart + spread - 2 * _trace_of_root(z_covariance, covariance)
        resolution = (8 * z.shape[1] * torch.finfo(z.dtype).eps * (apart + spread)).detach().clamp(min=1e-300)
        distance = torch.where(squared > resolution, squared.clamp(min=resolution).sqrt(), 0)
        return torch.where(sums[0] > 0, distance, 0).to(selection.z.dtype)


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
