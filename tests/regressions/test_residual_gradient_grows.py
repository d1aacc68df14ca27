"""The encoder's gradient is multiplied by the number of residual stages.

Seen in: vector-quantize-pytorch 1.32.0, ResidualVQ and ResidualSimVQ with straight-through (measured: exactly 8 times
at 8 stages), VQP#33.
Avoided since 0.1.0: with an estimator the chain is detached and the estimator is applied once to the sum; with
`estimator=None` nothing is detached, and the identities of the stages telescope. Detaching and keeping each stage's
estimator cannot be expressed.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Estimator, Quantized, Quantizer, ResidualQuantizer, StraightThrough


class EachStageItsOwnIdentity(ResidualQuantizer):
    """Detaches the residual, and adds up what the stages pass on."""

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        made = super().quantize(latents, valid)
        total = torch.zeros_like(latents)
        for stage in self.stages:
            total = total + stage.quantize(latents - total.detach(), valid).vectors
        return replace(made, vectors=total)


def check(residual: type[ResidualQuantizer], stages: int, estimator: Estimator | None) -> None:
    quantizer = residual(partial(Quantizer, "vq", dim=4, codebook_size=8), stages, estimator=estimator).double()
    z = torch.randn(1, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: quantizer(x).quantized, z).reshape(4, 4)
    torch.testing.assert_close(jacobian, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *((ResidualQuantizer, stages, estimator) for stages in [1, 4, 8] for estimator in [StraightThrough(), None]),
        (EachStageItsOwnIdentity, 1, StraightThrough()),  # one stage hides it
    ],
    faulty=[(EachStageItsOwnIdentity, stages, StraightThrough()) for stages in [4, 8]],
)
