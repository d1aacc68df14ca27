"""A power law on spectra has a slope without bound at 0: recordings with digital silence in them give gradients that
are many times those of sound, or not finite ones.

Seen in: efficient-speech-codec 2c2abf9 (`modules/loss/generator_loss.py`, |x| + 1e-10 to the power of 0.3; its slope of
3e6 is measured).
Avoided since 0.1.0: the power law turns linear below the rounding noise of 16 bits; logarithms have floors.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from trainers.audio import ComplexSTFT, LinearAndLogMel, MultiResolutionMel, MultiResolutionSTFT, NegativeSISDR
from trainers.core import Objective


class SteepPowerLaw(ComplexSTFT):
    """Adds 1e-10 below the power."""

    def _compressed(self, wave: Tensor) -> Tensor:
        parts = torch.view_as_real(self.spectrum(wave))
        return parts.sign() * (parts.abs() + 1e-10) ** self.power


class BareLogarithm(MultiResolutionMel):
    """Takes the logarithm of zeros."""

    def _distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        return (reconstruction.log10() - reference.log10()).abs().mean()


def check(objective: Objective) -> None:
    sound, length = 0.1 * torch.randn(1, 1, 4000), []
    for reference, level in ((sound, 0.1), (torch.zeros_like(sound), 1e-9), (torch.zeros_like(sound), 0.0)):
        reconstruction = (level * torch.randn(1, 1, 4000)).requires_grad_()
        objective(reference, reconstruction).backward()
        length.append(reconstruction.grad.norm())
    assert torch.stack(length).isfinite().all()
    assert max(length[1:]) < 100 * length[0]


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[MultiResolutionMel(16_000), LinearAndLogMel(16_000), MultiResolutionSTFT(), ComplexSTFT(), NegativeSISDR()],
    faulty=[SteepPowerLaw(), BareLogarithm(16_000, window_lengths=[64], mel_bins=[5])],
)
