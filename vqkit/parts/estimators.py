"""Estimators: how gradients pass the choice of a code."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from vqkit.kernels import Metric, index_backpropagation, reinmax
from vqkit.parts.part import Part
from vqkit.parts.selection import Selection
from vqkit.runtime import transformed

if TYPE_CHECKING:
    from vqkit.parts.codebooks import Codebook


class Estimator(Part):
    """Gradient rule, from a selection to the quantized vectors (N, D). Without gradients all give the chosen code.

    Class attributes:
        trains_codebook: whether the decoder's gradient reaches the codebook through it.
        min_dim: the smallest code dimension for which it is defined.
        required_metric: the only metric of the search for which its gradient is right, because it differentiates a soft
            choice among all codes by that metric; None for any.
        stays_close_to_code: whether its value in training is the chosen code, or so close to it that a later residual
            stage is given in training what it will be given in use.
        uses_noise: whether it reads `selection.noise`.
        needs_sampled_choice: whether its gradient is that of a code chosen at random, so that the search has to sample.
    """

    trains_codebook: ClassVar[bool] = False
    min_dim: ClassVar[int] = 1
    required_metric: ClassVar[Metric | None] = None
    stays_close_to_code: ClassVar[bool] = True
    uses_noise: bool = False
    needs_sampled_choice: ClassVar[bool] = False

    @abstractmethod
    def forward(self, selection: Selection) -> Tensor:
        """Quantized vectors (N, D)."""

    def conflicts(self, codebook: "Codebook") -> Iterator[str]:
        """What this rule demands of a codebook beyond the class attributes.

        Args:
            codebook: whose codes the rule is for.

        Yields:
            for each demand that is not met: what, why, and how to mend it.
        """
        yield from ()

    def train(self, mode: bool = True) -> Self:
        """Change nothing: an estimator has no mode, and one may belong to quantizers that are in different ones."""
        return self


def straight_through(value: Tensor, surrogate: Tensor, *, slope: Tensor | None = None) -> Tensor:
    """Exactly `value` in the forward pass, the gradient of `slope * surrogate` in the backward pass.

    The usual form `surrogate + (value - surrogate).detach()` rounds: its value is not bit for bit `value`, so that
    decoding the indices of a batch gives something else than the batch gave.

    Args:
        value: any shape; no gradient flows into it.
        surrogate: same shape and dtype.
        slope: broadcasts to that shape; no gradient flows into it. None means 1.

    Source: the identity for a discrete choice is Bengio, Léonard, Courville 2013 (arXiv:1308.3432).
    """
    if torch.compiler.is_compiling() or transformed():  # they allow no writing: an exact zero is added
        surrogate = surrogate if slope is None else slope * surrogate
        return value.detach() + (surrogate - surrogate.detach())
    passed = surrogate.clone(memory_format=torch.contiguous_format) if slope is None else surrogate * slope
    passed.detach().copy_(value.detach())  # neither a copy nor a product by a constant looks at what it gave
    return passed


class StraightThrough(Estimator):
    """Copies the gradient of the code to the vector: d quantized / d z = I.

    Source: Bengio, Léonard, Courville 2013 (arXiv:1308.3432); for VQ van den Oord et al. 2017 (arXiv:1711.00937), sec.
    3.2.
    """

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        return straight_through(selection.selected, selection.z)


class IndexBackpropagation(Estimator):
    """Lets the gradient through a soft choice among all codes: they all move at every step.

    With p = softmax(z . e / temperature) and h the one-hot of the chosen code, the value is the chosen code and the
    gradient that of (h - sg(p) + p) times the codebook: d quantized / d z = Cov_p[e] / temperature. Nothing of size
    N x K is held: `vqkit.kernels.index_backpropagation`. Where queries are compared with keys, p is theirs.

    Where the codes are tiny, or |z| so large that p is one-hot, Cov_p[e] vanishes and the encoder gets nothing: start
    from codes of unit variance, as the method "ibq" does.

    Args:
        temperature: of the softmax, positive.

    Source: IBQ, Shi et al. 2024 (arXiv:2412.02692), sec. 3.2, temperature 1.
    Differs: the value is bit for bit the code.

    Raises:
        ValueError: the temperature is not positive.
    """

    trains_codebook = True
    required_metric = "dot"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, 1.0 in the paper")
        self.temperature = temperature

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`; 0 where not valid."""
        return selection.soft_choice(
            lambda z, codes: index_backpropagation(z, codes, selection.indices, temperature=self.temperature)
        )


class ReinMax(Estimator):
    """A second-order gradient for a code that was drawn with probability p = softmax(z . e).

    With D the one-hot of the code that was drawn and J(q) = diag(q) - q q^T, the logits get 2 J((p + D)/2) v - J(p) v/2
    where v_k = g . e_k: for v_D that of the drawn code,

        dlogits_k = (p_k (v_k - v_D) + D_k (v_D - sum_j p_j v_j)) / 2

    so that dz = (Cov_p[e] + (e_D - mu) (e_D - mu)^T) g / 2. Its expectation over draws is the gradient of the expected
    loss wherever the loss is linear or quadratic in the code; that of straight-through is right for linear ones only.
    Nothing of size N x K is held: `vqkit.kernels.reinmax`. Without noise (eval mode with gradients on) it is
    `IndexBackpropagation`.

    Source: Liu et al. 2023 (arXiv:2304.08612), at temperature 1.
    Differs: no other temperature, since the draw is at temperature 1: the gradient would be wrong for linear losses
    too. The value is bit for bit the code; logits are z . e, so codes receive dlogits_k z besides the drawn one's g.
    """

    trains_codebook = True
    required_metric = "dot"
    needs_sampled_choice = True

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected` where valid."""
        kernel = index_backpropagation if selection.noise is None else reinmax
        return selection.soft_choice(lambda z, codes: kernel(z, codes, selection.indices))
