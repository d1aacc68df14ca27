"""Recordings as samples: random segments for training, whole utterances for evaluation."""

import itertools
import math
from bisect import bisect_right
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from trainers.audio import recordings
from trainers.audio.recordings import Recording
from trainers.data.files import FileStore
from trainers.data.sampler import sample_generator

ATTEMPTS = 8  # draws of a segment before the loudest of them is taken


class RecordingStore(FileStore[Recording]):
    """Decoded recordings of one folder, as far as a memory budget reaches; of the rest parts are read when needed.

    What is kept are the file's own samples, in 16 bits where these hold them exactly: a segment is the same whether its
    file was in memory or not.

    Args:
        root: The folder.
        files: Its recordings.
        sample_rate: Hz of what is handed out.
        channels: Channels of what is handed out.
        longest_seconds: Nothing behind this time is needed; None is all.
    """

    def __init__(
        self,
        root: Path,
        files: list[Recording],
        *,
        sample_rate: int,
        channels: int,
        longest_seconds: float | None = None,
    ) -> None:
        super().__init__(root, files)
        self.sample_rate = sample_rate
        self.channels = channels
        self.longest_seconds = longest_seconds

    def frames(self, recording: Recording) -> int:
        """Samples per channel that are needed of a recording, at its own rate."""
        if self.longest_seconds is None:
            return recording.frames
        return min(recording.frames, round(self.longest_seconds * recording.sample_rate))

    def size(self, file: Recording) -> int:
        """Bytes of the samples."""
        return self.frames(file) * file.channels * numpy.dtype(file.dtype).itemsize

    def decode(self, file: Recording) -> numpy.ndarray:
        """All samples of a file, (frames, channels), at its own rate."""
        return recordings.read(self.root / file.name, file, frames=self.frames(file))

    def part(self, recording: Recording, start: int, frames: int) -> numpy.ndarray:
        """A part of a recording at its own rate.

        Args:
            recording: The recording.
            start: Its first sample.
            frames: Its samples.

        Returns:
            (frames, own channels) float32.

        Raises:
            ValueError: If it cannot be decoded; the message is the reason.
        """
        kept = self.kept(recording)
        if kept is None:
            kept = recordings.read(self.root / recording.name, recording, start=start, frames=frames)
            start = 0
        return recordings.as_floats(kept[start : start + frames])

    def wave(self, recording: Recording, start: int = 0, samples: int | None = None) -> numpy.ndarray:
        """A part of a recording as it is handed out.

        Args:
            recording: The recording.
            start: Where the part begins, in samples of the recording's own rate.
            samples: Samples wanted, at the store's rate; None is all that is needed of the recording.

        Returns:
            (samples, channels) float32 at the store's rate; fewer where the recording ends.
        """
        own = recording.sample_rate
        end = self.frames(recording)
        if samples is None:
            whole = recordings.with_channels(self.part(recording, 0, end), self.channels)
            return recordings.resampled(whole, own, self.sample_rate)
        margin = 0 if own == self.sample_rate else round(recordings.MARGIN_SECONDS * own)
        # The grid of the resampled part is that of the resampled whole when it begins at a multiple of this.
        step = own // math.gcd(own, self.sample_rate)
        first = max(0, start - margin) // step * step
        last = min(end, start + -(-samples * own // self.sample_rate) + margin)
        chunk = recordings.with_channels(self.part(recording, first, last - first), self.channels)
        before = round((start - first) * self.sample_rate / own)
        return recordings.resampled(chunk, own, self.sample_rate)[before : before + samples]


class TrainingSegments(Dataset[dict[str, Any]]):
    """Random segments; what a sample is depends on the seed, the pass and the sample's number, on nothing else.

    A recording gives as many segments a pass as fit into it, at least one, so every second of sound is as likely as
    every other. One that is shorter than a segment is followed by silence. A segment below `silence_db` is drawn again,
    a few times; then the loudest is taken. A file that turns out to be unreadable is replaced by the next one that can
    be read, and named in the sample.

    Args:
        store: The recordings.
        segment_samples: Samples in a segment.
        silence_db: Least root mean square in dB relative to full scale; None takes every segment.
        loudness_db: Root mean square to which each segment is brought, in dB relative to full scale; None leaves it.
        gain_db: Least and greatest random gain in dB, on top of that.
        repeats: Segments per segment's length of sound and pass.
        seed: Seed of the segments.
    """

    def __init__(
        self,
        store: RecordingStore,
        *,
        segment_samples: int,
        silence_db: float | None,
        loudness_db: float | None,
        gain_db: tuple[float, float],
        repeats: int,
        seed: int,
    ) -> None:
        self.store = store
        self.segment_samples = segment_samples
        self.silence_db = silence_db
        self.loudness_db = loudness_db
        self.gain_db = gain_db
        self.seed = seed
        seconds = segment_samples / store.sample_rate
        self._bounds = list(
            itertools.accumulate(repeats * max(1, int(recording.seconds / seconds)) for recording in store.files)
        )

    def __len__(self) -> int:
        return self._bounds[-1] if self._bounds else 0

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, sample = key
        files = self.store.files
        chosen = bisect_right(self._bounds, sample)
        failed: dict[str, str] = {}
        for offset in range(len(files)):
            recording = files[(chosen + offset) % len(files)]
            try:
                segment = self.segment(recording, sample_generator(self.seed, epoch, sample))
            except ValueError as error:
                failed[self.store.path(recording)] = str(error)
                continue
            return {"audio": segment, "name": recording.name, "failed": failed}
        raise ValueError(f"None of the {len(files)} training recordings under {self.store.root} can be decoded.")

    def segment(self, recording: Recording, generator: numpy.random.Generator) -> Tensor:
        """One segment of a recording.

        Args:
            recording: The recording.
            generator: Where its place and its gain are drawn from.

        Returns:
            (channels, segment_samples) float32 in [-1, 1].
        """
        gain_db = generator.uniform(*self.gain_db)
        needed = -(-self.segment_samples * recording.sample_rate // self.store.sample_rate)
        places = max(1, recording.frames - needed + 1)
        loudest, level = numpy.zeros((0, self.store.channels), numpy.float32), -numpy.inf
        for _ in range(ATTEMPTS):
            wave = self.store.wave(recording, int(generator.random() * places), self.segment_samples)
            found = recordings.level_db(wave)
            if found > level or not len(loudest):
                loudest, level = wave, found
            if self.silence_db is None or level >= self.silence_db or places == 1:
                break
        return self.finished(loudest, level, gain_db)

    def finished(self, wave: numpy.ndarray, level: float, gain_db: float) -> Tensor:
        """Brings (samples, channels) of a known level to the loudness, within full scale, and to the full length."""
        if self.loudness_db is not None and numpy.isfinite(level):
            gain_db += self.loudness_db - level
        wave = recordings.within_full_scale(wave * numpy.float32(10 ** (gain_db / 20)))
        missing = self.segment_samples - len(wave)
        return torch.from_numpy(numpy.ascontiguousarray(numpy.pad(wave, ((0, missing), (0, 0))).T))


class EvaluationUtterances(Dataset[dict[str, Any]]):
    """Every recording as a whole, or the beginning of it that the store hands out.

    A file that turns out to be unreadable gives a sample without audio, which the loader leaves out and names.

    Args:
        store: The recordings.
    """

    def __init__(self, store: RecordingStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        recording = self.store.files[index]
        try:
            wave = recordings.within_full_scale(self.store.wave(recording))
        except ValueError as error:
            return {"failed": {self.store.path(recording): str(error)}}
        return {"audio": torch.from_numpy(numpy.ascontiguousarray(wave.T)), "name": recording.name, "failed": {}}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples; shorter ones are followed by silence, and `lengths` has the samples of each without it.

    Those without audio leave only their reason.
    """
    failed = {path: reason for sample in samples for path, reason in sample["failed"].items()}
    usable = [sample for sample in samples if "audio" in sample]
    if not usable:
        return {"failed": failed}
    lengths = [sample["audio"].shape[-1] for sample in usable]
    audio = [functional.pad(sample["audio"], (0, max(lengths) - sample["audio"].shape[-1])) for sample in usable]
    names = [sample["name"] for sample in usable]
    return {"audio": torch.stack(audio), "lengths": lengths, "name": names, "failed": failed}
