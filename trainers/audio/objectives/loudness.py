"""How much louder or softer each band sounds: what the quality of telephone speech is measured by."""

import torch
from torch import Tensor

from trainers.audio.objectives.objective import WaveformObjective
from trainers.audio.spectra import ShortTimeSpectrum

WINDOW_SECONDS = 0.032
BANDS, LOWEST, HIGHEST = 48, 100.0, 7800.0
"""Bands of hearing, and from where to where in Hz; to half the sample rate where that is less."""
SPEECH_DB = 79.0
"""Level of the reference, in dB above the threshold of hearing at 1 kHz."""
EXPONENT = 0.23
"""Of Zwicker's law."""
MASKED = 0.25
"""Share of the softer loudness that a difference has to exceed."""
ADDED_POWER, ADDED_EXPONENT, LEAST_ADDED, MOST_ADDED = 1e4, 1.2, 3.0, 12.0
"""Of the factor by which what is added counts more than what is missing."""
FLOOR = 1e-4
"""Of a squared difference, so that equal frames have a gradient."""


class LoudnessDifference(WaveformObjective):
    """Difference of loudness in bands of hearing, and once more what was added where there was nothing.

    The power P of a band in a window of 32 ms, scaled so that the mean frame of the reference has 79 dB, has by
    Zwicker's law the loudness L = (P0 / 0.5)^0.23 max((0.5 + 0.5 P / P0)^0.23 - 1, 0), with P0 that of the threshold of
    hearing. A difference counts as far as it exceeds a quarter of the softer one: D = max(|L' - L| - min(L, L') / 4,
    0). The term is the mean over frames of the root of the mean of D^2 over bands, plus `added` times the mean of h D,
    where h = ((P' + c) / (P + c))^1.2 is 0 below 3, at most 12, and takes no gradient.

    The 48 bands are equally wide on the Bark scale, from 100 Hz to 7.8 kHz. Phases do not count, and level only as the
    reference's goes, so it wants the waveform beside it. All of a silent reference is raised to that level, and what
    was added there with it: leave silence out of training (`AudioFolderData(silence_db=-50)`, its default).

    Source: the disturbances of PESQ, Rix, Beerends, Hollier, Hekstra 2001 (https://doi.org/10.1109/ICASSP.2001.941023),
    and of their differentiable form, Martín-Doñas, Gomez, Gonzalez, Peinado 2018
    (https://doi.org/10.1109/LSP.2018.2871419). Bands: Traunmüller 1990, threshold: Terhardt 1979.
    Differs: neither the spectral tilt nor the gain of frames is equalized; bands and threshold are formulas instead of
    the standard's tables; frames are averaged plainly. A codec that was trained by it is measured by PESQ on its own
    ground: look at other measures too.

    Args:
        sample_rate: Hz, above 200.
        weight: factor of the term in the total.
        added: factor of what was added.
        name: under which the term is logged.

    Raises:
        ValueError: a sample rate without bands, or `added` is negative.
    """

    bands: Tensor
    threshold: Tensor

    def __init__(self, sample_rate: int, *, weight: float = 1.0, added: float = 0.3, name: str = "loudness") -> None:
        super().__init__(weight=weight, name=name)
        if not added >= 0:
            raise ValueError(f"added={added}: expected a factor of at least 0, such as 0.3")
        window = round(WINDOW_SECONDS * sample_rate)
        self.spectrum = ShortTimeSpectrum(2 ** (window - 1).bit_length(), window // 2, window)
        bands, threshold = bark_bands(sample_rate, self.spectrum.fft_size)
        self.register_buffer("bands", bands, persistent=False)
        self.register_buffer("threshold", threshold, persistent=False)
        self.sample_rate = sample_rate
        self.added = added

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        x, y = (self._powers(wave) for wave in (reference, reconstruction))
        scale = 10 ** (SPEECH_DB / 10) / (x.sum(-1).mean(-1) + FLOOR)[:, None, None]
        x, y = scale * x, scale * y
        before, after = (loudness(power, self.threshold.to(power.dtype)) for power in (x, y))
        difference = ((after - before).abs() - MASKED * torch.minimum(before, after)).clamp_min(0)
        squares = difference.square().mean(-1)
        frames = squares / ((squares + FLOOR).sqrt() + FLOOR**0.5)  # sqrt(squares + floor) - sqrt(floor)
        factor = (((y + ADDED_POWER) / (x + ADDED_POWER)) ** ADDED_EXPONENT).detach().clamp(max=MOST_ADDED)
        return frames.mean() + self.added * (factor * (factor >= LEAST_ADDED) * difference).mean()

    def _powers(self, wave: Tensor) -> Tensor:
        """(N, T) -> (N, frames, bands)."""
        return torch.view_as_real(self.spectrum(wave)).square().sum(-1).mT @ self.bands.to(wave.dtype)


def loudness(power: Tensor, threshold: Tensor) -> Tensor:
    """Zwicker's law for powers of bands (..., bands): 0 below the threshold of hearing."""
    return (threshold / 0.5) ** EXPONENT * ((0.5 + 0.5 * power / threshold) ** EXPONENT - 1).clamp_min(0)


def bark(frequency: Tensor) -> Tensor:
    """Hz to Bark (Traunmüller 1990, https://doi.org/10.1121/1.399849)."""
    return 26.81 * frequency / (1960 + frequency) - 0.53


def bark_bands(sample_rate: int, fft_size: int) -> tuple[Tensor, Tensor]:
    """Shares of the frequencies of a transform in the bands, (fft_size / 2 + 1, 48), and the power of the threshold of
    hearing in their middles, (48,), in which 1 is 0 dB.

    Raises:
        ValueError: half the sample rate is below the lowest band.
    """
    highest = min(HIGHEST, sample_rate / 2)
    if highest <= LOWEST:
        raise ValueError(f"sample_rate={sample_rate}: expected more than {2 * LOWEST:.0f} Hz, where the bands begin")
    ends = bark(torch.tensor([LOWEST, highest]))
    edges = torch.linspace(float(ends[0]), float(ends[1]), BANDS + 1)
    edges = 1960 * (edges + 0.53) / (26.28 - edges)
    width = sample_rate / fft_size
    frequencies = width * torch.arange(fft_size // 2 + 1)[:, None]
    overlaps = torch.minimum(frequencies + width / 2, edges[1:]) - torch.maximum(frequencies - width / 2, edges[:-1])
    return (overlaps / width).clamp(0, 1), threshold_of_hearing((edges[:-1] + edges[1:]) / 2)


def threshold_of_hearing(frequency: Tensor) -> Tensor:
    """Power in which 1 is 0 dB, of tones in Hz (Terhardt 1979, https://doi.org/10.1016/0378-5955(79)90025-X)."""
    kilohertz = frequency / 1000
    decibels = 3.64 * kilohertz**-0.8 - 6.5 * (-0.6 * (kilohertz - 3.3).square()).exp() + 1e-3 * kilohertz**4
    return 10 ** (decibels / 10)
