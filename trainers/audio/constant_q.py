"""The constant-Q transform: frequencies at equal musical distances, each with as many periods in its window."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENUATION_DB = 80.0
"""Of what the halving of the rate would fold into the bands below."""
WIDEST = 0.95
"""Share of the half sample rate up to which the highest band may reach: the filter has the rest for its slope."""


class ConstantQ(nn.Module):
    """Complex coefficients of Hann windows that hold Q periods of their frequency, octave by octave.

    Of frequency f_k = min_frequency 2^(k / bins_per_octave) the window has N_k = Q sample_rate / f_k samples around
    each frame, with Q = 1 / (2^(1 / bins_per_octave) - 1), and Euclidean length 1: noise of a given level gives
    coefficients of that level in every band. The highest octave is taken from the waveform, each lower one by the same
    windows from the octave above at half of the rate. What lies before the first and behind the last sample is silence,
    at each rate: what the filters between octaves spread over the ends is cut off.

    Source: Brown 1991 ("Calculation of a constant Q spectral transform"), eq. 1 to 5; Schörkhuber, Klapuri 2010
    ("Constant-Q transform toolbox for music processing") for the octaves.
    Differs: librosa multiplies by sqrt(3 / 2), has (r^2 + 1) / (r^2 - 1) with r = 2^(1 / bins_per_octave) as Q, and
    windows of whole samples; the tests compare with it.

    Args:
        sample_rate: Hz.
        hop_length: samples from frame to frame; a multiple of 2^(octaves - 1), so that all octaves have these frames.
        octaves: how many.
        bins_per_octave: frequencies in each.
        min_frequency: Hz; 32.7 is the note C1.

    Attributes:
        bins: octaves * bins_per_octave.

    Raises:
        ValueError: a size is below 1, the hop is no such multiple, or the highest octave ends too close to half of the
            sample rate.
    """

    kernels: Tensor
    lowpass: Tensor

    def __init__(
        self,
        sample_rate: int,
        *,
        hop_length: int,
        octaves: int = 9,
        bins_per_octave: int = 24,
        min_frequency: float = 32.703,
    ) -> None:
        super().__init__()
        if min(octaves, bins_per_octave, hop_length) < 1 or not min_frequency > 0:
            raise ValueError(
                f"octaves={octaves}, bins_per_octave={bins_per_octave}, hop_length={hop_length}, "
                f"min_frequency={min_frequency}: expected positive numbers"
            )
        halvings = octaves - 1
        if hop_length % 2**halvings:
            raise ValueError(
                f"hop_length={hop_length} is no multiple of {2**halvings}, a sample of the lowest octave: choose a "
                f"multiple, or fewer than octaves={octaves}"
            )
        quality = 1 / (2 ** (1 / bins_per_octave) - 1)
        highest = min_frequency * 2**octaves * (1 + 2 / quality)  # where the main lobe of the highest window ends
        if highest > WIDEST * sample_rate / 2:
            raise ValueError(
                f"octaves={octaves} from min_frequency={min_frequency:g} Hz reach up to {highest:.0f} Hz, above "
                f"{WIDEST * sample_rate / 2:.0f} Hz of sample_rate={sample_rate}: take fewer octaves, or lower ones"
            )
        self.hop_length = hop_length
        self.octaves = octaves
        self.bins_per_octave = bins_per_octave
        self.bins = octaves * bins_per_octave
        lowest = min_frequency * 2**halvings / sample_rate  # of the highest octave, in periods per sample
        self.register_buffer("kernels", _kernels(lowest, bins_per_octave, quality).float(), persistent=False)
        self.register_buffer("lowpass", _lowpass(2 * highest / sample_rate).float(), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """(N, T) -> complex (N, frames, bins), low frequencies first; a frame each `hop_length` samples from 0 on."""
        octaves = []
        wave = wave[:, None]
        kernels, lowpass = self.kernels.to(wave.dtype), self.lowpass.to(wave.dtype)
        for octave in range(self.octaves):
            parts = F.conv1d(wave, kernels, stride=self.hop_length >> octave, padding=kernels.shape[-1] // 2)
            # The windows of an octave are twice as long in time as those of the one above, with half as many samples.
            octaves.append(2 ** (octave / 2) * parts)
            if octave < self.octaves - 1:
                wave = F.conv1d(wave, lowpass, stride=2, padding=lowpass.shape[-1] // 2)
        real, imaginary = torch.cat([parts.unflatten(1, (2, -1)) for parts in reversed(octaves)], dim=2).unbind(1)
        return torch.complex(real, imaginary).mT


def _kernels(lowest: float, bins: int, quality: float) -> Tensor:
    """Windowed waves of an octave from `lowest` periods per sample on: (2 bins, 1, taps), cosines, then minus sines."""
    frequencies = lowest * 2 ** (torch.arange(bins, dtype=torch.float64) / bins)[:, None]
    lengths = quality / frequencies
    reach = int(quality / lowest / 2)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    windows = torch.where(places.abs() < lengths / 2, (math.pi * places / lengths).cos().square(), 0.0)
    windows /= windows.norm(dim=1, keepdim=True)
    angles = 2 * math.pi * frequencies * places
    return torch.cat([windows * angles.cos(), -windows * angles.sin()])[:, None]


def _lowpass(edge: float) -> Tensor:
    """A half-band filter of gain 1, (1, 1, odd length), that is flat to `edge` of half of the sample rate's half.

    Kaiser's window: it has `ATTENUATION_DB` from 2 - edge on, as far above the new half of the rate as `edge` is below.
    """
    slope = math.pi * (1 - edge)  # radians per sample between the two
    half = max(1, math.ceil((ATTENUATION_DB - 7.95) / (2.285 * slope) / 2))
    places = torch.arange(-half, half + 1, dtype=torch.float64)
    window = torch.kaiser_window(2 * half + 1, False, 0.1102 * (ATTENUATION_DB - 8.7), dtype=torch.float64)
    taps = torch.special.sinc(places / 2) * window
    return (taps / taps.sum())[None, None]
