"""Losses of quantizers. A loss is stateless and knows one equation; its weight scales it in the total only."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.functional import unit
from vqkit.kernels import assignment_entropy, entropy
from vqkit.parts.part import Part
from vqkit.parts.selection import Selection

if TYPE_CHECKING:
    from vqkit.parts.codebooks import Codebook
    from vqkit.parts.estimators import Estimator


class Penalty(Part):
    """A term of the total, with its weight.

    Class attributes:
        name: its key in `QuantizerOutput.losses`.
        trains_codebook: whether its gradient reaches the codebook.

    Args:
        weight: factor in the total; at least 0.

    Raises:
        ValueError: `weight` is negative or not a number.
    """

    name: ClassVar[str]
    trains_codebook: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"{type(self).__name__} weight={weight}: expected a number of at least 0")
        self.weight = weight


class Loss(Penalty):
    """A penalty on a selection.

    Class attributes:
        attracts_codes: whether its gradient pulls codes to vectors, so that it is enough to train a codebook.
        compares_with_all_codes: whether it compares each vector with all codes, so that these must be the codes that
            are searched.
        fits_sums: whether it is defined for a sum of codes too, since it reads `z`, `selected` and `valid` alone.
        And those of `Penalty`.
    """

    attracts_codes: ClassVar[bool] = False
    fits_sums: ClassVar[bool] = False
    compares_with_all_codes: ClassVar[bool] = False

    @abstractmethod
    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """The unweighted loss, scalar.

        Args:
            selection: what was chosen, before the estimator.
            quantized: (N, D) the estimator's output.
        """

    def conflicts(self, codebook: "Codebook | None", estimator: "Estimator | None") -> Iterator[str]:
        """What this loss demands of the other parts beyond the class attributes.

        Args:
            codebook: None where no code is stored.
            estimator: None where no code is stored; the quantizer goes straight through.

        Yields:
            for each demand that is not met: what, why, and how to mend it.
        """
        yield from ()


class SummedLoss(Loss):
    """A loss of sums over the vectors of all ranks; those of all members of a composite travel in one collective.

    In training every rank has to compute it at every step. In eval mode the sums are this rank's.
    """

    @abstractmethod
    def sums(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """What is added up over ranks, (M,), and what `of_sums` needs of this rank, both with graph."""

    @abstractmethod
    def of_sums(self, selection: Selection, total: Tensor, own: Tensor) -> Tensor:
        """The unweighted loss, scalar.

        Args:
            selection: what was chosen.
            total: (M,) the sums over ranks.
            own: what `sums` gave besides.
        """

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """The loss of sums that the quantizer has added up, or of its own where it is called alone."""
        if self.name in selection.sums:
            return self.of_sums(selection, *selection.sums[self.name])
        total, own = self.sums(selection)
        return self.of_sums(selection, distributed.sum_over_ranks(total) if self.training else total, own)


class Commitment(Loss):
    """Pulls the encoder's vectors towards their codes: mse(z, sg(e)), the mean over valid vectors and dimensions.

    Where one table is searched and another read (`CascadedCodebook`), e is the row that was searched: pulled to the
    other, a vector would be pulled out of its cell.

    Source: van den Oord, Vinyals, Kavukcuoglu 2017 (arXiv:1711.00937), eq. 3, third term, with beta = 0.25 as its
    weight.
    Differs: the paper sums over dimensions; the mean makes the weight independent of D (as later code does).
    """

    name = "commitment"
    fits_sums = True

    def __init__(self, weight: float = 0.25) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(z, sg(e))."""
        target = selection.selected if selection.matched is None else selection.matched
        return selection.mean_square(selection.z - target.detach())


