"""Short-time spectra of waveforms of any length, and the one bank of mel bands; gradients stay finite on silence."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks


class ShortTimeSpectrum(nn.Module):
    """Complex spectrum of Hann windows.

    A clip shorter than the FFT is padded by zeros at its right end first.

    Args:
        fft_size: samples of the transform.
        hop_length: samples from window to window.
        window_length: samples of the window, at most `fft_size`; None for all of it.
        reflected: samples by which both ends are continued by reflection; None for half of `fft_size`, so that windows
            are centred on the samples 0, hop, 2 hop, ...

    Raises:
        ValueError: a length is out of its range.
    """

    window: Tensor

    def __init__(
        self, fft_size: int, hop_length: int, window_length: int | None = None, *, reflected: int | None = None
    ) -> None:
        super().__init__()
        window_length = fft_size if window_length is None else window_length
        if not 1 < window_length <= fft_size or not 0 < hop_length <= window_length:
            raise ValueError(
                f"fft_size={fft_size}, window_length={window_length}, hop_length={hop_length}: expected samples with "
                "1 <= hop_length <= window_length <= fft_size, and a window of at least 2"
            )
        self.fft_size = fft_size
        self.hop_length = hop_length
        self.reflected = fft_size // 2 if reflected is None else reflected
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)

    @property
    def bins(self) -> int:
        """Number of frequencies."""
        return self.fft_size // 2 + 1

    def forward(self, wave: Tensor) -> Tensor:
        """(N, T) -> complex (N, bins, frames)."""
        wave = F.pad(wave, (0, max(0, self.fft_size - wave.shape[-1])))
        return torch.stft(
            F.pad(wave, (self.reflected, self.reflected), mode="reflect") if self.reflected else wave,
            self.fft_size,
            hop_length=self.hop_length,
            win_length=len(self.window),
            window=self.window.to(wave.dtype),
            center=False,
            return_complex=True,
        )


def mel_bank(
    sample_rate: int, fft_size: int, mel_bins: int, *, min_frequency: float = 0.0, max_frequency: float | None = None
) -> Tensor:
    """Triangles of equal area on Slaney's mel scale, as in librosa.

    A band that is so narrow that no frequency of the transform falls into it is zero.

    Args:
        sample_rate: Hz.
        fft_size: samples of the transform.
        mel_bins: number of bands.
        min_frequency: Hz, lower end of the first band.
        max_frequency: Hz, upper end of the last band; None for half the sample rate.

    Returns:
        (fft_size / 2 + 1, mel_bins) float32.
    """
    highest = sample_rate / 2 if max_frequency is None else max_frequency
    with warnings.catch_warnings():  # whoever wants no empty bands takes them out
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        return melscale_fbanks(fft_size // 2 + 1, min_frequency, highest, mel_bins, sample_rate, "slaney", "slaney")


class MelSpectrum(nn.Module):
    """Magnitudes in the bands of `mel_bank`.

    Bands that are so narrow that no frequency of the transform falls into them are left out: they would be zero for
    every sound, and only dilute a mean.

    Args:
        sample_rate: Hz.
        window_length: samples of window and transform; a quarter of it is the hop.
        mel_bins: number of bands.
        min_frequency: Hz, lower end of the first band.
        max_frequency: Hz, upper end of the last band; None for half the sample rate.

    Attributes:
        mel_bins: how many bands are left.

    Raises:
        ValueError: a number is out of its range, or no band is left.
    """

    bands: Tensor

    def __init__(
        self,
        sample_rate: int,
        *,
        window_length: int,
        mel_bins: int,
        min_frequency: float = 0.0,
        max_frequency: float | None = None,
    ) -> None:
        super().__init__()
        highest = sample_rate / 2 if max_frequency is None else max_frequency
        if not 0 <= min_frequency < highest <= sample_rate / 2:
            raise ValueError(
                f"min_frequency={min_frequency}, max_frequency={max_frequency} at sample_rate={sample_rate}: expected "
                "0 <= min_frequency < max_frequency <= sample_rate / 2, in Hz"
            )
        if mel_bins < 1 or window_length < 4:
            raise ValueError(f"mel_bins={mel_bins}, window_length={window_length}: expected at least 1 and 4")
        self.spectrum = ShortTimeSpectrum(window_length, window_length // 4)
        bands = mel_bank(sample_rate, window_length, mel_bins, min_frequency=min_frequency, max_frequency=max_frequency)
        bands = bands[:, bands.sum(0) > 0]
        if not bands.shape[1]:
            raise ValueError(
                f"mel_bins={mel_bins} from {min_frequency} to {highest} Hz are all narrower than the "
                f"{sample_rate / window_length:.0f} Hz that window_length={window_length} resolves: lengthen the window"
            )
        self.mel_bins = bands.shape[1]
        self.register_buffer("bands", bands, persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """(N, T) -> (N, frames, mel_bins), at least 0."""
        return self.spectrum(wave).abs().mT @ self.bands.to(wave.dtype)
