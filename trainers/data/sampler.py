"""Loaders that continue the order of samples exactly.

What a training batch holds is a pure function of (seed, pass, batch, rank, number of ranks): nothing depends on worker
processes, on prefetching or on a global random state. A pass is one run over all samples, or over the shares of parts
(`trainers.data.order`); passes follow each other in an endless stream, and the only state of a loader is its place in
that stream: how many batches were handed out.
"""

import itertools
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from trainers.data.order import Part, pass_keys
from vqkit import distributed


class SizedDataset(Dataset[Any], Sized):
    """A data set that knows its length."""


def evaluation_batches(samples: int, *, batch_size: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
    """Splits the samples into batches for evaluation: every sample once, nothing padded, nothing dropped.

    Every rank gets the same number of batches and none is empty, as long as there are as many samples as ranks; so
    collective operations inside a validation step cannot wait for a rank that has finished. For that, sizes differ by
    at most one. Fewer samples than ranks leave some ranks without a batch.

    Args:
        samples: Number of samples.
        batch_size: Largest batch on one rank (exceeded by one only where batch_size=1 cannot be split evenly).
        rank: This rank.
        world_size: Number of ranks.

    Returns:
        The batches of this rank, each a list of sample indices.
    """
    per_rank = max(1, min(-(-samples // (batch_size * world_size)), samples // world_size))
    total = min(samples, per_rank * world_size)
    bounds = [samples * number // total for number in range(total + 1)] if total else [0]
    batches = [list(range(start, stop)) for start, stop in itertools.pairwise(bounds)]
    return batches[rank::world_size]


def training_keys(
    parts: Sequence[Part], *, batch_size: int, seed: int, epoch: int, batch: int
) -> Iterator[list[tuple[int, int]]]:
    """The endless stream of this rank's training batches, from a given place on.

    Args:
        parts: Of the data set.
        batch_size: Samples in a batch on one rank.
        seed: Seed of the order.
        epoch: Pass to begin with.
        batch: Batch in that pass to begin with.

    Yields:
        Batches of keys (pass of the part, sample).
    """
    # A function, not a method: a loader that its own worker iterator refers to would be freed by the cycle collector,
    # and then the workers are not told to stop but waited for, 5 seconds each.
    rank, world_size = distributed.rank(), distributed.world_size()
    stride = batch_size * world_size
    while True:
        keys = pass_keys(parts, seed=seed, epoch=epoch)
        for start in range(batch * stride, len(keys) - stride + 1, stride):
            mine = start + rank * batch_size
            yield [(own_pass, sample) for own_pass, sample in keys[mine : mine + batch_size].tolist()]
        epoch, batch = epoch + 1, 0


class SampleLoader:
    """Batches of a data set, made by worker processes or in this one.

    It is not a `torch.utils.data.DataLoader`, so Lightning neither adds a distributed sampler to it, nor pads it, nor
    replaces its order.

    Args:
        dataset: Takes what `_load` is given in `__getitem__`, and has a length.
        batch_size: Samples in a batch on one rank; the most, in evaluation.
        num_workers: Worker processes; 0 loads in this process.
        collate: Joins a list of samples.
        finish: Called in this process with every batch just before it is handed out; returns the batch. In evaluation
            None leaves it out.
    """

    def __init__(
        self,
        dataset: SizedDataset,
        *,
        batch_size: int,
        num_workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
        finish: Callable[[Any], Any] = lambda batch: batch,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.collate = collate
        self.finish = finish

    def _load(self, batches: Iterable[list[Any]]) -> DataLoader[Any]:
        """The batches of those keys or indices."""
        return DataLoader(
            self.dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=go_on_at_signals,
            generator=torch.Generator(),  # a loader without its own would advance the global random state
        )


def go_on_at_signals(_: int) -> None:
    """In a process that loads: a signal to all processes of a run is for the one that trains, which needs batches yet.

    That one ends this one by SIGTERM.
    """
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # elsewhere the sender is not known
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)


class TrainingLoader(SampleLoader):
    """An endless, shuffled stream of training batches that can be continued at any batch.

    Every iteration over it hands out `len(loader)` batches from where the last one stopped; so an epoch that is cut
    short (`limit_train_batches`, an early stop) is continued by the next. The samples at the end of a pass that do not
    fill a batch on every rank are dropped, other ones in every pass. N ranks with batch size B see the same joined
    batches as one process with batch size N x B.

    Lightning saves and restores it by `state_dict` and `load_state_dict`.

    Args:
        dataset: Takes keys (pass, sample), and must compute a sample from its key alone.
        seed: Seed of the order.
        parts: Whose samples the data set has one after the other, and how many of each a pass takes; None is one part,
            all samples.
        arguments: Of `SampleLoader`.

    Raises:
        ValueError: The parts have other samples than the data set.
    """

    def __init__(
        self, dataset: SizedDataset, *, seed: int, parts: Sequence[Part] | None = None, **arguments: Any
    ) -> None:
        super().__init__(dataset, **arguments)
        self.seed = seed
        self.parts = [Part(len(dataset), len(dataset))] if parts is None else list(parts)
        if sum(part.samples for part in self.parts) != len(dataset):
            raise ValueError(f"parts={self.parts}: expected all {len(dataset)} samples of the data set to be in one")
        self.epoch = 0
        self.batch = 0
        self._iterator: Iterator[Any] | None = None  # Lightning stops its workers at the end of fit by this name

    @property
    def samples(self) -> int:
        """Samples in one pass."""
        return sum(part.drawn for part in self.parts)

    def __len__(self) -> int:
        """Batches in one pass, on one rank."""
        return self.samples // (self.batch_size * distributed.world_size())

    def __iter__(self) -> Iterator[Any]:
        length = len(self)
        if length == 0:
            raise ValueError(
                f"{self.samples} samples do not fill one batch of batch_size={self.batch_size} on "
                f"{distributed.world_size()} rank(s). Lower the batch size, raise repeats, or add data."
            )
        for _ in range(length):
            if self._iterator is None:
                place = {"seed": self.seed, "epoch": self.epoch, "batch": self.batch}
                self._iterator = iter(self._load(training_keys(self.parts, batch_size=self.batch_size, **place)))
            batch = next(self._iterator)
            # The place moves before the batch is handed out: a checkpoint written while it is in use counts it as seen.
            self.batch += 1
            if self.batch >= length:
                self.epoch, self.batch = self.epoch + 1, 0
            yield self.finish(batch)

    def _order(self) -> dict[str, Any]:
        """What decides the order."""
        several = {"parts": [[part.samples, part.drawn] for part in self.parts]} if len(self.parts) > 1 else {}
        return {"samples": self.samples, "seed": self.seed, **several}

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream. It is the same on every rank, and does not depend on the number of workers."""
        seen = self.batch * self.batch_size * distributed.world_size()
        return {"epoch": self.epoch, "seen": seen, **self._order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a place in the stream. After a change of batch size or ranks it is the next whole batch.

        Warns when that leaves samples out, or when the place was saved with another number of samples, other parts or
        another seed, since the rest of the run is then not the one that was interrupted.
        """
        order = self._order()
        for name in ("samples", "seed", "parts"):
            saved, own = state_dict.get(name), order.get(name)
            if saved != own:
                warnings.warn(
                    f"The checkpoint was written with {name}={saved} of training data, this run has "
                    f"{own}: it continues, but not with the order of samples the interrupted run would have had. "
                    "For an exact continuation resume with the same files, weights, split, repeats and seed.",
                    stacklevel=2,
                )
        self.epoch = state_dict["epoch"]
        stride = self.batch_size * distributed.world_size()
        if left_out := -state_dict["seen"] % stride:
            warnings.warn(
                f"The checkpoint was written after {state_dict['seen']} samples of a pass, which batches of {stride} "
                f"cannot continue exactly: the next {left_out} are left out of it.",
                stacklevel=2,
            )
        self.batch = -(-state_dict["seen"] // stride)
        if self.batch >= len(self):
            self.epoch, self.batch = self.epoch + 1, 0
        self._iterator = None


class EvaluationLoader(SampleLoader):
    """Batches of every sample exactly once, in order, divided among the ranks by `evaluation_batches`."""

    def _batches(self) -> list[list[int]]:
        return evaluation_batches(
            len(self.dataset),
            batch_size=self.batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def __len__(self) -> int:
        """Batches on this rank."""
        return len(self._batches())

    def __iter__(self) -> Iterator[Any]:
        for batch in self._load(self._batches()):
            finished = self.finish(batch)
            if finished is not None:
                yield finished
