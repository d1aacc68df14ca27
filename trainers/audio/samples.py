"""Recordings as samples: random segments for training, whole recordings for evaluation."""

import itertools
import math
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from trainers.audio.files import MARGIN_SECONDS, AudioFile, read, resampled, within_full_scale
from trainers.audio.transforms import SegmentTransform
from trainers.data.files import FileStore, named
from trainers.data.order import Part, shares
from trainers.data.samples import EvaluationSamples, TrainingSamples
from vqkit.media.channels import (
    ChannelMean,
    Downmix,
    as_floats,
    channel_powers,
    level_db,
    lost_in_mixture,
    with_channels,
)

ATTEMPTS = 8  # draws of a segment before the loudest of them is taken


class AudioStore(FileStore[AudioFile]):
    """Decoded recordings of one folder; of those beyond the memory budget parts are read when needed.

    What is kept are the file's own samples, in 16 bits where these hold them exactly: a segment is the same whether its
    file was in memory or not.

    Args:
        root: The folder.
        files: Its
        sample_rate: Hz of what is handed out.
        channels: Channels of what is handed out.
        longest_seconds: Nothing behind this time is needed; None is all.
        downmix: How several channels become one; None is their mean. Recordings that lose most of their sound by it
            are named in a warning: those in memory once, the others when they are handed out whole.
    """

    def __init__(
        self,
        root: Path,
        files: list[AudioFile],
        *,
        sample_rate: int,
        channels: int,
        longest_seconds: float | None = None,
        downmix: Downmix | None = None,
    ) -> None:
        super().__init__(root, files)
        self.sample_rate = sample_rate
        self.channels = channels
        self.longest_seconds = longest_seconds
        self.downmix = ChannelMean() if downmix is None else downmix
        self._lost: dict[str, str] = {}

    def frames(self, recording: AudioFile) -> int:
        """Samples per channel that are needed of a recording, at its own rate."""
        if self.longest_seconds is None:
            return recording.frames
        return min(recording.frames, round(self.longest_seconds * recording.sample_rate))

    def size(self, file: AudioFile) -> int:
        """Bytes of the samples."""
        return self.frames(file) * file.channels * numpy.dtype(file.dtype).itemsize

    def decode(self, file: AudioFile) -> numpy.ndarray:
        """All samples of a file, (frames, channels), at its own rate."""
        samples = read(self.path(file), file, frames=self.frames(file))
        self._compare(file, samples)
        return samples

    def _compare(self, file: AudioFile, samples: numpy.ndarray) -> None:
        if not file.channels > self.channels == 1:
            return
        floats = as_floats(samples)
        mixed = channel_powers(self.downmix(floats))
        lost = lost_in_mixture(channel_powers(floats), float(mixed.max()))
        if lost is not None:
            self._lost[self.shown(file)] = lost

    def preload(self, budget: int) -> tuple[int, dict[str, str]]:
        """See `FileStore`; warns of recordings that lose most of their sound when their channels become one."""
        left = super().preload(budget)
        if self._lost:
            rank_zero_warn(
                f"{len(self._lost)} of {len(self._decoded)} recordings lose most of their sound when their channels "
                f"become one: {named(self._lost)}. Choose another downmix: trainers.audio.LoudestChannel, or OneChannel"
            )
        return left

    def part(self, recording: AudioFile, start: int, frames: int) -> numpy.ndarray:
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
            kept = read(self.path(recording), recording, start=start, frames=frames)
            start = 0
        return as_floats(kept[start : start + frames])

    def wave(self, recording: AudioFile, start: int = 0, samples: int | None = None) -> numpy.ndarray:
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
            whole = self.part(recording, 0, end)
            if self.kept(recording) is None and self.shown(recording) not in self._lost:
                self._compare(recording, whole)
                if self.shown(recording) in self._lost:
                    warnings.warn(
                        f"{self.shown(recording)} loses most of its sound: {self._lost[self.shown(recording)]}. Choose "
                        "another downmix",
                        stacklevel=2,
                    )
            return resampled(with_channels(whole, self.channels, self.downmix), own, self.sample_rate)
        margin = 0 if own == self.sample_rate else round(MARGIN_SECONDS * own)
        # The grid of the resampled part is that of the resampled whole when it begins at a multiple of this.
        step = own // math.gcd(own, self.sample_rate)
        first = max(0, start - margin) // step * step
        last = min(end, start + -(-samples * own // self.sample_rate) + margin)
        chunk = with_channels(self.part(recording, first, last - first), self.channels, self.downmix)
        before = round((start - first) * self.sample_rate / own)
        return resampled(chunk, own, self.sample_rate)[before : before + samples]


class TrainingSegments(TrainingSamples[AudioFile]):
    """Random segments; see `TrainingSamples`.

    A recording gives as many segments a pass as fit into it, at least one, so every second of sound is as likely as
    every other. One that is shorter than a segment is followed by silence. A segment below `silence_db` is drawn again,
    a few times; then the loudest is taken.

    Args:
        store: The recordings.
        segment_samples: Samples in a segment.
        silence_db: Least root mean square in dB relative to full scale; None takes every segment.
        transforms: What is done to each segment, in order.
        loudness_db: Root mean square to which each segment is brought, in dB relative to full scale; None leaves it.
        gain_db: Least and greatest random gain in dB, on top of that.
        repeats: Segments per segment's length of sound and pass.
        seed: Seed of the segments.
        weights: Of the corpora that the recordings are of, in their order: a pass has as many segments as without, and
            of each corpus its share. None takes each segment once.
    """

    store: AudioStore

    def __init__(
        self,
        store: AudioStore,
        *,
        segment_samples: int,
        silence_db: float | None,
        loudness_db: float | None,
        gain_db: tuple[float, float],
        repeats: int,
        seed: int,
        transforms: Sequence[SegmentTransform] = (),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__(store, repeats=repeats, seed=seed)
        self.transforms = tuple(transforms)
        self.weights = weights
        self.segment_samples = segment_samples
        self.silence_db = silence_db
        self.loudness_db = loudness_db
        self.gain_db = gain_db

    @cached_property
    def _bounds(self) -> list[int]:
        """Behind the last sample of each file; read when the files are final, those that cannot be decoded left out."""
        seconds = self.segment_samples / self.store.sample_rate
        return list(
            itertools.accumulate(self.repeats * max(1, int(file.seconds / seconds)) for file in self.store.files)
        )

    def __len__(self) -> int:
        return self._bounds[-1] if self._bounds else 0

    def file_number(self, sample: int) -> int:
        """The first file has the first samples, as many as its length gives it."""
        return bisect_right(self._bounds, sample)

    @cached_property
    def _spans(self) -> dict[int, tuple[int, int]]:
        """For each corpus the number of its first file, and the one behind its last; read when the files are final."""
        numbers = [file.corpus for file in self.store.files]
        return {corpus: (bisect_left(numbers, corpus), bisect_right(numbers, corpus)) for corpus in set(numbers)}

    def parts(self) -> list[Part] | None:
        """See `TrainingSamples`; ValueError where a corpus has no segment to give, or gets none."""
        if self.weights is None:
            return None
        bounds = [0, *self._bounds]
        spans = [self._spans.get(corpus, (0, 0)) for corpus in range(len(self.weights))]
        samples = [bounds[end] - bounds[start] for start, end in spans]
        parts = [Part(*both) for both in zip(samples, shares(self.weights, len(self)), strict=True)]
        for number, (part, weight) in enumerate(zip(parts, self.weights, strict=True)):
            if not part.samples:
                raise ValueError(f"No training recording of corpus {number} (from 0) can be decoded: add some.")
            if not part.drawn:
                raise ValueError(
                    f"weight={weight} of corpus {number} (from 0) is less than one of the {len(self)} segments of a "
                    "pass: raise it, or repeats"
                )
        return parts

    def replacements(self, first: int) -> list[AudioFile]:
        """See `TrainingSamples`; those of the same corpus."""
        files = self.store.files
        start, end = self._spans[files[first].corpus]
        return files[first:end] + files[start:first]

    def draw(self, file: AudioFile, generator: numpy.random.Generator) -> Tensor:
        """One segment, (channels, segment_samples) float32 in [-1, 1]."""
        gain_db = generator.uniform(*self.gain_db)
        needed = -(-self.segment_samples * file.sample_rate // self.store.sample_rate)
        places = max(1, file.frames - needed + 1)
        loudest, level = numpy.zeros((0, self.store.channels), numpy.float32), -numpy.inf
        for _ in range(ATTEMPTS):
            wave = self.store.wave(file, int(generator.random() * places), self.segment_samples)
            found = level_db(wave)
            if found > level or not len(loudest):
                loudest, level = wave, found
            if self.silence_db is None or level >= self.silence_db or places == 1:
                break
        for transform in self.transforms:
            loudest = transform(loudest, self.store.sample_rate, generator)
        return self._finished(loudest, level_db(loudest) if self.transforms else level, gain_db)

    def _finished(self, wave: numpy.ndarray, level: float, gain_db: float) -> Tensor:
        """Brings (samples, channels) of a known level to the loudness, within full scale, and to the full length."""
        if self.loudness_db is not None and numpy.isfinite(level):
            gain_db += self.loudness_db - level
        wave = within_full_scale(wave * numpy.float32(10 ** (gain_db / 20)))
        missing = self.segment_samples - len(wave)
        return torch.from_numpy(numpy.ascontiguousarray(numpy.pad(wave, ((0, missing), (0, 0))).T))


class WholeRecordings(EvaluationSamples[AudioFile]):
    """Every recording as a whole, or the beginning of it that the store hands out; see `EvaluationSamples`."""

    store: AudioStore

    def whole(self, file: AudioFile) -> Tensor:
        """(channels, samples) float32 in [-1, 1]."""
        wave = within_full_scale(self.store.wave(file))
        return torch.from_numpy(numpy.ascontiguousarray(wave.T))
