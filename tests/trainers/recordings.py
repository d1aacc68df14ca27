"""Synthetic recordings for runs of the command line: tones that change, each file its own."""

from pathlib import Path

import numpy
import soundfile


def tones(seconds: float, *, sample_rate: int = 8000, channels: int = 1, seed: int = 0) -> numpy.ndarray:
    """(samples, channels) float32: a chord with vibrato and some noise, peak about 0.5."""
    generator = numpy.random.default_rng(seed)
    time = numpy.arange(round(seconds * sample_rate)) / sample_rate
    wave = numpy.zeros((len(time), channels), numpy.float32)
    for frequency in generator.uniform(100, 1500, 3):
        phase = 2 * numpy.pi * frequency * time + 3 * numpy.sin(2 * numpy.pi * 4 * time)
        wave += 0.15 * numpy.sin(phase[:, None] + generator.uniform(0, 6, channels))
    return (wave + 0.01 * generator.standard_normal(wave.shape)).astype(numpy.float32)


def write_recordings(
    folder: Path,
    count: int,
    *,
    seconds: float = 1.0,
    sample_rate: int = 8000,
    channels: int = 1,
    suffix: str = ".wav",
    seed: int = 0,
) -> None:
    """Writes `000.wav`, `001.wav` ..., each a little longer than the one before, others for another seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        wave = tones(seconds * (1 + number / 20), sample_rate=sample_rate, channels=channels, seed=seed + number)
        soundfile.write(folder / f"{number:03d}{suffix}", wave, sample_rate)
