"""Gumbel-softmax quantization: in training a code is drawn at random, in proportion to a softmax over all codes.

Source: the discrete VAE of Ramesh et al. 2021 (arXiv:2102.12092) in the form of taming-transformers (Esser et al. 2021,
arXiv:2012.09841); the estimator is that of Jang, Gu, Poole 2016 (arXiv:1611.01144) and Maddison, Mnih, Teh 2016
(arXiv:1611.00712).
Differs: there, logits come from a 1 x 1 convolution of their own beside the table of codes. Here they are z . e with
the codes themselves, so that the codebook is one table, an index is the largest dot product, and every metric, search
and export of a codebook holds for this one too.
"""

import math

from torch import Tensor

from vqkit.kernels import assignment_entropy, gumbel_nearest, gumbel_softmax, index_backpropagation
from vqkit.parts import Parts
from vqkit.parts.codebooks import NormalCodebook
from vqkit.parts.estimators import Estimator
from vqkit.parts.losses import Loss
from vqkit.parts.selection import Noise, Search, Selection


class GumbelSearch(Search):
    """In training a code drawn with probability softmax(z . e); otherwise the one of the largest dot product.

    The largest of z . e plus standard Gumbel noise is such a draw. Without noise (`encode`, eval mode, `no_grad`) the
    search is exact: indices of the same data are the same each time.

    Source: the Gumbel-max trick, as in Jang, Gu, Poole 2016 (arXiv:1611.01144), eq. 1.
    Differs: no temperature; it would divide logits and noise alike and leave the largest where it is.
    """

    uses_noise = True
    finds_nearest = True  # where it is given no noise

    def __init__(self) -> None:
        super().__init__("dot")

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        """Which of `codes` (K, D) each row of `z` (N, D) takes, (N,) int64: drawn if `noise` is given."""
        if noise is None:
            return super().forward(z, codes)
        return gumbel_nearest(z, codes, seed=noise.seed, step=noise.step, first=noise.first)


class GumbelSoftmax(Estimator):
    """The drawn code, with the gradient of a soft choice that sees the same noise: straight-through Gumbel-softmax.

    With p = softmax((z . e + noise) / temperature) and h the one-hot of the index, which is the largest p, the value is
    the code and the gradient that of (h - sg(p) + p) times the codebook:

        dz = sum_k p_k (g . (e_k - mu)) e_k / temperature, mu = sum_k p_k e_k
        de_k = h_k g + p_k (g . (e_k - mu)) z / temperature

    Noise and logits are formed again in the backward, some rows at a time: nothing of size N x K is held. Without noise
    (eval mode with gradients on) it is `IndexBackpropagation`. For a schedule, set `temperature` between steps.

    Args:
        temperature: of the softmax, positive. The lower, the nearer p is to h, and the less gradient passes to z.

    Source: Jang, Gu, Poole 2016 (arXiv:1611.01144), sec. 2.2, straight-through; temperature 1 and the default of
    taming-transformers.
    Differs: the value is bit for bit the code; logits z . e (see the module).

    Raises:
        ValueError: the temperature is not positive.
    """

    trains_codebook = True
    required_metric = "dot"
    uses_noise = True
    needs_sampled_choice = True

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, 1.0 in the published defaults")
        self.temperature = temperature

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected` where valid."""
        indices = selection.indices
        if selection.noise is None:
            return selection.soft_choice(
                lambda z, codes: index_backpropagation(z, codes, indices, temperature=self.temperature)
            )
        return _soft_choice(selection, selection.noise, self.temperature, indices.clamp(min=0))


class RelaxedGumbelSoftmax(GumbelSoftmax):
    """In training the mean of all codes under p, rather than one of them: the relaxation that the discrete VAE trains
    with.

    With p = softmax((z . e + noise) / temperature) the value is sum_k p_k e_k, and the gradient its own. Without noise
    (eval mode, `encode`, `decode`) the value is the code of the largest dot product: the decoder sees codes then that
    it was not trained with, the less so the lower the temperature has become.

    Args:
        temperature: of the softmax, positive. 1 falling to 1/16 in the discrete VAE.

    Source: Jang, Gu, Poole 2016 (arXiv:1611.01144), eq. 2; the discrete VAE of Ramesh et al. 2021 (arXiv:2102.12092).
    """

    stays_close_to_code = False

    def forward(self, selection: Selection) -> Tensor:
        """(N, D): sum_k p_k e_k, or `selection.selected` without noise."""
        if selection.noise is None:
            return super().forward(selection)
        return _soft_choice(selection, selection.noise, self.temperature, None)


class UniformPrior(Loss):
    """Keeps each vector's choice open: KL(p || uniform) = log K - H(p) with p = softmax(z . e), in nats, the mean over
    valid vectors.

    Nothing of size N x K is held: `vqkit.kernels.assignment_entropy`.

    Source: the discrete VAE's prior, Ramesh et al. 2021 (arXiv:2102.12092); weight 5e-4 and the reduction (sum over
    codes, mean over vectors) as in taming-transformers (Esser et al. 2021).
    Differs: no eps in the logarithm.
    """

    name = "uniform_prior"
    trains_codebook = True
    compares_with_all_codes = True

    def __init__(self, weight: float = 5e-4) -> None:
        super().__init__(weight)

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        """mean_n (log K - H(p_n))."""
        z, codes = selection.compared()
        per_sample, _ = assignment_entropy(z, codes, temperature=1.0, weights=selection.valid.to(z.dtype))
        return selection.mean(math.log(len(codes)) - per_sample)


def gumbel() -> Parts:
    """A code drawn by softmax(z . e), straight-through Gumbel-softmax, 5e-4 KL(p || uniform); no distance, no
    commitment.
    """
    return Parts(
        codebook=NormalCodebook,
        search=GumbelSearch(),
        estimator=GumbelSoftmax(1.0),
        losses=(UniformPrior(5e-4),),
    )


def _soft_choice(selection: Selection, noise: Noise, temperature: float, indices: Tensor | None) -> Tensor:
    """(N, D) the codes of `indices` (N,), or without these the mean of all codes under p; gradients of either."""
    return selection.soft_choice(
        lambda z, codes: gumbel_softmax(
            z, codes, indices, seed=noise.seed, step=noise.step, first=noise.first, temperature=temperature
        )
    )
