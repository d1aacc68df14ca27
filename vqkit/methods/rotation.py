"""The rotation trick: a gradient that is turned and scaled with the vector that is turned and scaled onto its code.

Source: Fifty et al. 2024, "Restructuring Vector Quantization with the Rotation Trick" (arXiv:2410.06424).
"""

import math

import torch
from torch import Tensor

from vqkit.functional import unit
from vqkit.parts.estimators import Estimator, straight_through
from vqkit.parts.selection import Selection

SMALLEST_NORM = 1e-6
"""A vector or code that is shorter has no direction worth turning."""
LARGEST_SCALE = 100.0
"""At a larger ratio of lengths, or below its inverse, the gradient would grow or shrink out of all proportion."""
OPPOSITE_COSINE = -0.999
"""At a smaller cosine of vector and code the plane of the rotation is lost in rounding."""
SMALLEST_ANGLE = 1e-6
"""In radians; of a smaller one, rounding decides the direction of the mirror."""


class RotationTrick(Estimator):
    """Rotates and scales the vector onto its code, with the map held constant: d quantized / d z = lambda R.

    With q the code, R is the rotation in the plane of z and q that takes z/|z| to q/|q|, and lambda = |q|/|z|:
    R = I - 2 w w^T + 2 q^ z^^T with w = (z^ + q^)/|z^ + q^|. It is never formed: applying it costs O(D).

    Args:
        largest_angle: of z and q in degrees, in (0, 180]; beyond it a row falls back to straight-through. At more than
            90 degrees rotating pushes the encoder away from the gradient (a limit that the paper states). 180 is the
            paper's rule.

    Source: Fifty et al. 2024 (arXiv:2410.06424), sec. 4.2 and 4.3; this form is that of its Table 1.
    Differs: the value is exactly q (the published code computes lambda R z, which is off by up to |q| for short or
    opposite vectors); a row falls back to straight-through where |z| or |q| is near zero or the two are nearly
    opposite, where R is undefined or its scale explodes, and by default beyond 90 degrees.

    Raises:
        ValueError: the angle is out of its range.
    """

    min_dim = 2

    def __init__(self, largest_angle: float = 90.0) -> None:
        super().__init__()
        if not 0 < largest_angle <= 180:
            raise ValueError(
                f"largest_angle={largest_angle}: expected degrees in (0, 180]; 90, or 180 for the paper's rule"
            )
        self.largest_angle = largest_angle

    def scale(self, ratio: Tensor) -> Tensor:
        """Factor (N, 1) of the rotated gradient, given `ratio` = |q|/|z| (N, 1), without gradients: lambda."""
        return ratio

    def rotated_vector(self, z: Tensor) -> Tensor:
        """What is rotated, equal in value to z (N, D), with its gradient to z."""
        return z

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        z, q = selection.z, selection.selected.detach()
        with torch.no_grad():
            ratio, proportionate = _length_ratio(z, q)
            z_hat, q_hat = unit(z), unit(q)
            w = unit(z_hat + q_hat)
            # sin(90 - angle), since cos(90) is not exactly 0 in floating point.
            smallest_cosine = max(math.sin(math.radians(90 - self.largest_angle)), OPPOSITE_COSINE)
            rotatable = proportionate & ((z_hat * q_hat).sum(-1, keepdim=True) > smallest_cosine)
            factor = self.scale(ratio)
        vector = self.rotated_vector(z)
        reflected = vector - 2 * w * (w * vector).sum(-1, keepdim=True)
        rotated = reflected + 2 * q_hat * (z_hat * vector).sum(-1, keepdim=True)
        return straight_through(q, torch.where(rotatable, factor * rotated, z))


class UnscaledRotationTrick(RotationTrick):
    """The rotation alone, d quantized / d z = R, which leaves the length of the gradient as it is.

    Source: the variant without scaling in Fifty et al. 2024 (arXiv:2410.06424).
    Differs: the released code has no such estimator. Its `no_grad_scale` rotates z/|z| with the norm in the graph,
    which drops the gradient along z and divides it by |z|: `UnscaledTangentialRotationTrick` is |z| times as large.
    """

    def scale(self, ratio: Tensor) -> Tensor:
        """(N, 1) ones."""
        return torch.ones_like(ratio)


class TangentialRotationTrick(RotationTrick):
    """Rotates z/|z| with the norm in the graph, so that nothing of the gradient is left along z.

    Source: Fifty et al. 2024 (arXiv:2410.06424), the form of its Tables 3 and 4.
    """

    def rotated_vector(self, z: Tensor) -> Tensor:
        """(N, D): the direction of z, times its length held constant."""
        return unit(z) * z.detach().norm(dim=-1, keepdim=True)


class UnscaledTangentialRotationTrick(UnscaledRotationTrick, TangentialRotationTrick):
    """Both at once: the gradient across z, turned and neither scaled nor mixed with that along z.

    Source: the two variants in Fifty et al. 2024 (arXiv:2410.06424).
    Differs: the released `no_grad_scale` has this gradient divided by |z|.
    """


class Reflection(Estimator):
    """Reflects and scales the direction of the vector onto its code: d quantized / d z = lambda H (I - z^ z^^T).

    The norm of z is in the graph and the map is held constant, so that nothing of the gradient is left along z. With q
    the code, H = I - 2 v v^T and v = (z^ - q^)/|z^ - q^| is the Householder map that takes z/|z| to q/|q|, and lambda =
    |q|/|z|. Unlike the rotation it turns one direction around, however close z and q are; where they have the
    same direction H is taken to be I.

    Source: the variant `ref_trick` in the released code of Fifty et al. 2024 (arXiv:2410.06424).
    Differs: the value is exactly q, and a row falls back to straight-through where |z| or |q| is near zero or their
    ratio is extreme, as in `RotationTrick`.
    """

    min_dim = 2

    def forward(self, selection: Selection) -> Tensor:
        """(N, D), equal to `selection.selected`."""
        z, q = selection.z, selection.selected.detach()
        with torch.no_grad():
            ratio, proportionate = _length_ratio(z, q)
            difference = unit(z) - unit(q)
            v = torch.where(difference.norm(dim=-1, keepdim=True) > SMALLEST_ANGLE, unit(difference), 0)
        vector = unit(z) * z.detach().norm(dim=-1, keepdim=True)
        reflected = ratio * (vector - 2 * v * (v * vector).sum(-1, keepdim=True))
        return straight_through(q, torch.where(proportionate, reflected, z))


def _length_ratio(z: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """|q|/|z| (N, 1), and where both have a direction and the ratio is in proportion, (N, 1) bool."""
    z_norm, q_norm = z.norm(dim=-1, keepdim=True), q.norm(dim=-1, keepdim=True)
    ratio = q_norm / z_norm.clamp(min=SMALLEST_NORM)
    long_enough = (z_norm > SMALLEST_NORM) & (q_norm > SMALLEST_NORM)
    return ratio, long_enough & (ratio < LARGEST_SCALE) & (ratio > 1 / LARGEST_SCALE)
