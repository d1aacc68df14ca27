"""Waveforms as complex spectra and back, with exactly one spectrum for each hop."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vqkit.precision import FullPrecisionModule
from vqkit.runtime import autocast_disabled
from vqkit.unsaved_buffers import UnsavedBuffers


class InverseSTFT(UnsavedBuffers, FullPrecisionModule):
    """Spectra to a waveform of a hop for each: overlap-add with a Hann window, divided by the sum of squared windows.

    It computes in float32 whatever surrounds it.

    Args:
        num_points: of the transform.
        window_length: in samples, at most `num_points`; what it lacks is zeros on both sides.
        hop_length: in samples.
        first_sample: place in the first transform at which the waveform begins: num_points / 2 where spectrum k is
            centred on sample k * hop_length, (num_points - hop_length) / 2 where it is on the middle of hop k.
    """

    window: Tensor

    def __init__(self, num_points: int, *, window_length: int, hop_length: int, first_sample: int) -> None:
        super().__init__()
        self.num_points = num_points
        self.hop_length = hop_length
        self.first_sample = first_sample
        self.register_unsaved("window", partial(_centred_window, num_points, window_length))

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        """(N, num_points / 2 + 1, K), twice, to (N, K * hop_length)."""
        with autocast_disabled(real.device):
            spectra = torch.complex(real.to(self.window.dtype), imaginary.to(self.window.dtype))
            segments = torch.fft.irfft(spectra, n=self.num_points, dim=1)
            window = self.window.unsqueeze(-1)
            weights = window.square().expand(1, -1, real.shape[-1])
            return self._overlap_add(segments * window) / self._overlap_add(weights)

    def _overlap_add(self, segments: Tensor) -> Tensor:
        """(N, num_points, K) to (N, K * hop_length)."""
        count = segments.shape[-1]
        length = self.num_points + self.hop_length * (count - 1)
        summed = F.fold(segments, (1, length), (1, self.num_points), stride=(1, self.hop_length)).flatten(1)
        return summed.narrow(-1, self.first_sample, count * self.hop_length)


class ComplexSpectrum(UnsavedBuffers, FullPrecisionModule):
    """Short-time Fourier transform with a Hann window, and its inverse, in float32 whatever surrounds it.

    Spectrum k is centred on sample k * hop_length; the edges of a waveform are continued by reflection. The inverse is
    overlap-add divided by the sum of squared windows, and exact for spectra that came from a waveform.

    Args:
        num_frequencies: from 0 to half the sample rate; the transform has 2 (num_frequencies - 1) points.
        window_length: in samples; what it lacks to the points of the transform is zeros on both sides.
        hop_length: in samples.

    Raises:
        ValueError: the window is longer than the transform, or the hop longer than a third of the window.
    """

    window: Tensor

    def __init__(self, num_frequencies: int, *, window_length: int, hop_length: int) -> None:
        super().__init__()
        self.num_points = 2 * (num_frequencies - 1)
        self.window_length = window_length
        self.hop_length = hop_length
        if not 0 < window_length <= self.num_points:
            raise ValueError(
                f"window_length={window_length}: expected at most the {self.num_points} points of a transform with "
                f"num_frequencies={num_frequencies}"
            )
        # The last samples have the end of one window alone: at half a window they would be divided by nearly nothing.
        if not 0 < hop_length <= window_length // 3:
            raise ValueError(
                f"hop_length={hop_length}: expected at most a third of window_length={window_length} (ESC: a quarter),"
                " or the inverse would divide the last samples by nearly nothing"
            )
        self.register_unsaved("window", partial(torch.hann_window, window_length))
        self.inverse = InverseSTFT(
            self.num_points, window_length=window_length, hop_length=hop_length, first_sample=self.num_points // 2
        )

    def analyse(self, wave: Tensor) -> Tensor:
        """Real and imaginary parts of the spectra.

        Args:
            wave: (B, C, T) with T a multiple of `hop_length` and more than `num_frequencies`.

        Returns:
            (B, 2 C, num_frequencies, T / hop_length), for each channel of sound its real and its imaginary part.
        """
        with autocast_disabled(wave.device):
            spectra = torch.stft(
                wave.to(self.window.dtype).flatten(0, 1),
                self.num_points,
                hop_length=self.hop_length,
                win_length=self.window_length,
                window=self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )
        # The spectrum centred behind the last sample is left out: those before it cover every sample.
        parts = torch.view_as_real(spectra[..., :-1])
        return rearrange(parts, "(b c) f t part -> b (c part) f t", b=len(wave))

    def synthesise(self, planes: Tensor) -> Tensor:
        """The waveform (B, C, T) of what `analyse` returns, or of any other real and imaginary parts."""
        real, imaginary = rearrange(planes, "b (c part) f t -> part (b c) f t", part=2)
        return self.inverse(real, imaginary).unflatten(0, (len(planes), -1))


def _centred_window(num_points: int, window_length: int) -> Tensor:
    """(num_points,): a Hann window with zeros on both sides."""
    missing = num_points - window_length
    return F.pad(torch.hann_window(window_length), (missing // 2, missing - missing // 2))
