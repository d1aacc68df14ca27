"""How gradients pass the choice of a code."""

import math
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from vqkit.base import Selection
from vqkit.config import Configured
from vqkit.functional import straight_through, unit
from vqkit.kernels import Metric, index_backpropagation, reinmax


class Estimator(Configured, nn.Module):
    """Gradient rule, from a selection to the quantized vectors (N, D).

    Class attributes:
        trains_codebook: whether the decoder's gradient reaches the codebook through it.
        min_dim: the smallest code dimension for which it is defined.
        metric: the only metric of the search for which its gradient is right, or None for any.
        exact: whether its value in training is bit for bit the chosen code. Without gradients that holds for all.
        near_code: whether that value is at least close to the code, so that what it leaves over resembles what a later
            residual stage will be given.
        random: whether it draws from `selection.noise`.
        of_samples: whether its gradient is that of a code drawn at random, so that the search has to sample.
        of_values: whether it trains codes for the task alone, so that they must not be the ones that are searched.
    """

    trains_codebook: ClassVar[bool] = False
    min_dim: ClassVar[int] = 1
    metric: ClassVar[Metric | None] = None
    exact: bool = True
    near_code: ClassVar[bool] = True
    random: bool = False
    of_samples: ClassVar[bool] = False
    of_values: ClassVar[bool] = False

    def forward(self, selection: Selection) -> Tensor:
        """Quantized vectors (N, D)."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Change nothing: an estimator has no mode, and one may belong to quantizers that are in different ones."""
        return self


class StraightThrough(Estimator):
    """Copies the gradient of the code to the vector: d quantized / d z = I.

    Source: Bengio, Léonard, Courville 2013 (arXiv 1308.3432); for VQ van den Oord et al. 2017 (arXiv 1711.00937), sec.
    3.2.
    """

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        return straight_through(selection.selected, selection.z)


class RotationTrick(Estimator):
    """Rotates and scales the vector onto its code, with the map held constant: d quantized / d z = lambda R.

    With q the code, R is the rotation in the plane of z and q that takes z/|z| to q/|q|, and lambda = |q|/|z|:
    R = I - 2 w w^T + 2 q^ z^^T with w = (z^ + q^)/|z^ + q^|. It is never formed: applying it costs O(D).

    Args:
        scale: "lambda" (the paper) or "one", which leaves the gradient's length alone.
        radial: "keep" passes the gradient along z (the paper's Table 1); "drop" rotates z/|z| with the norm in the
            graph, so that nothing of the gradient is left along z (its Tables 3 and 4).
        obtuse: "ste" falls back to straight-through where the angle of z and q exceeds 90 degrees, since rotating
            pushes the encoder away from the gradient there (a limit that the paper states); "rotate" is the paper's
            rule.

    Source: Fifty et al. 2024 (arXiv 2410.06424), sec. 4.2 and 4.3.
    Differs: the value is exactly q (the published code computes lambda R z, which is off by up to |q| for short or
    opposite vectors); a row falls back to straight-through where |z| or |q| is near zero or the two are nearly
    opposite, where R is undefined or its scale explodes; `obtuse="ste"` is our default.

    Raises:
        ValueError: an option is not one of those named.
    """

    min_dim = 2
    smallest_norm: ClassVar[float] = 1e-6
    """A vector or code shorter than this has no direction worth rotating."""
    largest_scale: ClassVar[float] = 100.0
    """Beyond this ratio of lengths, the gradient would grow or shrink out of all proportion."""
    opposite_cosine: ClassVar[float] = -0.999

    def __init__(
        self,
        scale: Literal["lambda", "one"] = "lambda",
        radial: Literal["keep", "drop"] = "keep",
        obtuse: Literal["ste", "rotate"] = "ste",
    ) -> None:
        super().__init__()
        for name, value, choices in (
            ("scale", scale, ("lambda", "one")),
            ("radial", radial, ("keep", "drop")),
            ("obtuse", obtuse, ("ste", "rotate")),
        ):
            if value not in choices:
                raise ValueError(f"{name}={value!r}: expected {choices[0]!r} or {choices[1]!r}")
        self.scale = scale
        self.radial = radial
        self.obtuse = obtuse

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        z, q = selection.z, selection.selected.detach()
        with torch.no_grad():
            z_norm, q_norm = z.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
            z_hat, q_hat = unit(z), unit(q)
            cosine = (z_hat * q_hat).sum(-1, keepdim=True)
            w = unit(z_hat + q_hat)
            ratio = q_norm / z_norm.clamp(min=self.smallest_norm)
            rotatable = (z_norm > self.smallest_norm) & (q_norm > self.smallest_norm)
            rotatable &= (ratio < self.largest_scale) & (ratio > 1 / self.largest_scale)
            rotatable &= cosine > (0.0 if self.obtuse == "ste" else self.opposite_cosine)
            factor = ratio if self.scale == "lambda" else torch.ones_like(ratio)
        vector = z if self.radial == "keep" else unit(z) * z_norm
        reflected = vector - 2 * w * (w * vector).sum(-1, keepdim=True)
        rotated = reflected + 2 * q_hat * (z_hat * vector).sum(-1, keepdim=True)
        return straight_through(q, torch.where(rotatable, factor * rotated, z))

    def extra_repr(self) -> str:
        """The variant."""
        return f"scale={self.scale!r}, radial={self.radial!r}, obtuse={self.obtuse!r}"


