"""Fixtures of the whole suite: deterministic numbers, one thread, and a pair of ranks that lives as long as the
session."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch

TIMEOUT_SECONDS = 120

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, by a test at the earliest

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # with one compiler cache, test processes disturb one another
    cache = f"torchinductor_{os.getuid()}_{worker}"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.path.join(tempfile.gettempdir(), cache))


@pytest.fixture(autouse=True)
def reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def every_warning() -> None:
    """A warning that torch gives once in a process would meet whichever test comes first there."""
    torch.set_warn_always(True)


@pytest.hookimpl(tryfirst=True)  # markers select afterwards
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU what needs one is skipped; what is slow for two reasons, each of which is tested by itself, is
    long.
    """
    without_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if len(list(item.iter_markers("slow"))) > 1:
            item.add_marker("long")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_gpu)


def _serve(rank: int, store: str, connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=TIMEOUT_SECONDS)
    )
    while True:
        request = connection.recv_bytes()
        if not request:
            torch.distributed.destroy_process_group()
            return
        try:
            function, arguments = pickle.loads(request)
            with warnings.catch_warnings():  # a function that is strict is so for itself
                reply = (True, function(rank, *arguments))
        except Exception:
            reply = (False, traceback.format_exc())
        connection.send_bytes(pickle.dumps(reply))


class RankPair:
    """Two processes in one gloo group. `pair(function, *arguments)` runs `function(rank, *arguments)` on both.

    The functions must be importable (defined at the top of a module), and results are copied. A pair in which a rank
    failed or hung is ended, and the next call starts another.
    """

    def __init__(self) -> None:
        self._processes: list = []
        self._connections: list = []

    def __call__(self, function: Callable, *arguments) -> list:
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send_bytes(pickle.dumps((function, arguments)))
        results, failures = [], []
        for rank, connection in enumerate(self._connections):
            if not connection.poll(TIMEOUT_SECONDS):
                failures.append(
                    f"rank {rank} gave no answer in {TIMEOUT_SECONDS} s: do all ranks enter the same collectives?"
                )
                continue
            succeeded, result = pickle.loads(connection.recv_bytes())
            if succeeded:
                results.append(result)
            else:
                failures.append(f"rank {rank}:\n{result}")
                break
        if failures:
            self.end(kill=True)
            raise AssertionError("\n".join(failures))
        return results

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        store = Path(tempfile.mkdtemp()) / "store"
        for rank in range(2):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, str(store), theirs), daemon=True)
            process.start()
            self._processes.append(process)
            self._connections.append(ours)

    def end(self, *, kill: bool = False) -> None:
        for process, connection in zip(self._processes, self._connections, strict=True):
            if kill:
                process.kill()
            else:
                connection.send_bytes(b"")
            process.join(10)
        self._processes, self._connections = [], []


@pytest.fixture(scope="session")
def rank_pair() -> Iterator[RankPair]:
    pair = RankPair()
    yield pair
    pair.end()
