"""An utterance with too little speech for STOI enters the mean as 1e-5, as if not a word of it could be understood.

Seen in: pystoi 0.4.1 (measured: a warning, and 1e-5, below 30 frames of speech), which torchmetrics 1.9.0 averages.
Avoided since 0.1.0: such utterances are left out of the mean, counted in `stoi_left_out`, and named in the protocol.
"""

import warnings

import pytest
import torch
from torchmetrics.functional.audio import short_time_objective_intelligibility

from trainers.audio.metrics import AudioMetrics, protocol

RATE = 16000


def utterances() -> list[torch.Tensor]:
    """One second of modulated noise, and one in which a quarter of a second is not silent."""
    generator = torch.Generator().manual_seed(0)
    speech = torch.randn(RATE, generator=generator) * (1.1 + torch.sin(torch.arange(RATE) / 400)) * 0.05
    blip = torch.zeros(RATE)
    blip[:4000] = speech[:4000]
    return [speech, blip]


def test_vqkit_does_not_have_the_fault():
    metrics = AudioMetrics(2, sample_rate=RATE, frame_rate=50.0, measures=["stoi", "mel_distance"])
    for wave in utterances():
        metrics.update(wave[None, None], wave[None, None], torch.zeros(1, 4, dtype=torch.int64))
    figures = metrics.compute()
    assert figures["stoi"] == pytest.approx(1, abs=1e-4)
    assert figures["stoi_left_out"] == 1 and figures["utterances"] == 2
    assert "mel_distance_left_out" not in figures
    assert "left out here: 1 of 2" in protocol(figures, sample_rate=RATE, measures=["stoi"])["stoi"]


def test_the_check_catches_the_fault():
    waves = torch.stack(utterances())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mean = short_time_objective_intelligibility(waves, waves, RATE).mean()
    assert float(mean) == pytest.approx(0.5, abs=1e-3), "of two perfect reconstructions"
