"""A random generator that a data set holds is copied into every worker process: all of them draw the same segments.

Seen in: pytorch#3880, CenterNet#233, Cutout#17 (crops and augmentations repeat in every worker, and in every pass).
Avoided since 0.1.0: a sample draws from a generator of its own, made of the seed, the pass and the sample's number.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import soundfile
import torch

from trainers.audio.data import AudioFolderData
from trainers.audio.files import scan
from trainers.audio.samples import AudioStore, TrainingSegments
from trainers.data.sampler import TrainingLoader
from trainers.data.samples import collate


class HoldsItsGenerator(TrainingSegments):
    """Draws from one generator, that of the data set."""

    def __init__(self, store: AudioStore, **options: Any) -> None:
        super().__init__(store, **options)
        self.generator = numpy.random.default_rng(self.seed)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        file = self.store.files[0]
        return {"sample": self.draw(file, self.generator), "file": file, "failed": {}}


def check(folder: Path, segments: type[TrainingSegments]) -> None:
    noise = numpy.random.default_rng(0).uniform(-0.5, 0.5, 40000)
    soundfile.write(folder / "a.wav", noise, 8000)
    files = scan(folder, channels=1, min_seconds=0).files
    dataset = segments(
        AudioStore(folder, files, sample_rate=8000, channels=1),
        segment_samples=2000,
        silence_db=None,
        loudness_db=None,
        gain_db=(0.0, 0.0),
        repeats=1,
        seed=0,
    )
    join = partial(collate, AudioFolderData.join)
    loader = TrainingLoader(dataset, batch_size=5, seed=0, num_workers=2, collate=join)
    drawn = torch.cat([batch["audio"] for _ in range(2) for batch in loader])  # two passes of 20 samples
    assert len(torch.unique(drawn.flatten(1), dim=0)) == len(drawn) == 40


def test_vqkit_does_not_have_the_fault(tmp_path: Path) -> None:
    check(tmp_path, TrainingSegments)


def test_the_check_catches_the_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check(tmp_path, HoldsItsGenerator)
