"""The rotation trick's value is not the code for short or opposite vectors, and its gradient explodes.

Seen in: vector-quantize-pytorch 1.32.0 (measured: value off by 1.2 to 1.5, gradient norm 3.4e6, bfloat16 value off by
0.11), VQP#167, VQP#177, VQP#223, RQ-VAE-Recommender#54, rotation_trick#6.
Avoided since 0.1.0: the value is the code itself, with the rotation as its gradient only; where the rotation is
undefined or out of proportion the row falls back to straight-through.
"""

import pytest
import torch
from torch import Tensor

from vqkit import Estimator, Quantizer, RotationTrick, Selection, TangentialRotationTrick
from vqkit.functional import unit
from vqkit.parts.estimators import straight_through


class ValueFromTheRotation(Estimator):
    """Computes lambda R z and passes it on, as published."""

    min_dim = 2

    def forward(self, selection: Selection) -> Tensor:
        z, q = selection.z, selection.selected.detach()
        with torch.no_grad():
            z_hat, q_hat = (vector / (vector.norm(dim=-1, keepdim=True) + 1e-6) for vector in (z, q))
            w = unit(z_hat + q_hat)
            scale = q.norm(dim=-1, keepdim=True) / (z.norm(dim=-1, keepdim=True) + 1e-6)
        return scale * (z - 2 * w * (w * z).sum(-1, keepdim=True) + 2 * q_hat * (z_hat * z).sum(-1, keepdim=True))


class UnboundedGradient(ValueFromTheRotation):
    """Corrects the value only."""

    def forward(self, selection: Selection) -> Tensor:
        return straight_through(selection.selected, super().forward(selection))


def pairs() -> Selection:
    """Codes of length one; vectors from length 0 to 1 in their direction, and nearly opposite ones."""
    codes = unit(torch.randn(60, 8))
    lengths = torch.cat([torch.zeros(1), torch.logspace(-12, 0, 29)]).unsqueeze(1)
    near = lengths * unit(codes[:30] + 0.1 * torch.randn(30, 8))
    opposite = -codes[30:] + torch.logspace(-7, -1, 30).unsqueeze(1) * torch.randn(30, 8)
    z = torch.cat([near, opposite]).requires_grad_()
    return Selection(
        latents=z, z=z, codes=None, indices=torch.arange(60), selected=codes, valid=torch.ones(60, dtype=torch.bool)
    )


def check_value(estimator: Estimator) -> None:
    selection = pairs()
    assert torch.equal(estimator(selection), selection.selected)
    quantizer = Quantizer("vq", dim=8, codebook_size=16, estimator=estimator)
    output = quantizer(torch.randn(30, 8).bfloat16())
    assert torch.equal(output.quantized, quantizer.decode(output.indices).bfloat16())


def check_gradient(estimator: Estimator) -> None:
    selection = pairs()
    upstream = torch.randn(60, 8)
    (gradient,) = torch.autograd.grad((estimator(selection) * upstream).sum(), [selection.z])
    growth = gradient.norm(dim=-1) / upstream.norm(dim=-1)
    assert growth.isfinite().all() and growth.max() < 101 and growth.min() > 1e-3


@pytest.mark.parametrize("largest_angle", [90.0, 180.0])
@pytest.mark.parametrize("trick", [RotationTrick, TangentialRotationTrick])
def test_vqkit_does_not_have_the_fault(trick: type[RotationTrick], largest_angle: float) -> None:
    check_value(trick(largest_angle))
    check_gradient(trick(largest_angle))


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError):
        check_value(ValueFromTheRotation())
    with pytest.raises(AssertionError):
        check_gradient(UnboundedGradient())
