"""How far the envelopes of third octaves rise and fall together: what intelligibility is measured by."""

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.audio.objectives.objective import WaveformObjective
from trainers.audio.spectra import ShortTimeSpectrum

LOWEST, BANDS = 150.0, 15
"""Centre of the first third octave, in Hz, and how many there are."""
WINDOW_SECONDS = 0.0256
SEGMENT_FRAMES, SEGMENT_STEP = 30, 3
"""Of a segment, and from one to the next: neighbouring ones are nearly equal."""
FLOOR = 1e-6
"""Energy that is added to that of a band, so that silence has a gradient."""


class EnvelopeCorrelation(WaveformObjective):
    """One minus the correlation of band envelopes over 0.4 s, averaged over bands and segments.

    The envelope of a band is the root of its energy in windows of 25.6 ms, half of which overlap; the bands are third
    octaves from 150 Hz to 3.8 kHz. Each segment of 30 windows, in each band, counts alike, however weak it is: that of
    a hiss as much as that of a vowel. The level of a band does not count at all, so it wants another objective beside
    it. A segment of which one side is silent counts one half; a shorter recording is one segment.

    Source: Taal, Hendriks, Heusdens, Jensen 2011, "An algorithm for intelligibility prediction of time-frequency
    weighted noisy speech" (https://doi.org/10.1109/TASL.2011.2114881), eq. 1 and 4; as an objective Fu, Wang, Tsao, Lu,
    Kawai 2018 (arXiv:1709.03658).
    Differs: nothing is clipped and no silence is left out, so that every sample has a gradient; the sample rate stays,
    and a frequency at the border of two bands is shared; every third segment is taken. A codec that was trained by it
    is measured by STOI on its own ground: look at other measures too.

    Args:
        sample_rate: Hz.
        weight: factor of the term in the total.
        name: under which the term is logged.

    Raises:
        ValueError: the highest band is above half the sample rate.
    """

    bands: Tensor

    def __init__(self, sample_rate: int, *, weight: float = 1.0, name: str = "envelopes") -> None:
        super().__init__(weight=weight, name=name)
        window = round(WINDOW_SECONDS * sample_rate)
        self.spectrum = ShortTimeSpectrum(2 ** (window - 1).bit_length(), window // 2, window)
        self.register_buffer("bands", third_octaves(sample_rate, self.spectrum.fft_size), persistent=False)
        self.sample_rate = sample_rate

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        x, y = (self._segments(wave) for wave in (reference, reconstruction))
        return (x - y).square().sum(-1).mean() / 2  # of unit vectors 1 minus their product

    def _segments(self, wave: Tensor) -> Tensor:
        """(N, T) -> envelopes without their means, and of unit length, (N, segments, bands, frames)."""
        energies = torch.view_as_real(self.spectrum(wave)).square().sum(-1)
        envelopes = (energies.mT @ self.bands.to(wave.dtype) + FLOOR).sqrt()
        segments = envelopes.unfold(1, min(SEGMENT_FRAMES, envelopes.shape[1]), SEGMENT_STEP)
        return F.normalize(segments - segments.mean(-1, keepdim=True), dim=-1, eps=FLOOR**0.5)


def third_octaves(sample_rate: int, fft_size: int) -> Tensor:
    """Shares of the frequencies of a transform in the bands around 150 Hz * 2^(k / 3), (fft_size / 2 + 1, 15) float32.

    Raises:
        ValueError: the highest band is above half the sample rate.
    """
    centers = LOWEST * 2 ** (torch.arange(BANDS) / 3)
    lower, upper = centers * 2 ** (-1 / 6), centers * 2 ** (1 / 6)
    if upper[-1] > sample_rate / 2:
        raise ValueError(
            f"sample_rate={sample_rate}: the highest band ends at {upper[-1]:.0f} Hz; expected a sample rate of at "
            f"least {2 * upper[-1].ceil():.0f} Hz, or another objective"
        )
    width = sample_rate / fft_size
    frequencies = width * torch.arange(fft_size // 2 + 1)[:, None]
    overlaps = torch.minimum(frequencies + width / 2, upper) - torch.maximum(frequencies - width / 2, lower)
    return (overlaps / width).clamp(0, 1)
