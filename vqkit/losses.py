"""What is penalised. A loss is stateless and knows one equation; its weight scales it in the total only."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vqkit import distributed
from vqkit.base import Selection
from vqkit.config import Configured
from vqkit.functional import row_mean_square
from vqkit.kernels import assignment_entropy, entropy


class Loss(Configured, nn.Module):
    """A penalty on a selection.

    Class attributes:
        name: its key in `QuantizerOutput.losses`.
        trains_codebook: whether its gradient reaches the codebook.
        reads_quantized: whether it looks at the estimator's output, so that its gradient depends on the estimator.
        compares_with_all: whether it compares each vector with all codes, which must then be those that are searched.

    Args:
        weight: factor in the total; at least 0.

    Raises:
        ValueError: `weight` is negative or not a number.
    """

    name: ClassVar[str]
    trains_codebook: ClassVar[bool] = False
    reads_quantized: ClassVar[bool] = False
    compares_with_all: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not weight >= 0:
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

    Source: van den Oord, Vinyals, Kavukcuoglu 2017 (arXiv 1711.00937), eq. 3, third term, with beta = 0.25 as its
    weight.
    Differs: the paper sums over dimensions; the mean makes the weight independent of D (as later code does).
    """

    name = "commitment"

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(z, sg(e))."""
        return selection.mean(row_mean_square(selection.z - selection.selected.detach()))


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
        return selection.mean(row_mean_square(selection.z.detach() - selection.selected))


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
        return selection.mean(row_mean_square(quantized - selection.z))


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
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: expected a positive number, 0.01 in the paper")
        if not diversity >= 0:
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
