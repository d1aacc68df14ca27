"""What is done to segments: loudness by ITU-R BS.1770, phases and polarity, each of its seed alone."""

import math
from pathlib import Path

import numpy
import pytest
import torch

from tests.refusals import refused
from tests.trainers.recordings import tones, write_recordings
from tests.trainers.test_audio_data import data, ready
from tests.trainers.test_folder_data import stream
from trainers.audio import LoudnessNormalization, PhaseShift, PolarityFlip
from trainers.audio.transforms import loudness_lufs


def generator() -> numpy.random.Generator:
    return numpy.random.default_rng(0)


def sine(amplitude: float, seconds: float = 2.0, *, rate: int = 48000, channels: int = 1) -> numpy.ndarray:
    wave = amplitude * numpy.sin(2 * numpy.pi * 997 * numpy.arange(round(seconds * rate)) / rate)
    return numpy.repeat(wave[:, None], channels, axis=1).astype(numpy.float32)


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_a_sine_has_the_loudness_that_the_standard_says(rate):
    """BS.1770-4, annex 1: 997 Hz at full scale in one front channel is -3.01 LKFS; a meter may be off by 0.1."""
    assert abs(loudness_lufs(sine(1.0, rate=rate), rate) + 3.01) < 0.1
    assert abs(loudness_lufs(sine(0.1, rate=rate), rate) + 23.01) < 0.1
    assert abs(loudness_lufs(sine(0.1, rate=rate, channels=2), rate) + 20.0) < 0.1


def test_loudness_follows_the_level_also_where_filters_would_clip():
    wave = tones(2.0, sample_rate=16000)
    plain = loudness_lufs(wave, 16000)
    for factor in (0.5, 2.0, 40.0):
        assert loudness_lufs(factor * wave, 16000) == pytest.approx(plain + 20 * math.log10(factor), abs=1e-3)


def test_silence_within_is_gated_and_short_sounds_are_one_block():
    wave = sine(0.5)
    gap = numpy.concatenate([wave, numpy.zeros((10 * 48000, 1), numpy.float32)])
    # Three of the blocks hold a half or less of the end; ungated it would be 7.8 dB less.
    assert abs(loudness_lufs(gap, 48000) - loudness_lufs(wave, 48000)) < 0.5
    assert abs(loudness_lufs(wave[:4800], 48000) - loudness_lufs(wave, 48000)) < 0.2
    assert loudness_lufs(numpy.zeros((4800, 1), numpy.float32), 48000) == -math.inf


def test_segments_have_one_loudness_and_silence_stays():
    normalize = LoudnessNormalization(-23.0)
    for wave in (tones(1.0, sample_rate=16000, channels=2), tones(0.3, sample_rate=16000) / 50):
        made = normalize(wave, 16000, generator())
        assert made.dtype == numpy.float32
        assert loudness_lufs(made, 16000) == pytest.approx(-23.0, abs=1e-3)
    silence = numpy.zeros((1600, 1), numpy.float32)
    assert not normalize(silence, 16000, generator()).any()


def test_a_phase_shift_turns_a_sine_and_keeps_magnitudes():
    rate, angle = 16000, 0.7
    time = numpy.arange(rate)[:, None] / rate
    window = numpy.hanning(rate)[:, None]  # whose ends are silent: the transform of finite sound is exact to its tail
    wave = (window * numpy.cos(2 * numpy.pi * 440 * time)).astype(numpy.float32)
    made = PhaseShift((angle, angle))(wave, rate, generator())
    expected = window * numpy.cos(2 * numpy.pi * 440 * time + angle)
    assert numpy.abs(made - expected).max() < 1e-4
    opposite = PhaseShift((math.pi, math.pi))(wave, rate, generator())
    assert numpy.abs(opposite + wave).max() < 1e-6
    noise = numpy.random.default_rng(1).standard_normal((1001, 2)).astype(numpy.float32)
    turned = PhaseShift((0.0, 0.0))(noise, rate, generator())
    assert turned.shape == noise.shape and numpy.abs(turned - noise).max() < 1e-5


def test_channels_turn_together():
    wave = tones(0.5, channels=2)
    wave[:, 1] = -0.5 * wave[:, 0]
    made = PhaseShift()(wave, 8000, generator())
    assert numpy.abs(made[:, 1] + 0.5 * made[:, 0]).max() < 1e-6
    assert numpy.abs(made - wave).max() > 0.05


def test_polarity_is_turned_around_for_its_share():
    wave, drawn = tones(0.1), generator()
    flips = [bool((PolarityFlip(0.25)(wave, 8000, drawn) == -wave).all()) for _ in range(400)]
    assert abs(sum(flips) - 100) < 4 * math.sqrt(400 * 0.25 * 0.75)
    assert (PolarityFlip(1.0)(wave, 8000, drawn) == -wave).all() and (
        PolarityFlip(0.0)(wave, 8000, drawn) == wave
    ).all()


def test_what_is_drawn_is_a_matter_of_the_seed_and_within_full_scale(tmp_path):
    write_recordings(tmp_path, 6)
    options = {"transforms": [LoudnessNormalization(-1.0), PhaseShift(), PolarityFlip()], "gain_db": (-3, 0)}
    first, again, other = (stream(ready(tmp_path, seed=seed, **options), "audio", 4)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.abs().max() == pytest.approx(1.0, abs=1e-6)  # turned down, not clipped
    assert (first.abs() > 0.999).sum() < 2 * first.shape[0] * first.shape[1]
    plain = stream(ready(tmp_path, seed=1), "audio", 4)[0]
    assert not torch.equal(first, plain)


test_wrong_transforms_are_refused = refused(
    (lambda: LoudnessNormalization(3.0), "lufs=3.0: expected a loudness relative to full scale"),
    (lambda: PhaseShift((1.0, -1.0)), r"radians=\(1.0, -1.0\): expected \(least, greatest\)"),
    (lambda: PolarityFlip(1.5), "probability=1.5"),
    (
        lambda: data(Path(), channels=6, transforms=[LoudnessNormalization()]),
        "channels=6: LoudnessNormalization has weights of at most 5",
    ),
    (
        lambda: data(Path(), loudness_db=-20.0, transforms=[LoudnessNormalization()]),
        "loudness_db=-20.0 and LoudnessNormalization set the same level",
    ),
)
