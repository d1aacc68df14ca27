"""What a GPU adds to a benchmark, and what stands in for it on a machine without one."""

import datetime
import itertools
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

import vqkit
from benchmarks.machine import version

DEVICES = ("cpu", "cuda", "interpreter")  # the last: a GPU's rows, tiny, on the processor, where time means nothing
NOT_MEASURED = "not measured"
MOST_COPIES = 64
PAST_CACHE = 3  # times the L2 cache that all copies of the inputs have together


def torch_device(device: str) -> str:
    """Where the tensors of one of `DEVICES` are."""
    return "cpu" if device == "interpreter" else device


@contextmanager
def kernels_on(device: str) -> Iterator[None]:
    """Within the block tensors of `device` go through the kernels that are for it."""
    if device != "interpreter":
        yield
        return
    from tests.kernels.stand_ins import interpreted  # a dry run is a test of the benchmark

    with warnings.catch_warnings(), interpreted():
        # Triton 3.6 makes numbers of NumPy arrays of one element.
        warnings.filterwarnings("ignore", "Conversion of an array with ndim > 0 to a scalar", DeprecationWarning)
        yield


def copies(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The tensors and copies of them, so many that a call finds none in the L2 cache of a GPU; one on a processor."""
    count = 1
    if tensors[0].is_cuda:
        cache = torch.cuda.get_device_properties(tensors[0].device).L2_cache_size
        taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        count = min(MOST_COPIES, -(-PAST_CACHE * cache // taken))
    return [tensors, *(tuple(tensor.clone() for tensor in tensors) for _ in range(count - 1))]


def in_turn(calls: Sequence[Callable[[], Tensor | None]]) -> Callable[[], Tensor | None]:
    """A call that is another one of `calls` each time."""
    turns = itertools.cycle(calls)
    return lambda: next(turns)()


def captured(calls: Sequence[Callable[[], object]]) -> Callable[[], object] | None:
    """One launch of a CUDA graph that does all of `calls`, which have run before; None where one of them waits."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def circumstances(command: str, device: str) -> list[str]:
    """The head of a table of GPU figures, as Markdown bullets; `command` without paths of this machine."""
    versions = f"torch {torch.__version__}, triton {version('triton')}, vqkit {vqkit.__version__}"
    date = f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    if device != "cuda":
        return [f"- command: `{command}`", "- device: none, a dry run", f"- versions: {versions}", date]
    properties = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0] or "unknown"
    return [
        f"- command: `{command}`",
        f"- device: {properties.name}, compute capability {properties.major}.{properties.minor}, "
        f"{properties.multi_processor_count} multiprocessors, {properties.total_memory / 2**30:.0f} GiB, "
        f"L2 cache {properties.L2_cache_size / 2**20:.0f} MiB",
        f"- driver {driver}, CUDA {torch.version.cuda}",
        f"- versions: {versions}",
        date,
    ]
