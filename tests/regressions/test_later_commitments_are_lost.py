"""Only the first stage's commitment reaches the encoder: the residual of later stages is built from straight-through
values.

Seen in: EnCodec, encodec#25; espnet#6268.
Avoided since 0.1.0: `ResidualQuantizer` subtracts the detached sum of the stages before. (`estimator=None`, which
keeps the chain for stages with projections, has this property by construction where there are none; it has to be
asked for.)
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Quantized, Quantizer, ResidualQuantizer

STAGES = 4


class FromStraightThroughValues(ResidualQuantizer):
    """Subtracts what the stages before passed on, identity included."""

    def quantize(self, latents: Tensor, valid: Tensor) -> Quantized:
        residual, members = latents, []
        for stage in self.stages:
            members.append(stage.quantize(residual, valid))
            residual = residual - members[-1].vectors
        return Quantized(latents, torch.stack([made.indices for made in members], -1), valid, members=members)


def check(residual: type[ResidualQuantizer]) -> None:
    quantizer = residual(partial(Quantizer, "vq", dim=4, codebook_size=8), STAGES).double()
    for stage in quantizer.stages:
        torch.nn.init.normal_(stage.codebook.vectors, std=0.5)
    z = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    output = quantizer(z)
    (gradient,) = torch.autograd.grad(output.losses["commitment"], [z])
    prefixes = [quantizer.decode(output.indices[:, : number + 1]).detach() for number in range(STAGES)]
    expected = sum(2 * (z.detach() - prefix) / z.numel() for prefix in prefixes) / STAGES
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[ResidualQuantizer], faulty=[FromStraightThroughValues]
)
