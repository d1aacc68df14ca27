"""Measures of one channel of one utterance: how far a reconstruction is from its original."""

import importlib.util
import warnings
from abc import ABC, abstractmethod
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.audio.spectra import ShortTimeSpectrum, mel_bank

SI_SDR_RANGE = (-50.0, 100.0)
"""In dB. Beyond it numbers say nothing, and an infinite one would swallow the mean."""

MEL_RESOLUTIONS = ((2048, 150), (512, 80))
"""Window lengths in samples, each with its number of mel bands; the hop is a quarter of the window."""

STFT_LARGEST = 2048
"""The longest window of `stft_distance`, in samples."""


class Measure(ABC):
    """A number, or several, that a pair of waveforms has.

    Attributes:
        name: by which `AudioMetrics` is asked for it.
        figures: names of the numbers; `name` alone unless a class says otherwise.
        packages: what has to be installed: name to import -> name to install.
        protocol: rate, window, mode and version: what has to be equal for two numbers to be compared.

    Args:
        sample_rate: of the waveforms, in Hz.
    """

    name: ClassVar[str]
    figures: ClassVar[tuple[str, ...]]
    packages: ClassVar[dict[str, str]] = {}
    protocol: str

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate

    def __init_subclass__(cls) -> None:
        if "figures" not in vars(cls):
            cls.figures = (cls.name,)

    @property
    def obstacle(self) -> str | None:
        """Why this cannot be measured here, with the fix; None where it can."""
        for module, package in self.packages.items():
            if importlib.util.find_spec(module) is None:
                return f"the package {package} is not installed: pip install {package}"
        return None

    def __call__(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        """Measure.

        Args:
            original: (T,) float32 in [-1, 1] on the CPU, finite, T at least 1.
            reconstruction: like `original`.

        Returns:
            one number for each of `figures`; None where the original is such that the measure is not defined.
        """
        return self._measure(original, reconstruction)

    @abstractmethod
    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        """`__call__`."""


class SISDR(Measure):
    """Scale-invariant signal to distortion ratio.

    Source: Le Roux et al. 2019, arXiv:1811.02508, eq. 5.

    Differs: a reconstruction without any signal has the lowest value; the epsilons of the usual code give it 0 dB.
    """

    name = "si_sdr"

    protocol = (
        f"torchmetrics in float64, means removed, dB, limited to {SI_SDR_RANGE[0]:g} ... {SI_SDR_RANGE[1]:g}; a "
        f"reconstruction that is silent has {SI_SDR_RANGE[0]:g}; utterances whose original is silent are left out"
    )

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

        if not has_signal(original):
            return None
        if not has_signal(reconstruction):
            return {"si_sdr": SI_SDR_RANGE[0]}
        ratio = scale_invariant_signal_distortion_ratio(reconstruction.double(), original.double(), zero_mean=True)
        return {"si_sdr": min(max(float(ratio), SI_SDR_RANGE[0]), SI_SDR_RANGE[1])}


class STOI(Measure):
    """Short-time objective intelligibility.

    Source: Taal et al. 2011, "An algorithm for intelligibility prediction of time-frequency weighted noisy speech"
    (https://doi.org/10.1109/TASL.2011.2114881).
    """

    name = "stoi"
    packages: ClassVar[dict[str, str]] = {"pystoi": "pystoi"}
    extended: ClassVar[bool] = False

    protocol = (
        "pystoi, resampled to 10 kHz by it; frames 40 dB below the loudest of the original are left out, and so "
        "are utterances with less than 30 frames (0.4 s) of the rest"
    )

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        import pystoi

        # The package's own answer to too little speech is 1e-5 and a warning: a number that would enter the mean.
        # It also asks for half a frame at least, and divides by the energy of a silent original.
        if not has_signal(original) or len(original) < self.sample_rate * 0.4:
            return None
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            value = pystoi.stoi(original.numpy(), reconstruction.numpy(), self.sample_rate, extended=self.extended)
        if any("Not enough STFT frames" in str(warning.message) for warning in raised):
            return None
        return {self.name: float(value)}


class ESTOI(STOI):
    """Extended short-time objective intelligibility: correlations of whole spectra, not of bands one by one.

    Source: Jensen, Taal 2016, "An algorithm for predicting the intelligibility of speech masked by modulated noise
        maskers" (https://doi.org/10.1109/TASLP.2016.2585878).
    """

    name = "estoi"
    extended = True

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        # A silent reconstruction has no spectrum that could be correlated: nothing of it is intelligible.
        if not has_signal(reconstruction) and super()._measure(original, original) is not None:
            return {"estoi": 0.0}
        return super()._measure(original, reconstruction)


class MelDistance(Measure):
    """Distance of mel spectrograms, logarithmic and linear, as the evaluation of DAC has it.

    Source: Kumar et al. 2023, arXiv:2306.06546, `MelSpectrogramLoss` of its published code with its defaults.

    Differs: computed at the sample rate of the codec, and not at 22.05 and 44.1 kHz.
    """

    name = "mel_distance"

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        windows = " and ".join(f"{bands} bands of {window}-sample Hann windows" for window, bands in MEL_RESOLUTIONS)
        self.protocol = (
            f"{windows}, hop a quarter of the window, magnitudes, Slaney's mel scale and norm up to "
            f"{sample_rate / 2:g} Hz; sum over both of the mean |difference| of log10 max(mel, 1e-5)^2 and of mel "
            f"(as in DAC's evaluation, at {sample_rate} Hz); utterances shorter than the window are filled with zeros"
        )

    @cached_property
    def _resolutions(self) -> list[tuple[ShortTimeSpectrum, Tensor]]:
        # Where a band is narrower than the spacing of the bins it is empty in both spectrograms, and counts as equal.
        return [
            (ShortTimeSpectrum(window, window // 4), mel_bank(self.sample_rate, window, bands))
            for window, bands in MEL_RESOLUTIONS
        ]

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        pair = _at_least(torch.stack([original, reconstruction]), MEL_RESOLUTIONS[0][0])
        total = 0.0
        for spectrum, bank in self._resolutions:
            mel = spectrum(pair).abs().mT @ bank
            for first, second in (mel, mel.clamp(min=1e-5).square().log10()):
                total += float((first - second).abs().mean())
        return {"mel_distance": total}


class STFTDistance(Measure):
    """Multi-resolution STFT distance: spectral convergence and logarithmic magnitudes.

    Source: Yamamoto et al. 2020, arXiv:1910.11480, section 2.2.
    """

    name = "stft_distance"
    packages: ClassVar[dict[str, str]] = {"auraloss": "auraloss"}

    protocol = (
        "auraloss MultiResolutionSTFTLoss with its defaults (FFT 1024, 2048, 512; hop 120, 240, 50; Hann window "
        "600, 1200, 240 samples), spectral convergence + L1 of log magnitudes, mean over resolutions; utterances "
        "whose original is silent are left out"
    )

    def _measure(self, original: Tensor, reconstruction: Tensor) -> dict[str, float] | None:
        from auraloss.freq import MultiResolutionSTFTLoss

        if not has_signal(original):
            return None
        pair = _at_least(torch.stack([original, reconstruction]), STFT_LARGEST)
        return {"stft_distance": float(MultiResolutionSTFTLoss()(pair[1:, None], pair[:1, None]))}


def has_signal(wave: Tensor) -> bool:
    """Whether there is more than a constant: something that differs from it by -120 dB of full scale at least."""
    return bool((wave - wave.mean()).abs().max() > 1e-6)


def _at_least(waves: Tensor, length: int) -> Tensor:
    return F.pad(waves, (0, max(0, length - waves.shape[-1])))
