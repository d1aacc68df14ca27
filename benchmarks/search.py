"""Nearest-code search beside the product alone and other libraries: time, memory and correctness.

    python benchmarks/search.py                                    # writes benchmarks/results/search_cpu.md
    python benchmarks/search.py --shapes 8192,1024,64 --k 1 10 --threads 1 --methods torch native faiss
    python benchmarks/search.py --device cuda                      # writes benchmarks/results/search_cuda.md

All methods get the same float32 rows and codes, in one process, and take turns; `benchmarks/README.md` says what the
columns mean. The other libraries are the extra `bench`; a method that is not there is a row that says so.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from torch import Tensor

from benchmarks import device as devices
from benchmarks import paired
from benchmarks.arguments import Shape, parse_positive, parse_shape
from benchmarks.machine import free_memory, write
from benchmarks.memory import Killed, in_own_process, peak_growth, return_freed_memory
from benchmarks.search_methods import METHODS, YARDSTICK, Call, data, float64_order
from benchmarks.search_report import GPU_TARGETS, TARGET_SHAPES, Result, checked_rows, report, table

PAUSE = 0.01  # seconds in which the threads of the OpenMP library that was used last stop spinning
SHORT = 0.02  # seconds: a shorter call is warmed up by a call before it
GRAPHS = 10  # launches of one in a row are timed
LEAST = 0.002  # seconds: of a shorter one several in a row are timed
NUMBERS = (1, 10, 100)  # of codes that are asked for, on a processor
SMALL_SHAPES = (Shape(1, 1024, 64), Shape(256, 1024, 64), Shape(1024, 8192, 16))


class Contestant:
    """A prepared search that is measured once a round."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.indices: Tensor | None = None
        self.times: list[float] = []

    def measure(self) -> float:
        """Seconds of a call with its libraries' threads awake and those of the others asleep."""
        time.sleep(PAUSE)
        expected = self.times[-1] if self.times else SHORT
        if expected < SHORT:
            self.call()
        self.times.append(paired.timed(self._search, calls=max(1, min(100, int(LEAST / expected)))))
        return self.times[-1]

    def _search(self) -> None:
        self.indices = self.call()

    def affordable(self, seconds: float) -> bool:
        """Whether another call would end within `seconds` of calls."""
        return sum(self.times) + statistics.fmean(self.times) <= seconds


@torch.no_grad()
def run(calls: dict[str, Call], *, rounds: int, seconds: float) -> dict[str, Contestant]:
    """Measures all in turn. One that has used up its seconds drops out; the yardstick stays as long as any other."""
    contestants = {name: Contestant(call) for name, call in calls.items()}
    active = list(contestants)
    for round_number in range(rounds):
        paired.one_round({name: contestants[name].measure for name in active}, round_number)
        left = [name for name in active if contestants[name].affordable(seconds)]
        if not left:
            break
        active = [name for name in active if name in left or name == YARDSTICK]
    return contestants


def measure_memory(method: str, shape: Shape, device: str, threads: int, seed: int, k: int = 1) -> int | None:
    """Bytes by which memory rises during the first search of all rows; on a processor, in a process of its own."""
    torch.set_num_threads(threads)
    return_freed_memory()
    x, codes = data(shape, device, seed)
    with torch.no_grad(), devices.kernels_on(device):
        call = _prepare(method, x, codes, k)
        return peak_growth(call, device)


def _prepare(method: str, x: Tensor, codes: Tensor, k: int) -> Call:
    """A search, after one of few rows and codes for what libraries set up at first use."""
    METHODS[method].prepared(x[:64], codes[: max(64, k)], k)()
    return METHODS[method].prepared(x, codes, k)


def _memory(*arguments: object, device: str) -> int | None:
    """The allocator of a GPU knows its peak; on a processor only a new process shows what a search takes."""
    measured = measure_memory if device != "cpu" else partial(in_own_process, measure_memory)
    try:
        return measured(*arguments)
    except torch.OutOfMemoryError as error:
        raise Killed(str(error).partition(".")[0]) from error


