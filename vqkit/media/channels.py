"""Samples of sound as numbers: their scale and level, and how several channels become one."""

import math
from abc import ABC, abstractmethod

import numpy

LOST_DB = 2.5  # a mixture that is so much quieter than one of channels that have nothing in common is reported


def as_floats(samples: numpy.ndarray) -> numpy.ndarray:
    """(frames, channels) int16 or float32 to float32 with full scale at 1."""
    return samples.astype(numpy.float32) / 32768 if samples.dtype == numpy.int16 else samples


def level_db(samples: numpy.ndarray) -> float:
    """Root mean square over all samples in dB relative to full scale; -inf for digital silence."""
    return decibels(float(numpy.square(samples, dtype=numpy.float64).mean()) if samples.size else 0.0)


def decibels(power: float) -> float:
    """A mean square in dB relative to full scale."""
    return 10 * math.log10(power) if power > 0 else -math.inf


class Downmix(ABC):
    """How several channels become one. A single channel stays as it is."""

    @abstractmethod
    def __call__(self, samples: numpy.ndarray) -> numpy.ndarray:
        """(frames, channels) float32 to (frames, 1); ValueError with the reason where that cannot be."""


class ChannelMean(Downmix):
    """The mean of all channels. Sound in antiphase cancels, and sound in one of C channels is C times less."""

    def __call__(self, samples: numpy.ndarray) -> numpy.ndarray:
        """See `Downmix`."""
        return samples.mean(axis=1, keepdims=True)


class OneChannel(Downmix):
    """One channel alone.

    Args:
        number: Its place: 0 is left, 1 is right.
    """

    def __init__(self, number: int = 0) -> None:
        if number < 0:
            raise ValueError(f"number={number}: expected the place of a channel, 0 for the left one")
        self.number = number

    def __call__(self, samples: numpy.ndarray) -> numpy.ndarray:
        """See `Downmix`."""
        if self.number >= samples.shape[1]:
            raise ValueError(f"has {samples.shape[1]} channels, of which number {self.number} is wanted, from 0 on")
        return samples[:, self.number : self.number + 1]


class LoudestChannel(Downmix):
    """The channel with the most power in what is handed out: a training segment, or a whole recording."""

    def __call__(self, samples: numpy.ndarray) -> numpy.ndarray:
        """See `Downmix`."""
        number = int(channel_powers(samples).argmax())
        return samples[:, number : number + 1]


DOWNMIXES: dict[str, Downmix | None] = {
    "mean": ChannelMean(),
    "left": OneChannel(0),
    "right": OneChannel(1),
    "loudest": None,
}
"""How several channels become one, by the words of a command; None looks for the loudest of the whole recording."""


def with_channels(samples: numpy.ndarray, channels: int, downmix: Downmix) -> numpy.ndarray:
    """(frames, own channels) to (frames, channels): the mixture for one, copies of one for several."""
    if samples.shape[1] == channels:
        return samples
    return downmix(samples) if channels == 1 else samples.repeat(channels, axis=1)


def channel_powers(samples: numpy.ndarray) -> numpy.ndarray:
    """(channels,) float64: the mean square of each channel of (frames, channels)."""
    return numpy.square(samples, dtype=numpy.float64).mean(axis=0)


def lost_in_mixture(powers: numpy.ndarray, mixed: float) -> str | None:
    """Whether most of the sound is not in a mixture: in words with figures, or None.

    Where channels have nothing in common, their mean is 10 log10(channels) dB quieter than the loudest, and that is not
    reported: only antiphase, and sound in few of the channels, is.

    Args:
        powers: (channels,), `channel_powers` of what is mixed.
        mixed: The mean square of the mixture.
    """
    loudest, mixture = decibels(float(powers.max())), decibels(mixed)
    if not loudest - mixture > 10 * math.log10(len(powers)) + LOST_DB:
        return None
    return f"{len(powers)} channels, the loudest at {loudest:.1f} dB, become one at {mixture:.1f} dB"
