"""A mel loss with more bands than its window resolves averages over bands that are always zero, or divides by them: the
windows that resolve transients count least.

Seen in: audiocraft bf70522 (`losses/specloss.py`, 64 bands for windows of 64 samples; measured with torchaudio 2.11's
bands: 20 of the 64 are empty at 16 kHz, 26 at 48 kHz).
Avoided since 0.1.0: empty bands are left out, and a spectrum without any band is refused at construction.
"""

import warnings

import torch
from torchaudio.functional import melscale_fbanks

from tests.regressions.faults import both
from trainers.audio.spectra import MelSpectrum


class WithEmptyBands(MelSpectrum):
    """Keeps all of them."""

    def __init__(self, sample_rate: int, *, window_length: int, mel_bins: int) -> None:
        super().__init__(sample_rate, window_length=window_length, mel_bins=mel_bins)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.bands = melscale_fbanks(window_length // 2 + 1, 0, sample_rate / 2, mel_bins, sample_rate, "slaney")


def check(kind: type[MelSpectrum]) -> None:
    noise = torch.randn(1, 4000)
    for window_length in (32, 64, 128):
        for sample_rate in (16_000, 44_100):
            spectrum = kind(sample_rate, window_length=window_length, mel_bins=64)
            assert (spectrum(noise).amax(1) > 0).all()


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[MelSpectrum], faulty=[WithEmptyBands]
)