class IndexBackpropagation(Estimator):
    """Lets the gradient through a soft choice among all codes: they all move at every step.

    With p = softmax(z . e / temperature) and h the one-hot of the chosen code, the value is the chosen code and the
    gradient that of (h - sg(p) + p) times the codebook: d quantized / d z = Cov_p[e] / temperature. Nothing of size
    N x K is held: `vqkit.kernels.index_backpropagation`.

    Where the codes are tiny, or |z| so large that p is one-hot, Cov_p[e] vanishes and the encoder gets nothing: start
    from codes of unit variance, as the method "ibq" does.

    Args:
        temperature: of the softmax, positive.

    Source: IBQ, Shi et al. 2024 (arXiv 2412.02692), sec. 3.2, temperature 1.
    Differs: the value is bit for bit the code.

    Raises:
        ValueError: the temperature is not positive.
    """

    trains_codebook = True
    metric = "dot"

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: expected a positive number, 1.0 in the paper")
        self.temperature = temperature

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`; 0 where not valid."""
        assert selection.codes is not None  # no quantizer without a codebook has an estimator that trains one
        return index_backpropagation(selection.z, selection.codes, selection.indices, temperature=self.temperature)

    def extra_repr(self) -> str:
        """The temperature."""
        return f"temperature={self.temperature}"


class Reflection(Estimator):
    """Reflects and scales the vector onto its code, with the map held constant: d quantized / d z = lambda H.

    With q the code, H = I - 2 v v^T and v = (z^ - q^)/|z^ - q^| is the Householder map that takes z/|z| to q/|q|, and
    lambda = |q|/|z|. Unlike the rotation it turns one direction around, however close z and q are; where they have the
    same direction H is taken to be I.

    Source: a variant in the published code of Fifty et al. 2024 (arXiv 2410.06424).
    Differs: the value is exactly q, and a row falls back to straight-through where |z| or |q| is near zero or their
    ratio is extreme, with the bounds of `RotationTrick`.
    """

    min_dim = 2
    smallest_angle: ClassVar[float] = 1e-6
    """In radians; of a smaller one, rounding decides the direction of v."""

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        z, q = selection.z, selection.selected.detach()
        with torch.no_grad():
            z_norm, q_norm = z.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
            difference = unit(z) - unit(q)
            v = torch.where(difference.norm(dim=-1, keepdim=True) > self.smallest_angle, unit(difference), 0)
            ratio = q_norm / z_norm.clamp(min=RotationTrick.smallest_norm)
            defined = (z_norm > RotationTrick.smallest_norm) & (q_norm > RotationTrick.smallest_norm)
            defined &= (ratio < RotationTrick.largest_scale) & (ratio > 1 / RotationTrick.largest_scale)
        reflected = ratio * (z - 2 * v * (v * z).sum(-1, keepdim=True))
        return straight_through(q, torch.where(defined, reflected, z))


class ReinMax(Estimator):
    """A second-order gradient for a code that was drawn with probability p = softmax(z . e).

    With D the one-hot of the code that was drawn and J(q) = diag(q) - q q^T, the logits get 2 J((p + D)/2) v - J(p) v/2
    where v_k = g . e_k: for v_D that of the drawn code,

        dlogits_k = (p_k (v_k - v_D) + D_k (v_D - sum_j p_j v_j)) / 2

    so that dz = (Cov_p[e] + (e_D - mu) (e_D - mu)^T) g / 2. Its expectation over draws is the gradient of the expected
    loss wherever the loss is linear or quadratic in the code; that of straight-through is right for linear ones only.
    Nothing of size N x K is held: `vqkit.kernels.reinmax`. Without noise (eval mode with gradients on) it is
    `IndexBackpropagation`.

    Source: Liu et al. 2023 (arXiv 2304.08612), at temperature 1.
    Differs: no other temperature, since the draw is at temperature 1: the gradient would be wrong for linear losses
    too. The value is bit for bit the code; logits are z . e, so codes receive dlogits_k z besides the drawn one's g.
    """

    trains_codebook = True
    metric = "dot"
    of_samples = True

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected` where valid."""
        assert selection.codes is not None  # no quantizer without a codebook has an estimator that trains one
        if selection.noise is None:
            return index_backpropagation(selection.z, selection.codes, selection.indices)
        return reinmax(selection.z, selection.codes, selection.indices)