def _graph_time(calls: Sequence[Call]) -> float | None:
    """Seconds of a call without the processor's part in it; None where a graph cannot hold it."""
    launch = devices.captured(calls)
    if launch is None:
        return None
    launch()
    return paired.timed(launch, calls=GRAPHS) / len(calls)


def compare(shape: Shape, k: int, options: argparse.Namespace) -> list[Result]:
    """The rows of one shape, for k codes of each row."""
    refusals, memory, graph_times = {}, {}, {}
    methods = [name for name in options.methods if k == 1 or name == YARDSTICK or METHODS[name].finds_several]
    for name in methods:
        refusals[name] = METHODS[name].refusal(shape, options.device, free_memory(options.device), k)
        if refusals[name] is None:
            try:
                arguments = name, shape, options.device, options.threads, options.seed, k
                memory[name] = _memory(*arguments, device=options.device)
            except Killed as error:  # in this process it would have ended all
                refusals[name] = str(error)
    x, codes = data(shape, options.device, options.seed)
    with torch.no_grad(), devices.kernels_on(options.device):
        inputs = devices.copies(x, codes)
        calls = {name: [METHODS[name].prepared(*pair, k) for pair in inputs] for name in memory}
        for name in memory:
            _prepare(name, x, codes, k)
        turns = {name: devices.in_turn(of_method) for name, of_method in calls.items()}
        contestants = run(turns, rounds=options.rounds, seconds=options.seconds)
        if options.device == "cuda":
            graph_times = {name: _graph_time(of_method) for name, of_method in calls.items()}
    rows = checked_rows(shape)
    right = float64_order(x[rows], codes, k)
    results = []
    for name in methods:
        if refusals[name]:
            results.append(Result(name, shape, k=k, refusal=refusals[name], device=options.device))
            continue
        found = contestants[name].indices
        agreement = None if found is None else (found[rows] == right).double().mean().item()
        measured = memory[name], agreement, graph_times.get(name)
        results.append(Result(name, shape, tuple(contestants[name].times), *measured, k=k, device=options.device))
    return results


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="search", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--device", choices=devices.DEVICES, default="cpu", help="interpreter: GPU rows without figures, for dry runs"
    )
    parser.add_argument("--threads", type=parse_positive, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--rounds", type=parse_positive, default=15, help="at most; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of calls for each method and shape, at most; default: %(default)s"
    )
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="N,K,D", help="default: those of the targets")
    parser.add_argument(
        "--k", nargs="+", type=parse_positive, help="codes of each row; default: 1 10 100, on a GPU 1, at most K"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), help=f"{YARDSTICK} is always one of them; default: all"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the data; default: %(default)s")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/search_DEVICE.md")
    return parser


def _methods_for(device: str) -> list[str]:
    """All but those of our own that are for another device; of other libraries a row says why it is not there."""
    ours = {"cpu": "cpu", "cuda": "cuda", "interpreter": "cuda"}[device]
    return [name for name, method in METHODS.items() if method.module or method.only_on in (None, ours)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything that was asked for, and write the table."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
    asked = options.methods or _methods_for(options.device)
    options.methods = [name for name in METHODS if name == YARDSTICK or name in asked]
    shapes = [*TARGET_SHAPES, *SMALL_SHAPES] if options.device == "cpu" else list(GPU_TARGETS)
    options.shapes = list(dict.fromkeys(options.shapes or shapes))
    options.k = options.k or (NUMBERS if options.device == "cpu" else NUMBERS[:1])
    output = options.output or Path(__file__).parent / "results" / f"search_{options.device}.md"
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    results: list[Result] = []
    try:
        for shape, k in itertools.product(options.shapes, options.k):
            if k > shape.codes:
                continue
            rows = compare(shape, k, options)
            results += rows
            print("\n".join([f"\n{shape}, k = {k}", *table(rows)]), flush=True)
    finally:
        torch.set_num_threads(threads)
    write(output, report(results, options, load))
    print(f"written: {output}")


if __name__ == "__main__":
    main()
