"""The constant-Q transform: its definition, written out, and librosa's."""

import math

import pytest
import torch
from torch import Tensor

from trainers.audio.constant_q import ConstantQ

RATE = 8000
SIZES = {"hop_length": 64, "octaves": 4, "bins_per_octave": 12, "min_frequency": 200.0}


def plain(wave: Tensor, number: int) -> Tensor:
    """The definition for one frequency, at the full rate, in float64: (T,) -> (frames,)."""
    frequency = SIZES["min_frequency"] * 2 ** (number / 12) / RATE
    length = window_length(frequency * RATE)
    reach = int(length / 2)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    window = (math.pi * places / length).cos().square()
    wave_around = torch.nn.functional.pad(wave, (reach, reach)).unfold(0, 2 * reach + 1, SIZES["hop_length"])
    return wave_around.to(torch.complex128) @ (window / window.norm() * torch.exp(-2j * math.pi * frequency * places))


def window_length(frequency: float) -> float:
    return RATE / frequency / (2 ** (1 / 12) - 1)


@pytest.mark.parametrize(("octave", "tolerance"), [(0, 2e-3), (1, 2e-3), (3, 1e-6)])
def test_octaves_at_lower_rates_are_the_transform_at_the_full_rate(octave: int, tolerance: float) -> None:
    """Of sound in that octave, each halving has 1e-4 of ripple; the highest octave has kernels of float32 alone."""
    spectrum = torch.fft.rfft(torch.randn(6000, dtype=torch.float64))
    frequencies = torch.linspace(0, RATE / 2, len(spectrum), dtype=torch.float64)
    lowest = 200 * 2**octave
    wave = torch.fft.irfft(spectrum * ((frequencies > lowest) & (frequencies < 2 * lowest)))
    found = ConstantQ(RATE, **SIZES)(wave[None])
    assert found.shape == (1, 94, 48)
    for number in (12 * octave, 12 * octave + 7):
        away_from_ends = slice(15, -15)
        expected = plain(wave, number)[away_from_ends]
        assert (found[0, away_from_ends, number] - expected).norm() < tolerance * expected.norm()


def test_a_tone_has_its_phase_and_level_in_its_band_of_any_octave() -> None:
    transform = ConstantQ(RATE, **SIZES)
    time = torch.arange(16000, dtype=torch.float64) / RATE
    for number in (3, 14, 26, 40):
        frequency = 200 * 2 ** (number / 12)
        found = transform(torch.cos(2 * math.pi * frequency * time + 0.5)[None])[0, 100:150]
        length = window_length(frequency)
        expected = 0.5 * length / 2 / math.sqrt(3 / 8 * length)  # half of the sum of the window
        assert (found.abs().argmax(dim=1) == number).all()
        # Each halving has 1e-4 of ripple; the sums of short windows are off by less than a part in a thousand.
        torch.testing.assert_close(
            found[:, number].abs(), torch.full((50,), expected, dtype=torch.float64), rtol=2e-3, atol=0
        )
        turned = 2 * math.pi * frequency * time[64 * 100 : 64 * 150 : 64] + 0.5
        assert (found[:, number] * torch.exp(-1j * turned)).angle().abs().max() < 0.01


def test_noise_has_its_level_in_every_band() -> None:
    found = ConstantQ(RATE, **SIZES)(torch.randn(1, 200_000))
    assert (found.abs().square().mean(1) - 1).abs().max() < 0.2


@pytest.mark.slow
def test_magnitudes_are_those_of_librosa() -> None:
    librosa = pytest.importorskip("librosa")
    wave = torch.randn(24000, generator=torch.Generator().manual_seed(0))
    ratio = 2 ** (2 / 12)
    own_quality = 1 / (2 ** (1 / 12) - 1)
    expected = librosa.cqt(
        wave.numpy(),
        sr=RATE,
        hop_length=64,
        fmin=200.0,
        n_bins=48,
        bins_per_octave=12,
        filter_scale=own_quality * (ratio - 1) / (ratio + 1),
        sparsity=0,
        pad_mode="constant",
    )
    found = ConstantQ(RATE, **SIZES)(wave[None])[0].T * math.sqrt(3 / 2)
    expected = torch.from_numpy(expected)[:, : found.shape[1]]
    error = (found.abs() - expected.abs()).norm(dim=1) / expected.norm(dim=1)
    # Librosa's windows have whole samples: of the 30 of the highest frequencies, one more or less.
    assert error.max() < 1 / 30


@pytest.mark.parametrize("samples", [1, 63, 64, 65])
def test_any_length_has_a_frame_each_hop(samples: int) -> None:
    found = ConstantQ(RATE, **SIZES)(torch.ones(1, samples))
    assert found.shape == (1, math.ceil(samples / 64), 48) and found.isfinite().all()
