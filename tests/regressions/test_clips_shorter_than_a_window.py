"""A clip shorter than half a transform stops training: it cannot be reflected at its ends, nor can one that is shorter
than a period.

Seen in: auraloss 0.4.0 (measured: `RuntimeError` of the padding), descript-audio-codec c7cfc5d (`MPD.pad_to_period`
reflects; read).
Avoided since 0.1.0: short clips are filled by zeros, in objectives and in discriminators.
"""

from collections.abc import Callable

import auraloss
import torch
from torch import Tensor

from tests.regressions.faults import both
from trainers.audio import (
    ComplexSTFT,
    LinearAndLogMel,
    MultiBandSTFTDiscriminator,
    MultiPeriodDiscriminator,
    MultiResolutionMel,
    MultiResolutionSTFT,
    MultiScaleSTFTDiscriminator,
)
from trainers.core import Adversary


def against(discriminator: torch.nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    adversary = Adversary([discriminator])
    return lambda x, y: adversary(x, y).generator["feature_matching"]


def check(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    for samples in (1, 5, 100):
        reconstruction = torch.randn(2, 1, samples, requires_grad=True)
        value = distance(torch.randn(2, 1, samples), reconstruction)
        value.backward()
        assert value.isfinite() and reconstruction.grad.isfinite().all()


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        MultiResolutionMel(16_000),
        LinearAndLogMel(16_000),
        MultiResolutionSTFT(),
        ComplexSTFT(),
        against(MultiPeriodDiscriminator(channels=2)),
        against(MultiScaleSTFTDiscriminator(channels=2)),
        against(MultiBandSTFTDiscriminator(channels=2)),
    ],
    faulty=[auraloss.freq.MultiResolutionSTFTLoss()],
    error=RuntimeError,
)
