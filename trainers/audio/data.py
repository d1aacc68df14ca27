"""Folders and lists of recordings as training, validation and prediction data."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainers.audio.corpora import Corpora, Corpus
from trainers.audio.files import AudioFile, scan
from trainers.audio.samples import AudioStore, TrainingSegments, WholeRecordings
from trainers.audio.transforms import LoudnessNormalization, SegmentTransform
from trainers.data.checks import check_least
from trainers.data.files import Folder
from trainers.data.folder import FolderData
from vqkit.media.channels import ChannelMean, Downmix


class AudioFolderData(FolderData[AudioFile]):
    """Recordings in a folder of any size and nesting, or in a list, in any format that libsndfile reads (wav, flac,
    ogg, opus, mp3, aiff and others; m4a, aac, mp4, webm where torchcodec is installed).

    A batch is a dict: `"audio"`, (B, channels, samples) float32 in [-1, 1]; `"name"`, a list of B file names relative
    to the root; `"lengths"`, a list of B numbers of samples. Corrupt, empty and too short files, and those with numbers
    that are not finite, are skipped, counted and named (`skipped`, `describe`).

    Training sees random segments, an endless stream that a checkpoint continues exactly (`TrainingLoader`). Long
    recordings give more of them. Validation, test and prediction see whole recordings, one in a batch (where the number
    of files cannot be divided among ranks, two in some batches, the shorter one followed by silence beyond its length).

    Files are resampled by soxr; several channels become one by `downmix`, one becomes several by copies. A
    warning names recordings of which most is lost by it: stereo whose sides cancel, or with sound on one side.

    Without `validation_root`, and without a manifest that divides, the split is decided by each file's content: it does
    not change when files are renamed, moved or added, and identical files are on one side. To keep speakers apart give
    folders, or a manifest.

    Several corpora are mixed by weights: a pass has of each its share of the segments, whatever its size, and so has
    any stretch of the stream, on any number of ranks (`trainers.data.order`). Each is divided and validated by itself.

    Args:
        root: Folder of the recordings; None with `manifest` or `corpora`.
        manifest: List of the recordings instead of a folder: .txt, .csv, .tsv or .jsonl, with paths relative to the
            list and, if wanted, a `split` of "train" or "validation" (`trainers.data.manifests`).
        corpora: Several folders or lists instead of one, with their weights: see `Corpus`.
        validation_root: Folder of the validation recordings; None divides `root`.
        predict_root: Folder of the recordings to predict; None is `root` or the manifest.
        sample_rate: Hz; everything is resampled to it.
        channels: Channels.
        downmix: How several channels become one: `ChannelMean`, `OneChannel` or `LoudestChannel` of `trainers.audio`,
            or a `Downmix` of your own; None is the mean.
        segment_seconds: Duration of a training segment.
        min_seconds: Shorter recordings are skipped. Those that are shorter than a segment are followed by silence.
        silence_db: Segments whose root mean square is lower, in dB relative to full scale, are drawn again a few
            times; None takes every segment.
        transforms: What is done to every training segment, in order: `LoudnessNormalization`, `PhaseShift` and
            `PolarityFlip` of `trainers.audio`, or a `SegmentTransform` of your own. What exceeds full scale in the end
            is turned down.
        loudness_db: Root mean square of every training segment, in dB relative to full scale; None leaves the loudness
            as it is. Less where the peak would leave full scale: nothing is clipped.
        gain_db: Least and greatest random gain of training segments in dB, within full scale.
        max_evaluation_seconds: Only the beginning of longer recordings is evaluated and predicted; None is all.
        arguments: Of `FolderData`; `repeats` are per `segment_seconds` of sound.

    Raises:
        ValueError: At construction for a missing folder, a bad line of the manifest or an argument out of range; at
            `setup` for too few recordings.
    """

    noun = "recording"
    overfit_hint = " that are as long as a segment, and no random gain"
    evaluation_batch_size = 1

    def __init__(
        self,
        root: str | None = None,
        *,
        manifest: str | None = None,
        corpora: list[Corpus] | None = None,
        validation_root: str | None = None,
        predict_root: str | None = None,
        sample_rate: int = 16000,
        channels: int = 1,
        downmix: Downmix | None = None,
        segment_seconds: float = 1.0,
        min_seconds: float = 0.5,
        silence_db: float | None = -50.0,
        transforms: list[SegmentTransform] | None = None,
        loudness_db: float | None = None,
        gain_db: tuple[float, float] = (0.0, 0.0),
        max_evaluation_seconds: float | None = None,
        **arguments: Any,
    ) -> None:
        if corpora is None:
            self._corpora = None
            self._corpus = Corpus(root, manifest, validation_root)
            folder = str(self._corpus.folder)
        elif (root, manifest, validation_root) == (None, None, None):
            self._corpora = Corpora(corpora)
            folder = str(self._corpora.root)
        else:
            raise ValueError(
                f"Give corpora alone, got root={root!r}, manifest={manifest!r} and validation_root={validation_root!r} "
                "beside: each corpus has them for itself."
            )
        super().__init__(root=folder, validation_root=validation_root, predict_root=predict_root, **arguments)
        check_least({"sample_rate": (sample_rate, 1), "channels": (channels, 1)})
        if round(segment_seconds * sample_rate) < 1:
            raise ValueError(f"segment_seconds must hold a sample, got {segment_seconds} at {sample_rate} Hz.")
        if min_seconds < 0:
            raise ValueError(f"min_seconds must not be negative, got {min_seconds}.")
        if max_evaluation_seconds is not None and max_evaluation_seconds <= 0:
            raise ValueError(f"max_evaluation_seconds must be positive or None, got {max_evaluation_seconds}.")
        for name, level in (("silence_db", silence_db), ("loudness_db", loudness_db)):
            if level is not None and level > 0:
                raise ValueError(f"{name} is relative to full scale and must not be above 0, got {level}.")
        if not gain_db[0] <= gain_db[1]:
            raise ValueError(f"gain_db must be (least, greatest), got {gain_db}.")
        self.transforms = list(transforms or ())
        for transform in self.transforms:
            transform.check(channels)
        if loudness_db is not None and any(isinstance(each, LoudnessNormalization) for each in self.transforms):
            raise ValueError(f"loudness_db={loudness_db} and LoudnessNormalization set the same level: leave one.")
        listing = "manifest" if corpora is None and manifest is not None else "corpora" if corpora is not None else None
        for name, other in (("validation_root", validation_root), ("predict_root", predict_root)):
            if listing is not None and other is not None and Path(other).expanduser() == self.root:
                raise ValueError(
                    f"{name}={other!r} is the folder of the {listing}, which stands for the files that are listed: "
                    f"move the {listing}, or leave the argument out to take these."
                )
        self.sample_rate = sample_rate
        self.channels = channels
        self.downmix = ChannelMean() if downmix is None else downmix
        self.segment_seconds = segment_seconds
        self.min_seconds = min_seconds
        self.silence_db = silence_db
        self.loudness_db = loudness_db
        self.gain_db = (float(gain_db[0]), float(gain_db[1]))
        self.max_evaluation_seconds = max_evaluation_seconds

    @property
    def segment_samples(self) -> int:
        """Samples of a training segment."""
        return round(self.segment_seconds * self.sample_rate)

    def find(self, root: Path) -> Folder[AudioFile]:
        """Finds the recordings under a folder, or those of the manifest or the corpora, by their headers."""
        if root != self.root:
            return self._scan(root)
        return self._scan(root, self._corpus.paths) if self._corpora is None else self._corpora.find(self._scan)

    def _scan(self, root: Path, paths: Sequence[Path] | None = None) -> Folder[AudioFile]:
        return scan(root, channels=self.channels, min_seconds=self.min_seconds, files=paths)

    def _split(self) -> tuple[list[AudioFile], list[AudioFile]]:
        if self._sides is None and self.validation_root is None:
            files = self._folder(self.root).files
            if self._corpora is None:
                self._sides = self._corpus.divide(files, self.root, self.validation_fraction)
            else:
                *sides, skipped = self._corpora.divide(files, self.validation_fraction, self._scan)
                self._sides = (sides[0], sides[1])
                self.skipped.update(skipped)
            self._announce_shared(*self._sides)
        return super()._split()

    def describe(self) -> str:
        """The corpora and their shares of the training too."""
        described = super().describe()
        if self._corpora is None or self._corpora.weights is None:
            return described
        total = sum(self._corpora.weights)
        shares = zip(self._corpora.weights, self._corpora.corpora, strict=True)
        return f"{described}; of the segments " + ", ".join(f"{w / total:.1%} of {one.name}" for w, one in shares)

    def least(self) -> str:
        """The least duration, in words."""
        return f"at least {self.min_seconds:g} s, or lower min_seconds"

    def training_samples(self, root: Path, files: list[AudioFile]) -> TrainingSegments:
        """Random segments."""
        return TrainingSegments(
            AudioStore(root, files, sample_rate=self.sample_rate, channels=self.channels, downmix=self.downmix),
            segment_samples=self.segment_samples,
            silence_db=self.silence_db,
            loudness_db=self.loudness_db,
            gain_db=self.gain_db,
            repeats=self.repeats,
            seed=self.seed,
            transforms=self.transforms,
            weights=None if self._corpora is None else self._corpora.weights,
        )

    def evaluation_samples(self, root: Path, files: list[AudioFile]) -> WholeRecordings:
        """Recordings as far as they are evaluated."""
        return WholeRecordings(
            AudioStore(
                root,
                files,
                sample_rate=self.sample_rate,
                channels=self.channels,
                longest_seconds=self.max_evaluation_seconds,
                downmix=self.downmix,
            )
        )

    @staticmethod
    def join(samples: list[Tensor], files: list[AudioFile]) -> dict[str, Any]:
        """`audio`: (B, channels, longest), shorter ones followed by silence; `lengths`: of each without it."""
        lengths = [sample.shape[-1] for sample in samples]
        filled = [functional.pad(sample, (0, max(lengths) - sample.shape[-1])) for sample in samples]
        return {"audio": torch.stack(filled), "lengths": lengths}

    def extent(self, files: list[AudioFile]) -> str:
        """Duration, sample rates and channels, in words."""
        minutes = sum(file.seconds for file in files) / 60
        shortest, longest = (bound(file.seconds for file in files) for bound in (min, max))
        rates = ", ".join(f"{rate} Hz" for rate, _ in Counter(file.sample_rate for file in files).most_common())
        widths = ", ".join(str(width) for width in sorted({file.channels for file in files}))
        return f"{minutes:.1f} min, each {shortest:.1f} to {longest:.1f} s, {rates}, {widths} channel(s)"

    def cut_from_prediction(self, files: list[AudioFile]) -> str:
        """How many are longer than what is encoded of them."""
        longest = math.inf if self.max_evaluation_seconds is None else self.max_evaluation_seconds
        cut = sum(file.seconds > longest for file in files)
        return f"of {cut} only the first {longest:g} s are encoded" if cut else ""

    def settings_of_prediction(self) -> str:
        """Sample rate, channels, the longest duration, and the downmix where it is not the mean."""
        settings = f"{self.sample_rate} {self.channels} {self.max_evaluation_seconds}"
        if type(self.downmix) is ChannelMean:
            return settings
        return f"{settings} {type(self.downmix).__qualname__} {vars(self.downmix)}"
