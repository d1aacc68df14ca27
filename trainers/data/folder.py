"""Folders of files as training, validation and prediction data: what all kinds of files have in common."""

import hashlib
import warnings
from abc import abstractmethod
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Generic

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from trainers.data.checks import check_least
from trainers.data.files import File, Folder, named, split
from trainers.data.left_out import LeftOut, by_reason
from trainers.data.sampler import EvaluationLoader, TrainingLoader
from trainers.data.samples import EvaluationSamples, TrainingSamples, collate
from trainers.data.stream import StreamData
from vqkit import distributed
from vqkit.tokens.names import escaped


class FolderData(StreamData, Generic[File]):
    """Files under a root, divided, loaded, and an endless training stream that a checkpoint continues exactly.

    A subclass says how files are found and made into samples.

    Args:
        root: Folder of the files.
        cache_bytes: Memory for decoded files, which are then read once, at the start (and broken ones found there).
            Held once per rank; worker processes share it where processes are forked (Linux).
        arguments: Of `StreamData`.

    Attributes:
        skipped: Why each file that cannot be used is left out or replaced, by its path. All of it is written to
            `left_out_STAGE.json` (fit, validate, test, predict) in the trainer's `default_root_dir`.

    Raises:
        ValueError: At construction for a missing folder or an argument out of range; at `setup` for too few files.
    """

    overfit_hint: ClassVar[str]  # the settings that give the same training samples in every epoch

    def __init__(self, root: str, *, cache_bytes: int = 1024 * 2**20, **arguments: Any) -> None:
        super().__init__(root, **arguments)
        for name in ("root", "validation_root", "predict_root"):
            folder = getattr(self, name)
            if folder is not None and not folder.is_dir():
                raise ValueError(
                    f"{name}={str(folder)!r} is not a folder. Give the folder that holds the {self.noun}s."
                )
        check_least({"cache_bytes": (cache_bytes, 0)})
        self.cache_bytes = cache_bytes
        self._left_out = LeftOut()
        self.skipped = self._left_out.skipped
        self._folders: dict[Path, Folder[File]] = {}
        self._sides: tuple[list[File], list[File]] | None = None
        self._samples: tuple[TrainingSamples[File], EvaluationSamples[File]] | None = None

    # ---- what a kind of files adds

    @property
    def evaluation_batch_size(self) -> int:
        """Samples in a batch of validation or prediction."""
        return self.batch_size

    @abstractmethod
    def find(self, root: Path) -> Folder[File]:
        """Finds the usable files under a folder without decoding them."""

    @abstractmethod
    def least(self) -> str:
        """In words what a file must have to be usable, and the argument that lowers it."""

    @abstractmethod
    def training_samples(self, root: Path, files: list[File]) -> TrainingSamples[File]:
        """Random samples of training files."""

    @abstractmethod
    def evaluation_samples(self, root: Path, files: list[File]) -> EvaluationSamples[File]:
        """One sample of each file that validates."""

    def prediction_samples(self, root: Path, files: list[File]) -> EvaluationSamples[File]:
        """One sample of each file that is predicted; those of evaluation unless a subclass says otherwise."""
        return self.evaluation_samples(root, files)

    @staticmethod
    @abstractmethod
    def join(samples: list[Tensor], files: list[File]) -> dict[str, Any]:
        """The tensors of a batch."""

    @abstractmethod
    def extent(self, files: list[File]) -> str:
        """In words how much there is, and of what sizes."""

    def cut_from_prediction(self, files: list[File]) -> str:
        """In words what prediction leaves out of the files, if it takes parts."""
        return ""

    @abstractmethod
    def settings_of_prediction(self) -> str:
        """What else than the files decides what prediction reads."""

    def units(self, files: list[File]) -> list[str]:
        """For each file 16 hexadecimal digits, equal where files stay together when they are divided."""
        return [file.content for file in files]

    # ---- what there is

    def _folder(self, root: Path) -> Folder[File]:
        if root not in self._folders:
            folder = self.find(root)
            self._folders[root] = folder
            self.skipped.update(folder.skipped)
            if not folder.files:
                raise ValueError(
                    f"There is no usable {self.noun} under {root}: {len(folder.skipped)} left out"
                    f"{' (' + by_reason(folder.skipped) + ')' if folder.skipped else ''}, {folder.other_files} other "
                    f"files. Give a folder with {self.noun}s of {self.least()}."
                )
        return self._folders[root]

    def _split(self) -> tuple[list[File], list[File]]:
        """The training and the validation files."""
        if self._sides is None:
            files = self._folder(self.root).files
            if self.validation_root is None:
                self._sides = split(files, self.units(files), self.validation_fraction, self.root, noun=self.noun)
            else:
                self._sides = files, self._folder(self.validation_root).files
            self._announce_shared(*self._sides)
        return self._sides

    def _announce_shared(self, training: list[File], validation: list[File]) -> None:
        contents = {file.content for file in training}
        shared = [file.name for file in validation if file.content in contents]
        if shared:
            rank_zero_warn(
                f"{len(shared)} of {len(validation)} validation {self.noun}s are training {self.noun}s too, "
                f"{shared[0]} first: validation will look better than it is. Remove them from one of the two sides."
            )

    def _prepare(self) -> tuple[TrainingSamples[File], EvaluationSamples[File]]:
        """Training and validation samples, with their files decoded as far as the cache reaches."""
        if self._samples is None:
            training, validation = self._split()
            samples = (
                self.training_samples(self.root, training),
                self.evaluation_samples(self.validation_root or self.root, validation),
            )
            budget = self.cache_bytes
            failed: dict[str, str] = {}
            for store in (samples[1].store, samples[0].store):
                budget, broken = store.preload(budget)
                failed |= broken
            self.skipped.update(failed)
            for name, store in (("training", samples[0].store), ("validation", samples[1].store)):
                if not store.files:
                    raise ValueError(f"No {name} {self.noun} can be decoded: {named(failed)}. Add {self.noun}s.")
            self._samples = samples
        return self._samples

    def describe(self) -> str:
        """What was found, in a line: files, sizes, split. Decodes none of them."""
        samples = self._samples
        training, validation = self._split() if samples is None else (samples[0].store.files, samples[1].store.files)
        found = training + validation
        return (
            f"{len(found)} {self.noun}s under {escaped(str(self.root))}"
            + ("" if self.validation_root is None else f" and {escaped(str(self.validation_root))}")
            + f", {self.extent(found)}: {len(training)} train"
            + (f" x {self.repeats}" if self.repeats > 1 else "")
            + f", {len(validation)} validate"
        )

    def facts(self) -> dict[str, Any]:
        """How many files train and validate, and a hash of their names, contents and sides."""
        sides = dict(zip(("training", "validation"), self._split(), strict=True))
        listing = [f"{side} {file.name} {file.content}" for side, files in sides.items() for file in files]
        counts = {f"{side}_files": len(files) for side, files in sides.items()}
        return {**counts, "hash": hashlib.sha256("\n".join(listing).encode()).hexdigest()}

    def evaluation_hash(self) -> str:
        """A hash of the contents of the files that were measured, whatever their names and order.

        Those that could not be decoded are not among them, on whatever rank that was found: every rank must call it.
        """
        store = self._prepare()[1].store
        failed = [{store.shown(file) for file in store.files} & self.skipped.keys()]
        if distributed.is_distributed():
            failed *= distributed.world_size()
            torch.distributed.all_gather_object(failed, failed[distributed.rank()])
        contents = sorted(file.content for file in store.files if store.shown(file) not in set().union(*failed))
        return hashlib.sha256("\n".join(contents).encode()).hexdigest()

    def describe_prediction(self) -> str:
        """What is encoded, in a line. Decodes nothing."""
        files = self._folder(self.predict_root).files
        found = f"{len(files)} {self.noun}s under {escaped(str(self.predict_root))}, {self.extent(files)}"
        return "; ".join(filter(None, [found, self.cut_from_prediction(files)]))

    def predict_hash(self) -> str:
        """A hash of what prediction reads: the files' names and contents, and the settings that change samples."""
        listing = [f"{file.name} {file.content}" for file in self._folder(self.predict_root).files]
        return hashlib.sha256("\n".join([self.settings_of_prediction(), *listing]).encode()).hexdigest()

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Finds the files that the stage needs, and puts the training stream at its start."""
        if stage == "predict":
            self._folder(self.predict_root)
            self._report(stage)
            return
        _, validation = self._prepare()
        self._report(stage)
        if stage == "fit":
            self.start_stream(len(validation))

    def _report(self, stage: str) -> None:
        """Says what is left out, once, and writes all of it."""
        if self.trainer is not None and not getattr(self.trainer, "fast_dev_run", False):
            name = f"left_out_{TrainerFn(stage).value}.json"
            self._left_out.path = Path(self.trainer.default_root_dir) / name
        self._left_out.write()
        if self.skipped:
            where = "" if self._left_out.path is None else f"; all of them: {self._left_out.path}"
            rank_zero_warn(f"{len(self.skipped)} files are left out, {by_reason(self.skipped)}{where}")

    def train_dataloader(self) -> TrainingLoader:
        """See `StreamData`; refuses to repeat batches."""
        stream = super().train_dataloader()
        overfit_batches = getattr(self.trainer, "overfit_batches", 0)
        if overfit_batches:
            raise ValueError(
                f"overfit_batches={overfit_batches} repeats the same batches, but every epoch has samples "
                f"of its own here. Use a folder with a few {self.noun}s{self.overfit_hint}."
            )
        return stream

    def initialization_dataloader(self) -> TrainingLoader:
        """A training stream of its own, for `Tokenizer.initialize`: reading it does not move the training stream."""
        samples = self._prepare()[0]
        return TrainingLoader(
            samples,
            batch_size=self.batch_size,
            seed=self.seed,
            parts=samples.parts(),
            num_workers=self.num_workers,
            collate=partial(collate, self.join),
            finish=partial(without_failed, self._left_out, self.noun),
        )

    def val_dataloader(self) -> EvaluationLoader:
        """The validation files, each once, ordered by name."""
        return self._evaluation(self._prepare()[1])

    def predict_dataloader(self) -> EvaluationLoader:
        """All files under `predict_root` that are not yet predicted, each once, ordered by name."""
        predicted = self._predicted()
        files = [file for file in self._folder(self.predict_root).files if file.name not in predicted]
        return self._evaluation(self.prediction_samples(self.predict_root, files))

    def _evaluation(self, samples: EvaluationSamples[File]) -> EvaluationLoader:
        return EvaluationLoader(
            samples,
            batch_size=self.evaluation_batch_size,
            num_workers=self.num_workers,
            collate=partial(collate, self.join),
            finish=partial(without_failed, self._left_out, None),
        )


def without_failed(left_out: LeftOut, noun: str | None, batch: dict[str, Any]) -> dict[str, Any] | None:
    """Notes the files of a batch that cannot be decoded, and warns of new ones; None if no sample is left.

    A function of the record alone: a method of the data module would tie the loaders, with their worker processes, into
    a cycle (see `training_keys`).

    Args:
        left_out: The record.
        noun: What a file is called, where the next one replaces it; None where it is left out.
        batch: As `collate` makes it.
    """
    failed = {path: reason for path, reason in batch.pop("failed").items() if path not in left_out.skipped}
    for path, reason in failed.items():
        left_out.skipped[path] = reason
        if noun is not None:
            left_out.replaced.add(path)
        warnings.warn(f"{path} is {f'replaced by the next {noun}' if noun else 'left out'}: {reason}", stacklevel=2)
    if failed:
        left_out.write()
    return batch or None
