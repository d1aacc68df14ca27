"""What is done to a training segment before a codec sees it: its loudness, its phase."""

import math
from abc import ABC, abstractmethod

import numpy
import torch
from torch.nn import functional
from torchaudio.functional import loudness

BLOCK_SECONDS = 0.4  # of ITU-R BS.1770
MOST_CHANNELS = 5  # to which it gives weights


class SegmentTransform(ABC):
    """A change of training segments. What is random about it comes from the generator of the segment alone."""

    @abstractmethod
    def __call__(self, samples: numpy.ndarray, sample_rate: int, generator: numpy.random.Generator) -> numpy.ndarray:
        """(samples, channels) float32, sample rate in Hz, to the same shape; full scale is 1, and may be exceeded."""

    def check(self, channels: int) -> None:
        """Raises ValueError where segments of so many channels cannot be had."""
        return


class LoudnessNormalization(SegmentTransform):
    """Brings segments to one loudness. Digital silence, and what the measure takes for it, stays as it is.

    Source: VolumeNorm of DAC's recipe (Kumar et al. 2023, arXiv:2306.06546, and its code), a constant -16 LUFS.
    Differs: a segment below 0.4 s is measured by what there is of it; DAC adds zeros up to 0.5 s, finds 0.8 dB less in
    its 0.38 s, and makes them 0.8 dB louder. DAC turns down what exceeds full scale here (RescaleAudio), we behind all
    transforms. DAC normalizes what it evaluates, too: here that is as it was recorded.

    Args:
        lufs: Loudness in LUFS (see `loudness_lufs`), at most 0.

    Raises:
        ValueError: `lufs` is above 0; in `check` for more than 5 channels.
    """

    def __init__(self, lufs: float = -16.0) -> None:
        if not lufs <= 0:
            raise ValueError(f"lufs={lufs}: expected a loudness relative to full scale, at most 0, such as -16")
        self.lufs = lufs

    def __call__(self, samples: numpy.ndarray, sample_rate: int, generator: numpy.random.Generator) -> numpy.ndarray:
        """See `SegmentTransform`."""
        found = loudness_lufs(samples, sample_rate)
        return samples * numpy.float32(10 ** ((self.lufs - found) / 20)) if math.isfinite(found) else samples

    def check(self, channels: int) -> None:
        """See `SegmentTransform`."""
        if channels > MOST_CHANNELS:
            raise ValueError(
                f"channels={channels}: LoudnessNormalization has weights of at most {MOST_CHANNELS} (ITU-R BS.1770): "
                "leave it out, or take loudness_db"
            )


class PhaseShift(SegmentTransform):
    """Turns the phase of all frequencies of a segment by one random angle, the same in all channels.

    x' = cos(a) x - sin(a) H(x), with H the Hilbert transform: magnitudes stay, and a = pi turns the polarity around.

    Source: ShiftPhase of DAC's recipe (Kumar et al. 2023, arXiv:2306.06546, and its code).
    Differs: one transform of the whole segment, followed by as much silence; DAC's turns a short-time spectrum.

    Args:
        radians: Least and greatest angle.

    Raises:
        ValueError: The least is above the greatest.
    """

    def __init__(self, radians: tuple[float, float] = (-math.pi, math.pi)) -> None:
        if not radians[0] <= radians[1]:
            raise ValueError(f"radians={radians}: expected (least, greatest)")
        self.radians = (float(radians[0]), float(radians[1]))

    def __call__(self, samples: numpy.ndarray, sample_rate: int, generator: numpy.random.Generator) -> numpy.ndarray:
        """See `SegmentTransform`."""
        angle = generator.uniform(*self.radians)
        spectrum = numpy.fft.rfft(samples, 2 * len(samples), axis=0)
        spectrum[1:-1] *= numpy.exp(1j * angle)
        spectrum[[0, -1]] *= math.cos(angle)  # they have no phase: their Hilbert transform is 0
        return numpy.fft.irfft(spectrum, axis=0)[: len(samples)].astype(numpy.float32)


class PolarityFlip(SegmentTransform):
    """Turns the polarity of some segments around: x' = -x, in all channels.

    Args:
        probability: Share of the segments, in [0, 1].

    Raises:
        ValueError: `probability` is out of its range.
    """

    def __init__(self, probability: float = 0.5) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability={probability}: expected a share of the segments, in [0, 1]")
        self.probability = probability

    def __call__(self, samples: numpy.ndarray, sample_rate: int, generator: numpy.random.Generator) -> numpy.ndarray:
        """See `SegmentTransform`."""
        return -samples if generator.random() < self.probability else samples


def loudness_lufs(samples: numpy.ndarray, sample_rate: int) -> float:
    """Integrated loudness by ITU-R BS.1770-4: K-weighted, gated blocks of 0.4 s.

    The measure is torchaudio's, whose weighting is within 0.05 dB of the standard's at 1 kHz. Two things around it: it
    clips what its filters lift over full scale, so loud sounds are measured at a lower level; and what is shorter than
    a block is one block, divided by its own length.

    Args:
        samples: (samples, channels) float32: left, right, centre, left and right surround, as many as there are.
        sample_rate: Hz.

    Returns:
        LUFS; -inf where no block is above the absolute gate, -70 LUFS.
    """
    peak = float(numpy.abs(samples).max(initial=0))
    scale = max(1.0, 4 * peak)  # K-weighting lifts treble by 4 dB, and overshoots by less than the rest
    wave = torch.from_numpy(samples.T.astype(numpy.float64)) / scale
    missing = max(0, round(BLOCK_SECONDS * sample_rate) - len(samples))
    measured = float(loudness(functional.pad(wave, (0, missing)), sample_rate))
    if not math.isfinite(measured):
        return -math.inf
    return measured + 20 * math.log10(scale) + 10 * math.log10((len(samples) + missing) / len(samples))