class CodebookLoss(Loss):
    """Pulls the codes towards the vectors that chose them: mse(sg(z), e), the mean over valid vectors and dimensions.

    Source: van den Oord et al. 2017 (arXiv:1711.00937), eq. 3, second term, weight 1.
    Differs: the quantizer of taming-transformers (Esser et al. 2021) puts beta on this term by default; for that,
    `losses=[Commitment(1.0), CodebookLoss(0.25)]`.
    """

    name = "codebook"
    fits_sums = True
    trains_codebook = True
    attracts_codes = True

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(sg(z), e)."""
        return selection.mean_square(selection.z.detach() - selection.selected)


class DoubleQuantization(Loss):
    """Pulls vectors and codes together through the estimator: mse(quantized, z), the mean over valid vectors and
    dimensions, with its gradient to both.

    Source: IBQ, Shi et al. 2024 (arXiv:2412.02692), the first term of its double quantization loss; the other two are
    `Commitment(1.0)` and `CodebookLoss(0.25)`.
    """

    name = "double_quantization"

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__(weight)

    def conflicts(self, codebook: "Codebook | None", estimator: "Estimator | None") -> Iterator[str]:
        """The estimator has to pass the gradient of the quantized vectors on to the codes."""
        reads = f"{type(self).__name__} reads the quantized vectors, but"
        if estimator is None:
            yield f"{reads} nothing of their gradient reaches a code, and that to the vectors cancels: leave it out"
        elif not estimator.trains_codebook:
            yield (
                f"{reads} {type(estimator).__name__} passes no gradient through them to the codes, and that to the "
                "vectors cancels: leave it out, or use IndexBackpropagation()"
            )

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mse(quantized, z)."""
        return selection.mean_square(quantized - selection.z)


class Entropy(SummedLoss):
    """Makes each vector's choice decided and the codes equally used: mean_n H(p_n) - diversity H(mean_n p_n), in nats.

    p_n = softmax(logits_n / temperature) over all codes, or keys where queries are compared with these; nothing of size
    N x K is held: `vqkit.kernels.assignment_entropy`. In training the mean of the second term is over the valid vectors
    of all ranks, so every rank must compute it at every step. In eval mode it is over this rank's.

    Args:
        weight: factor in the total.
        temperature: positive.
        diversity: weight of the second entropy relative to the first, at least 0.
        metric: logits are z . e ("dot") or -|z - e|^2 ("euclidean").

    Source: LFQ, Yu et al. 2023 (arXiv:2310.05737), eq. 5, as in IBQ, Shi et al. 2024 (arXiv:2412.02692): weight 0.05,
    temperature 0.01, logits z . e.
    Differs: released codes add 1e-5 to the mean probabilities in the logarithm, which are about 1/K. That is the larger
    part at 262,144 codes; `docs/quantizers.md` tells what it does to the gradient.

    Raises:
        ValueError: an argument is out of its range.
    """

    name = "entropy"
    trains_codebook = True
    compares_with_all_codes = True

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

    def sums(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """The probabilities (K) and their number (1); mean_n H(p_n)."""
        z, codes = selection.compared()
        weights = selection.valid.to(z.dtype)
        per_sample, mean = assignment_entropy(
            z, codes, temperature=self.temperature, metric=self.metric, weights=weights
        )
        count = weights.sum()
        return torch.cat([mean * count, count[None]]), selection.mean(per_sample)

    def of_sums(self, selection: Selection, total: Tensor, own: Tensor) -> Tensor:
        """mean_n H(p_n) - diversity H(mean_n p_n)."""
        return own - self.diversity * entropy(total[:-1] / total[-1].clamp(min=1))


class Orthogonality(Loss):
    """Drives codes apart in angle: |C C^T - I|_F^2 / K^2 with the K codes scaled to unit length as rows of C.

    It is the mean over pairs of codes of their squared cosine, each with itself left out. The D x D matrix C^T C has
    the same squares, so nothing of size K x K is formed. It looks at no data: a codebook needs another trainer too.
    Without a valid vector it is 0, as every loss is.

    Args:
        weight: factor in the total.

    Source: Shin et al. 2021 (arXiv:2112.00384), the orthogonal regularization of the codebook; weight 10 as later
    libraries default to on their account.
    Differs: always over all codes; those libraries can restrict it to the codes of the batch or to a random subset, to
    save a K x K matrix.
    """

    name = "orthogonality"
    trains_codebook = True

    def __init__(self, weight: float = 10.0) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """|C C^T - I|_F^2 / K^2."""
        assert selection.codes is not None  # only quantizers with a codebook take losses that train one
        codes, size = unit(selection.codes), len(selection.codes)
        # |C C^T|^2 - 2 tr(C C^T) + K, where the trace is K less the number of zero vectors.
        squares = (codes.mT @ codes).square().sum()
        return selection.valid.any() * (squares - 2 * codes.square().sum() + size) / size**2
