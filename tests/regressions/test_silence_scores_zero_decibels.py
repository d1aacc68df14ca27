"""A codec that outputs silence has an SI-SDR of 0 dB, better than many that work: the epsilons against a division by
zero meet in the ratio.

Seen in: torchmetrics 1.9.0 (measured: 0.00 dB for zeros, and -39.7 dB for noise of the level of the original).
Avoided since 0.1.0: a reconstruction without any signal has the lowest value, -50 dB, and an original without any is
left out and counted.
"""

import torch
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from trainers.audio.measures import SI_SDR_RANGE, SISDR


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(16000, generator=generator), 0.1 * torch.randn(16000, generator=generator)


def test_vqkit_does_not_have_the_fault():
    original, noise = pair()
    measure = SISDR(16000)
    assert measure(original, torch.zeros_like(original)) == {"si_sdr": SI_SDR_RANGE[0]}
    assert measure(original, torch.full_like(original, 0.2)) == {"si_sdr": SI_SDR_RANGE[0]}, "nor does a constant"
    assert SI_SDR_RANGE[0] <= measure(original, noise)["si_sdr"] < -10
    assert measure(torch.zeros_like(original), noise) is None


def test_the_check_catches_the_fault():
    original, noise = pair()
    silent = scale_invariant_signal_distortion_ratio(torch.zeros_like(original), original)
    assert float(silent) > float(scale_invariant_signal_distortion_ratio(noise, original)) + 10
