"""Vectors of items and series of them as training, validation and prediction data."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from trainers.data.checks import check_least
from trainers.data.order import Part
from trainers.data.sampler import EvaluationLoader, SizedDataset, TrainingLoader
from trainers.data.stream import StreamData
from trainers.vectors.files import VectorFile, find_files, read
from vqkit.tokens.names import escaped

_CHUNK = 2**14
"""Samples that are looked at at once."""


class VectorTable(SizedDataset):
    """The samples of a file or folder, one after another: vectors (D,), or series (D, T) with the channels first.

    Args:
        root: a file, or a folder of files (`trainers.vectors.files`).
        column: see `files.read`.
        id_column: see `files.read`.
        window: files of rows (N, D) are series, cut into windows of so many rows; what is left at the end of a file is
            left out. None: each row is a sample, or each series of (N, T, D).

    Raises:
        ValueError: files differ in their dimensions, hold NaN or infinity, or no file is as long as a window.
    """

    def __init__(
        self, root: Path, *, column: str | None = None, id_column: str | None = None, window: int | None = None
    ) -> None:
        self.root = root
        self.window = window
        self.files = [read(path, root, column=column, id_column=id_column) for path in find_files(root)]
        first = self.files[0]
        for file in self.files:
            if file.vectors.shape[1:] != first.vectors.shape[1:]:
                raise ValueError(
                    f"{root}: {file.name} holds {tuple(file.vectors.shape[1:])} of each item and {first.name} "
                    f"{tuple(first.vectors.shape[1:])}, expected the same: give files of one kind."
                )
        if window is not None and first.vectors.ndim != 2:
            raise ValueError(f"window={window}: {first.name} holds series already, (N, T, D); leave window out.")
        self._counts = [len(file.vectors) // (window or 1) for file in self.files]
        if not sum(self._counts):
            raise ValueError(f"window={window}: no file under {root} has as many rows; lower it.")
        self._ends = numpy.cumsum(self._counts)
        self._numbers = numpy.arange(self._ends[-1])
        self.hashes = numpy.concatenate([self._hashes(file, own) for file, own in self._parts()])

    def _parts(self) -> list[tuple[VectorFile, int]]:
        return [(file, count) for file, count in zip(self.files, self._counts, strict=True) if count]

    @property
    def channels(self) -> int:
        """D."""
        return self.files[0].vectors.shape[-1]

    @property
    def steps(self) -> int | None:
        """T of a series; None where samples are single vectors."""
        return self.window or (self.files[0].vectors.shape[1] if self.files[0].vectors.ndim == 3 else None)

    def __len__(self) -> int:
        return len(self._numbers)

    def keep(self, samples: Sequence[int]) -> None:
        """Keep some samples, by their numbers, which are numbered anew."""
        self._numbers = self._numbers[list(samples)]
        self.hashes = self.hashes[list(samples)]

    def batch(self, samples: Sequence[int] | numpy.ndarray) -> Tensor:
        """Samples by their numbers, (B, D) or (B, D, T) float32."""
        numbers = self._numbers[numpy.asarray(samples)]
        homes = numpy.searchsorted(self._ends, numbers, side="right")
        places = numbers - numpy.concatenate([[0], self._ends])[homes]
        parts: list[Tensor] = [
            self._taken(self.files[home], torch.from_numpy(places[homes == home])) for home in numpy.unique(homes)
        ]
        joined = torch.cat(parts)
        order = torch.from_numpy(numpy.argsort(numpy.argsort(homes, kind="stable"), kind="stable"))
        return joined[order]

    def _taken(self, file: VectorFile, places: Tensor) -> Tensor:
        if self.window is None:
            taken = file.vectors[places].float()
        else:
            taken = file.vectors[places[:, None] * self.window + torch.arange(self.window)].float()
        return taken if taken.ndim == 2 else taken.mT.contiguous()

    def _hashes(self, file: VectorFile, count: int) -> numpy.ndarray:
        """(count,) uint64, equal where samples are; refuses what is not finite."""
        found = []
        for start in range(0, count, _CHUNK):
            chunk = self._taken(file, torch.arange(start, min(start + _CHUNK, count))).flatten(1)
            finite = chunk.isfinite().all(1)
            if not finite.all():
                row = start + int((~finite).nonzero()[0, 0])
                kind = "row" if self.steps is None else "series" if self.window is None else "window"
                raise ValueError(
                    f"{self.root}: {kind} {row} of {file.name} has NaN or infinity, {int((~finite).sum())} of the "
                    f"{len(chunk)} around it do; leave such items out of the file."
                )
            found.append(content_hashes(chunk))
        return numpy.concatenate(found)

    def file_numbers(self) -> numpy.ndarray:
        """(samples,) which file each is of."""
        return numpy.repeat(numpy.arange(len(self.files)), self._counts)[self._numbers]

    def ids(self, samples: Sequence[int] | numpy.ndarray) -> list[Any]:
        """The ids of items; where the file has none, its row, with the file in front where there are several."""
        found: list[Any] = []
        for number in self._numbers[numpy.asarray(samples)].tolist():
            home = int(numpy.searchsorted(self._ends, number, side="right"))
            file, place = self.files[home], number - int(self._ends[home] - self._counts[home])
            if file.ids is not None and self.window is None:
                found.append(file.ids[place])
            else:
                found.append(place if len(self.files) == 1 else f"{file.name}:{place}")
        return found


def content_hashes(rows: Tensor) -> numpy.ndarray:
    """(N,) uint64 of rows (N, D) float32: equal for equal rows, and otherwise as good as random."""
    bits = (rows + 0.0).numpy().view(numpy.uint32).astype(numpy.uint64)  # -0 is 0
    odd = numpy.random.Generator(numpy.random.Philox(key=0)).integers(2**63, size=bits.shape[1], dtype=numpy.uint64)
    mixed = (bits * (2 * odd + 1)).sum(1, dtype=numpy.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finalizer of splitmix64
        mixed = (mixed ^ (mixed >> numpy.uint64(shift))) * numpy.uint64(factor)
    return mixed ^ (mixed >> numpy.uint64(31))


class SampleBatches(SizedDataset):
    """Some samples of a table, taken as whole batches: `vectors` (B, D) or (B, D, T) and `name`, the ids as text.

    Args:
        table: of all samples.
        samples: numbers of those that there are here.
    """

    def __init__(self, table: VectorTable, samples: numpy.ndarray) -> None:
        self.table = table
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Any) -> dict[str, Any]:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[Any]) -> dict[str, Any]:
        """A batch, of numbers or of keys (pass, number) as the training loader gives them."""
        numbers = self.samples[[key[1] if isinstance(key, tuple) else key for key in keys]]
        names = [escaped(str(name)) for name in self.table.ids(numbers)]
        return {"vectors": self.table.batch(numbers), "name": names}


def _as_it_is(batch: Any) -> Any:
    return batch


class VectorData(StreamData):
    """Vectors of items (N, D), or series (N, T, D), in npy, safetensors or Parquet.

    A batch is a dict: `"vectors"`, (B, D) float32, of series (B, D, T) with the channels first; `"name"`, a list of B
    ids as text. Rows with NaN or infinity are refused at the start. npy and safetensors are mapped: what lies in them
    may be larger than the memory, and is read once at the start.

    Training sees the samples in an order of their own in each pass, an endless stream that a checkpoint continues
    exactly (`TrainingLoader`), divided among ranks. Without `validation_root` the split is decided by each sample's
    content: it does not change when items are added or moved, and equal vectors are on one side. Windows of several
    files are divided by file, so that no series is on both sides.

    Args:
        root: A file or a folder.
        column: Name of the column (Parquet) or tensor (safetensors) with the vectors; None is the only one.
        id_column: The same of the items' ids; None numbers the rows.
        window: Takes files of rows (N, D) as series, cut into windows of so many rows; None takes rows as items.
        arguments: Of `StreamData`.

    Raises:
        ValueError: An argument is out of its range; at `setup` for files that cannot be used, or too few samples.
    """

    noun = "sample"

    def __init__(
        self,
        root: str,
        *,
        column: str | None = None,
        id_column: str | None = None,
        window: int | None = None,
        batch_size: int = 1024,
        num_workers: int = 0,
        **arguments: Any,
    ) -> None:
        super().__init__(root, batch_size=batch_size, num_workers=num_workers, **arguments)
        check_least({"window": (1 if window is None else window, 1)})
        for path in (self.root, self.validation_root, self.predict_root):
            if path is not None:
                find_files(path)
        self.columns: dict[str, Any] = {"column": column, "id_column": id_column, "window": window}
        self._tables: dict[Path, VectorTable] = {}

    # ---- what there is

    def table(self, root: Path) -> VectorTable:
        """The samples under a path, read once."""
        if root not in self._tables:
            self._tables[root] = VectorTable(root, **self.columns)
        return self._tables[root]

    @cached_property
    def sides(self) -> tuple[SampleBatches, SampleBatches]:
        """The samples that train and those that validate."""
        table = self.table(self.root)
        numbers = numpy.arange(len(table))
        if self.validation_root is not None:
            other = self.table(self.validation_root)
            if (other.channels, other.steps) != (table.channels, table.steps):
                raise ValueError(
                    f"{other.root} holds samples of {_shape(other)} and {table.root} of {_shape(table)}: expected the "
                    "same of both."
                )
            return SampleBatches(table, numbers), SampleBatches(other, numpy.arange(len(other)))
        units = table.hashes
        if table.window is not None and len(table.files) > 1:
            firsts = numpy.unique(table.file_numbers(), return_index=True)
            units = numpy.repeat(units[firsts[1]], numpy.bincount(table.file_numbers())[firsts[0]])
        found = numpy.unique(units)
        if len(found) < 2:
            raise ValueError(f"{self.root} holds one different sample: give validation_root, or more of them.")
        validates = units < numpy.uint64(min(int(self.validation_fraction * 2**64), 2**64 - 1))
        if not validates.any():
            validates = units == found[0]
        elif validates.all():
            validates = units != found[-1]
        return SampleBatches(table, numbers[~validates]), SampleBatches(table, numbers[validates])

    @property
    def channels(self) -> int:
        """D, of the vectors."""
        return self.table(self.root).channels

    def describe(self) -> str:
        """What was found, in a line."""
        training, validation = self.sides
        repeats = f" x {self.repeats}" if self.repeats > 1 else ""
        roots = " and ".join(escaped(str(root)) for root in (self.root, self.validation_root) if root is not None)
        return (
            f"samples of {_shape(training.table)} under {roots}: {len(training)} train{repeats}, "
            f"{len(validation)} validate"
        )

    def describe_prediction(self) -> str:
        """What is encoded, in a line."""
        table = self.table(self.predict_root)
        return f"{len(table)} samples of {_shape(table)} under {escaped(str(self.predict_root))}"

    def facts(self) -> dict[str, Any]:
        """How many samples train and validate, and a hash of their contents and sides."""
        names = ("training", "validation")
        hashes = [_digest(side.table.hashes[side.samples]) for side in self.sides]
        counts = {f"{name}_samples": len(side) for name, side in zip(names, self.sides, strict=True)}
        return {**counts, "hash": hashlib.sha256("\n".join(hashes).encode()).hexdigest()}

    def evaluation_hash(self) -> str:
        """A hash of the contents of what is measured, whatever their order."""
        side = self.sides[1]
        return _digest(numpy.sort(side.table.hashes[side.samples]))

    def predict_hash(self) -> str:
        """A hash of what prediction reads."""
        return _digest(self.table(self.predict_root).hashes)

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Reads what the stage needs, and puts the training stream at its start."""
        if stage == "predict":
            self.table(self.predict_root)
            return
        _, validation = self.sides
        if stage == "fit":
            self.start_stream(len(validation))

    def initialization_dataloader(self) -> TrainingLoader:
        """A training stream of its own, which does not move the training stream."""
        samples = self.sides[0]
        parts = [Part(len(samples), len(samples) * self.repeats)]
        options: dict[str, Any] = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        return TrainingLoader(samples, seed=self.seed, parts=parts, collate=_as_it_is, **options)

    def val_dataloader(self) -> EvaluationLoader:
        """The validation samples, each once, in their order."""
        return self._evaluation(self.sides[1])

    def predict_dataloader(self) -> EvaluationLoader:
        """All samples under `predict_root` that are not yet predicted."""
        table, predicted = self.table(self.predict_root), self._predicted()
        numbers = numpy.arange(len(table))
        if predicted:
            names = [escaped(str(name)) for name in table.ids(numbers)]
            numbers = numbers[[name not in predicted for name in names]]
        return self._evaluation(SampleBatches(table, numbers))

    def _evaluation(self, samples: SampleBatches) -> EvaluationLoader:
        options: dict[str, Any] = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        return EvaluationLoader(samples, collate=_as_it_is, **options)


def _shape(table: VectorTable) -> str:
    dimensions = f"{table.channels} dimensions"
    return dimensions if table.steps is None else f"{table.steps} steps of {dimensions}"


def _digest(hashes: numpy.ndarray) -> str:
    return hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()
