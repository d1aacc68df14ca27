"""Distances of spectra: mel bands, magnitudes and complex coefficients at several resolutions."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.audio.objectives.objective import WaveformObjective
from trainers.audio.spectra import MelSpectrum, ShortTimeSpectrum


class MultiResolutionMel(WaveformObjective):
    """Mean absolute difference of mel spectra, of their decimal logarithms above all, summed over window lengths.

    sum over windows of  log_weight * E |log10 M - log10 M'| + linear_weight * E |M - M'|, the logarithms of at least
    `floor`. Below the floor, and on digital silence, the logarithm has no gradient.

    Source: Kumar et al. 2023 (DAC, arXiv:2306.06546), sec. 3.4 and its published recipe: hops of a quarter window,
    fewer bands for shorter windows. ESC (Gu, Diao 2024, arXiv:2404.19441) has `linear_weight=1, log_weight=2,
    weight=0.25`, on HTK's mel scale.
    Differs: bands without any frequency of the transform are left out of the mean (see `MelSpectrum`).

    Args:
        sample_rate: Hz.
        weight: factor of the term in the total.
        name: under which the term is logged.
        window_lengths: samples.
        mel_bins: number of bands for each of the windows.
        min_frequency: Hz, lower end of the first band.
        max_frequency: Hz, upper end of the last band; None for half the sample rate.
        log_weight: share of the logarithmic part.
        linear_weight: share of the linear part.
        floor: least magnitude before the logarithm.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        weight: float = 15.0,
        name: str = "mel",
        window_lengths: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        mel_bins: Sequence[int] = (5, 10, 20, 40, 80, 160, 320),
        min_frequency: float = 0.0,
        max_frequency: float | None = None,
        log_weight: float = 1.0,
        linear_weight: float = 0.0,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not window_lengths or len(window_lengths) != len(mel_bins):
            raise ValueError(
                f"window_lengths={list(window_lengths)} and mel_bins={list(mel_bins)}: expected one number of bands "
                "for each window, and at least one window"
            )
        _check_shares(log_weight=log_weight, linear_weight=linear_weight)
        _check_floor(floor)
        self.spectra = nn.ModuleList(
            MelSpectrum(
                sample_rate,
                window_length=length,
                mel_bins=bins,
                min_frequency=min_frequency,
                max_frequency=max_frequency,
            )
            for length, bins in zip(window_lengths, mel_bins, strict=True)
        )
        self.sample_rate = sample_rate
        self.log_weight = log_weight
        self.linear_weight = linear_weight
        self.floor = floor

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        return torch.stack([self._distance(s(reference), s(reconstruction)) for s in self.spectra]).sum()

    def _distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        ratio = reconstruction.clamp_min(self.floor).log10() - reference.clamp_min(self.floor).log10()
        return self.log_weight * ratio.abs().mean() + self.linear_weight * F.l1_loss(reconstruction, reference)


