"""Token data sets as batches of every rank and worker, in an order that goes on where it stopped."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from vqkit import distributed
from vqkit.tokens.collate import pad_tokens


class Samples(Protocol):
    """A map-style data set."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """One of them."""


class TokenStream(IterableDataset[dict[str, Any]]):
    """Batches of a map-style data set, such as `TokenShards`, for a plain `DataLoader` with any number of workers.

    The order of an epoch is a function of `seed` and epoch. The first `world_size * batch_size` samples of it are the
    first batch of all ranks, and so on; workers take whole batches in turn. So ranks and workers share every epoch
    exactly, batches do not depend on the number of workers, and a run goes on at the sample under any number of ranks
    and workers, with any batch size.

    A batch has its `"state"`, from which `load_state_dict` goes on after it. Workers are ahead of the training loop, so
    no other object of the main process could tell which batch the loop has come to.

        >>> stream = TokenStream(TokenShards("runs/mine/tokens"), batch_size=64)
        >>> loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=4)
        >>> for epoch in range(stream.epoch, 10):
        ...     stream.set_epoch(epoch)
        ...     for batch in loader:
        ...         ...
        ...         checkpoint["data"] = batch["state"]

    Args:
        samples: the data set, which has a length.
        batch_size: samples of a batch of one rank, at least 1.
        seed: of the order, at least 0; None keeps the order of the data set.
        drop_last: what becomes of the last samples of an epoch, where they do not fill a batch on every rank: False
            shares them, and the first ones of the epoch come again where the shares would differ; True leaves them out.
            All ranks have the same number of batches, of the same sizes.
        collate: joins a list of samples to the dict of a batch.
        rank: of this process; None is that of `torch.distributed`, and so is `world_size`.
        world_size: number of processes.

    Attributes:
        epoch: that is iterated, or comes next.

    Raises:
        ValueError: a number is out of range, there are no samples, or `drop_last` leaves none.
        RuntimeError: the process group was created later than the stream, on iterating it or in `set_epoch`.

    Differs: torch's `DistributedSampler` repeats up to `world_size - 1` samples, as this does, but has no position; the
    `StatefulDataLoader` of torchdata keeps the position in the loader, for one number of ranks and workers. It takes a
    stream too: its own state has the epoch, and replaces what `load_state_dict` has set.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        seed: int | None = 0,
        drop_last: bool = False,
        collate: Callable[[list[Any]], dict[str, Any]] = pad_tokens,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1")
        if seed is not None and seed < 0:
            raise ValueError(f"seed={seed}: expected at least 0, or None for the order of the data set")
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank={rank}, world_size={world_size}: expected both or none")
        self._follows_group = rank is None
        self.rank = distributed.rank() if rank is None else rank
        self.world_size = distributed.world_size() if world_size is None else world_size
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank={rank}: expected 0 ... world_size - 1 = {self.world_size - 1}")
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.drop_last, self.collate = drop_last, collate
        self._joint = batch_size * self.world_size  # samples of a batch of all ranks
        if len(samples) < (self._joint if drop_last else 1):
            raise ValueError(
                f"samples has {len(samples)}: expected at least one"
                + f" batch of each rank, {self._joint}, with drop_last" * drop_last
            )
        self._start = torch.zeros(2, dtype=torch.int64).share_memory_()  # epoch and samples: persistent workers read it

    @property
    def epoch(self) -> int:
        """The epoch that is iterated, or comes next."""
        return int(self._start[0])

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the one that `load_state_dict` has set goes on where it was, as it does without this call.

        Args:
            epoch: at least 0.
        """
        if epoch < 0:
            raise ValueError(f"epoch={epoch}: expected at least 0")
        self._check_group()
        if epoch != self.epoch:
            self._start.copy_(torch.tensor([epoch, 0]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on after a batch; with persistent workers, before the loader is iterated.

        Args:
            state: `batch["state"]` of that batch, of any rank.

        Raises:
            ValueError: it is of another data set or seed.
        """
        own = {"samples": len(self.samples), "seed": self.seed}
        if state.keys() != {"epoch", "consumed", *own}:
            raise ValueError(f'state has {sorted(state)}: expected batch["state"] of a TokenStream')
        for key, value in own.items():
            if state[key] != value:
                raise ValueError(
                    f"state has {key}={state[key]}, this stream has {key}={value}: its order is another one; give it "
                    "the data set and the seed of the run that goes on, or begin anew without its state"
                )
        numbers = all(isinstance(state[key], int) for key in ("epoch", "consumed"))
        if not (numbers and state["epoch"] >= 0 and 0 <= state["consumed"] < len(self.samples)):
            raise ValueError(f"state is {dict(state)}: expected epoch >= 0 and 0 <= consumed < {len(self.samples)}")
        self._start.copy_(torch.tensor([state["epoch"], state["consumed"]]))

    def __len__(self) -> int:
        """Batches of this rank that are left of the epoch."""
        return self._batches_after(int(self._start[1]))

    def _batches_after(self, consumed: int) -> int:
        left = len(self.samples) - consumed
        return left // self._joint if self.drop_last else -(-left // self._joint)

    def _check_group(self) -> None:
        found = distributed.world_size()
        lost = found == 1 and get_worker_info() is not None  # a worker that was spawned has no process group
        if self._follows_group and found != self.world_size and not lost:
            raise RuntimeError(
                f"this stream was made for {self.world_size} processes, and there are {found}: make it after "
                "torch.distributed.init_process_group, or give it rank and world_size"
            )

    def __iter__(self) -> "_Batches":
        self._check_group()
        return _Batches(self, *self._start.tolist())

    def _batch(self, order: Tensor, epoch: int, consumed: int, number: int) -> dict[str, Any]:
        """The `number`-th batch of this rank after those samples of the epoch."""
        first = consumed + number * self._joint
        end = min(first + self._joint, len(order))
        batch = self.collate([self.samples[index] for index in self._share(order, first, end).tolist()])
        over = number == self._batches_after(consumed) - 1
        state = {"epoch": epoch + over, "consumed": 0 if over else end, "samples": len(order), "seed": self.seed}
        return batch | {"state": state}

    def _share(self, order: Tensor, first: int, end: int) -> Tensor:
        """What this rank takes of a batch of all ranks."""
        size = -(-(end - first) // self.world_size)
        places = first + self.rank * size + torch.arange(size)
        return order[torch.where(places < end, places, places - end) % len(order)]


class _Batches(Iterator[dict[str, Any]]):
    """What is left of an epoch for one worker; torchdata reads and sets its position."""

    def __init__(self, stream: TokenStream, epoch: int, consumed: int) -> None:
        worker = get_worker_info()
        self._stream = stream
        self._number, self._step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._begin(epoch, consumed)

    def _begin(self, epoch: int, consumed: int) -> None:
        self._epoch, self._consumed = epoch, consumed
        self._order = shuffled(len(self._stream.samples), seed=self._stream.seed, epoch=epoch)

    def __next__(self) -> dict[str, Any]:
        if self._number >= self._stream._batches_after(self._consumed):
            raise StopIteration
        batch = self._stream._batch(self._order, self._epoch, self._consumed, self._number)
        self._number += self._step
        return batch

    def _identity(self) -> dict[str, Any]:
        stream = self._stream
        return {"samples": len(stream.samples), "seed": stream.seed, "joint": stream._joint, "workers": self._step}

    def state_dict(self) -> dict[str, Any]:
        """Where this worker is."""
        return {"epoch": self._epoch, "consumed": self._consumed, "number": self._number, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there."""
        for key, value in self._identity().items():
            if state[key] != value:
                raise ValueError(
                    f"the loader's state has {key}={state[key]}, here {key}={value}: expected the data set, seed, "
                    'sizes and workers of the run that goes on; batch["state"] is good for others'
                )
        self._number = state["number"]
        self._begin(state["epoch"], state["consumed"])


def shuffled(count: int, *, seed: int | None, epoch: int) -> Tensor:
    """(count,) int64: a permutation that is a function of seed and epoch; 0, 1 and so on where there is no seed."""
    positions = torch.arange(count)
    if seed is None:
        return positions
    return distributed.counter_random(positions, seed=seed, step=epoch).argsort(stable=True)
