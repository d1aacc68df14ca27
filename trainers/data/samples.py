"""Files as samples: what the training and the evaluation samples of every kind of file have in common.

A sample is a dict: `"sample"`, a tensor; `"file"`, of which it is; `"failed"`, why files could not be decoded, by path.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic

import numpy
from torch import Tensor

from trainers.data.files import File, FileStore
from trainers.data.order import Part, sample_generator
from trainers.data.sampler import SizedDataset


class TrainingSamples(SizedDataset, ABC, Generic[File]):
    """Random samples by (pass, sample); a sample depends on the seed and these two alone.

    A file that turns out to be unreadable is replaced by the next one that can be read (of the same part, where there
    are several) and named in the sample.

    Args:
        store: The files.
        repeats: How often a pass goes over them.
        seed: Seed of the samples.
    """

    def __init__(self, store: FileStore[File], *, repeats: int, seed: int) -> None:
        self.store = store
        self.repeats = repeats
        self.seed = seed

    @abstractmethod
    def __len__(self) -> int:
        """Samples in a pass."""

    @abstractmethod
    def file_number(self, sample: int) -> int:
        """Which of the store's files a sample is taken from."""

    def parts(self) -> list[Part] | None:
        """Whose samples come one after the other, and how many of each a pass takes; None is one part, all samples."""
        return None

    def replacements(self, first: int) -> list[File]:
        """The file with this number, and those that take its place where it cannot be decoded, in order."""
        return self.store.files[first:] + self.store.files[:first]

    @abstractmethod
    def draw(self, file: File, generator: numpy.random.Generator) -> Tensor:
        """One sample of a file; ValueError with the reason if the file cannot be decoded."""

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, sample = key
        candidates = self.replacements(self.file_number(sample))
        failed: dict[str, str] = {}
        for file in candidates:
            try:
                drawn = self.draw(file, sample_generator(self.seed, epoch, sample))
            except ValueError as error:
                failed[self.store.shown(file)] = str(error)
                continue
            return {"sample": drawn, "file": file, "failed": failed}
        raise ValueError(f"None of {len(candidates)} training files under {self.store.root} can be decoded any more.")


class EvaluationSamples(SizedDataset, ABC, Generic[File]):
    """One sample for each file.

    A file that turns out to be unreadable gives a dict without a sample, which the loader leaves out and names.

    Args:
        store: The files.
    """

    def __init__(self, store: FileStore[File]) -> None:
        self.store = store

    @abstractmethod
    def whole(self, file: File) -> Tensor:
        """The sample of a file; ValueError with the reason if the file cannot be decoded."""

    def __len__(self) -> int:
        return len(self.store.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        file = self.store.files[index]
        try:
            return {"sample": self.whole(file), "file": file, "failed": {}}
        except ValueError as error:
            return {"failed": {self.store.shown(file): str(error)}}


def collate(join: Callable[[list[Tensor], list[Any]], dict[str, Any]], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples to a batch; dicts without a sample leave only their reason.

    Args:
        join: Makes the tensors of the batch of samples and their files.
        samples: As the data sets give them.
    """
    failed = {path: reason for sample in samples for path, reason in sample["failed"].items()}
    usable = [sample for sample in samples if "sample" in sample]
    if not usable:
        return {"failed": failed}
    files = [sample["file"] for sample in usable]
    joined = join([sample["sample"] for sample in usable], files)
    return joined | {"name": [file.name for file in files], "failed": failed}