class LinearAndLogMel(WaveformObjective):
    """Mean absolute difference of mel spectra plus mean squared difference of their logarithms, averaged over windows.

    mean over windows of  E |M - M'| + E (log10(M + floor) - log10(M' + floor))^2, on transforms that are divided by the
    Euclidean length of their window.

    Source: Défossez et al. 2022 (EnCodec, arXiv:2210.13438), sec. 3.4, with all alpha_i = 1; that the second part is of
    logarithms is in Gritsenko et al. 2020 (2008.01160) and in EnCodec's code.
    Differs: bands without any frequency of the transform are left out of the mean (see `MelSpectrum`): short windows
    have far fewer frequencies than 64; and the mel scale is Slaney's, where torchaudio's default is HTK's.

    Args:
        sample_rate: Hz.
        weight: factor of the term in the total.
        name: under which the term is logged.
        window_lengths: samples.
        mel_bins: number of bands, the same for each of the windows.
        floor: what is added to a magnitude before the logarithm.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        sample_rate: int,
        *,
        weight: float = 1.0,
        name: str = "mel",
        window_lengths: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048),
        mel_bins: int = 64,
        floor: float = 1e-5,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not window_lengths:
            raise ValueError("window_lengths is empty: name at least one window, in samples")
        _check_floor(floor)
        self.spectra = nn.ModuleList(
            MelSpectrum(sample_rate, window_length=length, mel_bins=mel_bins) for length in window_lengths
        )
        self.window_lengths = tuple(window_lengths)
        self.sample_rate = sample_rate
        self.floor = floor

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        distances = []
        for spectrum, length in zip(self.spectra, self.window_lengths, strict=True):
            # Of the periodic Hann window of n samples the sum of squares is 3 n / 8.
            scale = (3 / 8 * length) ** -0.5
            x, y = scale * spectrum(reference), scale * spectrum(reconstruction)
            logarithms = [(magnitude + self.floor).log10() for magnitude in (x, y)]
            distances.append(F.l1_loss(y, x) + F.mse_loss(*logarithms))
        return torch.stack(distances).mean()


class MultiResolutionSTFT(WaveformObjective):
    """Spectral convergence plus mean absolute difference of log magnitudes, averaged over resolutions.

    mean over resolutions of  |S - S'|_F / |S|_F + E |ln S - ln S'|, with |.|_F over the whole batch and S the
    magnitudes, of at least `floor`: below it, and on digital silence, nothing has a gradient.

    Source: Yamamoto, Song, Kim 2020 (Parallel WaveGAN, arXiv:1910.11480), sec. 2.2 and table 1. The numbers are those
    of auraloss 0.4 (Steinmetz, Reiss 2020), which the tests compare; it is not called because it also computes phases,
    and fails on clips shorter than half a transform.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
        fft_sizes: samples of the transforms.
        hop_lengths: samples from window to window, for each transform.
        window_lengths: samples of the windows, for each transform.
        floor: least magnitude.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        name: str = "stft",
        fft_sizes: Sequence[int] = (1024, 2048, 512),
        hop_lengths: Sequence[int] = (120, 240, 50),
        window_lengths: Sequence[int] = (600, 1200, 240),
        floor: float = 1e-4,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not fft_sizes or not len(fft_sizes) == len(hop_lengths) == len(window_lengths):
            raise ValueError(
                f"fft_sizes={list(fft_sizes)}, hop_lengths={list(hop_lengths)}, "
                f"window_lengths={list(window_lengths)}: expected one of each for every resolution"
            )
        _check_floor(floor)
        self.spectra = nn.ModuleList(
            ShortTimeSpectrum(*sizes) for sizes in zip(fft_sizes, hop_lengths, window_lengths, strict=True)
        )
        self.floor = floor

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        distances = []
        for spectrum in self.spectra:
            x, y = (spectrum(wave).abs().clamp_min(self.floor) for wave in (reference, reconstruction))
            distances.append((x - y).norm() / x.norm() + F.l1_loss(y.log(), x.log()))
        return torch.stack(distances).mean()


class ComplexSTFT(WaveformObjective):
    """Mean squared difference of the real and imaginary parts of a spectrum, each compressed by a power law.

    E (c(X) - c(X'))^2, c(x) = sign(x) ((|x| + floor)^power - floor^power): the phase counts, and quiet coefficients
    count more than by their energy.

    Source: Gu, Diao 2024 (ESC, arXiv:2404.19441), sec. 3.4, and its code for the sizes (20 ms windows, 5 ms hops and
    192 frequencies at 16 kHz) and for compressing the two parts separately.
    Differs: ESC compares the spectrum that its decoder puts out, this takes that of the waveform, so that any decoder
    can have it. ESC's floor is 1e-10 and its c jumps at 0; the slope there is 3e6. Ours is continuous, and
    its slope is at most power * floor^(power - 1), 190.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
        power: exponent, in (0, 1]; 1 is the plain squared difference.
        fft_size: samples of the transform.
        window_length: samples of the window.
        hop_length: samples from window to window.
        floor: coefficient around which the power law turns linear; 1e-4 is that of the rounding noise of 16 bits.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        name: str = "complex_stft",
        power: float = 0.3,
        fft_size: int = 382,
        window_length: int = 320,
        hop_length: int = 80,
        floor: float = 1e-4,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not 0 < power <= 1:
            raise ValueError(f"power={power}: expected an exponent in (0, 1], such as 0.3")
        _check_floor(floor)
        self.spectrum = ShortTimeSpectrum(fft_size, hop_length, window_length)
        self.power = power
        self.floor = floor

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        return F.mse_loss(self._compressed(reconstruction), self._compressed(reference))

    def _compressed(self, wave: Tensor) -> Tensor:
        parts = torch.view_as_real(self.spectrum(wave))
        return parts.sign() * ((parts.abs() + self.floor) ** self.power - self.floor**self.power)


def _check_floor(floor: float) -> None:
    if not floor > 0:
        raise ValueError(f"floor={floor}: expected a positive magnitude; at 0 silence has no finite gradient")


def _check_shares(**shares: float) -> None:
    if min(shares.values()) < 0 or not any(shares.values()):
        raise ValueError(f"{shares}: expected numbers of at least 0, one of them above 0")
