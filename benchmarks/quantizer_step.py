"""One training step of each quantizer, forward and backward, beside vector-quantize-pytorch: time and memory.

    python benchmarks/quantizer_step.py                            # writes benchmarks/results/quantizer_step.md
    python benchmarks/quantizer_step.py --methods vq ema --rounds 15

`composites.py` does the same for quantizers made of quantizers.
Both sides get the same tensors and the same codes, in one process, and take turns; `benchmarks/README.md` says what the
columns mean. The other library is the extra `bench`; without it, our side alone is measured.
"""

import argparse
import itertools
import os
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from torch import Tensor, nn

from benchmarks import counterparts, paired
from benchmarks.arguments import Shape, parse_positive, parse_shape
from benchmarks.counterparts import COMPARISONS, PEER, PEER_NAME, build, comparison, step, tensors, warm_up
from benchmarks.machine import circumstances, number, table_row, version, write
from benchmarks.memory import MIB, Memory, in_own_process, observe, return_freed_memory

FEW_BYTES, PROCESSES = 16 * MIB, 5
"""A resident set that grows by less than this moves by some percent from process to process, with the pages of code
that a step is the first to touch: its growth is the median of so many."""


@dataclass(frozen=True)
class Table:
    """What a script measures, and what is asked for: speed, and at most a share of the other library's memory."""

    script: str
    title: str
    methods: Sequence[str]
    shapes: Sequence[Shape]
    judged: Sequence[str]
    judged_shapes: Sequence[Shape]
    speedup: float
    share: float


@dataclass(frozen=True)
class Result:
    """One row of the table; the second of each pair is None where the other library is missing."""

    method: str
    shape: Shape
    seconds: tuple[float, float | None]
    speedup: float | None
    memory: tuple[Memory, Memory | None]
    agreement: float | None
    rounds: int


class Side:
    """A module that takes one step each time it is measured."""

    def __init__(self, module: nn.Module, x: Tensor, upstream: Tensor) -> None:
        self.module, self.x, self.upstream = module, x, upstream
        self.indices: Tensor | None = None

    def measure(self) -> float:
        """Seconds of a step from no gradients; its indices are kept."""
        self.x.grad = None
        self.module.zero_grad(set_to_none=True)
        return paired.timed(self._step)

    def _step(self) -> None:
        self.indices = step(self.module, self.x, self.upstream)


def time_rounds(
    method: str, shape: Shape, device: str, rounds: int, seconds: float
) -> tuple[list[list[float]], float | None]:
    """Seconds of each side in each round, and the share of equal indices in the first; at least one round."""
    numbers = comparison(method).sides
    warm_up([build(method, side, shape, device) for side in numbers], shape, device)
    x, upstream = tensors(shape, device)
    sides = [Side(build(method, side, shape, device), x, upstream) for side in numbers]
    measures = {str(position): side.measure for position, side in enumerate(sides)}
    taken: list[list[float]] = [[] for _ in sides]
    agreement = None
    start = time.perf_counter()
    for round_number in range(rounds):
        elapsed = paired.one_round(measures, round_number)
        for position, times in enumerate(taken):
            times.append(elapsed[str(position)])
        if len(sides) == 2 and round_number == 0:
            agreement = (sides[0].indices == sides[1].indices).double().mean().item()
        if (time.perf_counter() - start) * (round_number + 2) / (round_number + 1) > seconds:
            break
    return taken, agreement


def measure_memory(method: str, side: int, shape: Shape, device: str, threads: int) -> Memory:
    """Memory of the first full-size step; to be called in a process of its own."""
    torch.set_num_threads(threads)
    return_freed_memory()
    warm_up([build(method, side, shape, device)], shape, device)
    module = build(method, side, shape, device)
    x, upstream = tensors(shape, device)
    return observe(partial(step, module, x, upstream), device)


def typical_memory(method: str, side: int, shape: Shape, device: str, threads: int) -> Memory:
    """Memory of the first full-size step in a process of its own, or in several where it is little."""
    measure = partial(in_own_process, measure_memory, method, side, shape, device, threads)
    memory = measure()
    if device != "cpu" or memory.peak is None or memory.peak > FEW_BYTES:
        return memory
    others = [measure().peak for _ in range(PROCESSES - 1)]
    return memory._replace(peak=statistics.median_low(peak for peak in (memory.peak, *others) if peak is not None))


def compare(method: str, shape: Shape, options: argparse.Namespace) -> Result:
    """One row."""
    sides = comparison(method).sides
    memory = [typical_memory(method, side, shape, options.device, options.threads) for side in sides]
    taken, agreement = time_rounds(method, shape, options.device, options.rounds, options.seconds)
    return Result(
        method=method,
        shape=shape,
        seconds=(statistics.median(taken[0]), statistics.median(taken[1]) if len(sides) == 2 else None),
        speedup=paired.ratio(taken[1], taken[0]) if len(sides) == 2 else None,
        memory=(memory[0], memory[1] if len(sides) == 2 else None),
        agreement=agreement,
        rounds=len(taken[0]),
    )


def report(table: Table, results: Sequence[Result], options: argparse.Namespace, load: float) -> str:
    """The whole Markdown file."""
    parts = [f"# {table.title} beside {PEER_NAME}\n", *_circumstances(table, options, load)]
    for (shape, other), rows in itertools.groupby(results, key=lambda row: (row.shape, comparison(row.method).other)):
        pair_matrix = shape.vectors * shape.codes * 4 / MIB
        parts += [
            f"\n## N = {shape.vectors}, K = {shape.codes}, D = {shape.dim}\n",
            f"A float32 N x K matrix has {pair_matrix:.4g} MiB.\n",
            f"| method | vqkit ms | {other} ms | times faster | vqkit MiB | {other} MiB | share of {other} "
            f"| largest vqkit MiB | largest {other} MiB | same codes | rounds |",
            "|---|" + "---:|" * 10,
            *map(_row, rows),
        ]
    parts += ["\n## Targets\n", *_targets(table, results), "\n## State of both sides\n", *_states(options)]
    return "\n".join(parts) + "\n"


def _row(result: Result) -> str:
    ours, theirs = result.memory
    share = ours.peak / theirs.peak if theirs and ours.peak is not None and theirs.peak else None
    cells = [
        result.method,
        number(result.seconds[0], 1e3),
        number(result.seconds[1], 1e3),
        number(result.speedup),
        number(ours.peak, 1 / MIB),
        number(theirs and theirs.peak, 1 / MIB),
        number(share),
        number(ours.largest, 1 / MIB),
        number(theirs and theirs.largest, 1 / MIB),
        "-" if result.agreement is None else f"{result.agreement:.2%}",
        str(result.rounds),
    ]
    return table_row(cells)


def _circumstances(table: Table, options: argparse.Namespace, load: float) -> list[str]:
    methods = " ".join(map(shlex.quote, options.methods))
    command = (
        f"python benchmarks/{table.script}.py --device {options.device} --threads {options.threads} "
        f"--rounds {options.rounds} --seconds {options.seconds:g} --methods {methods}"
    )
    if options.shapes:
        command += f" --shapes {' '.join(map(str, options.shapes))}"
    theirs = version(PEER_NAME) if counterparts.peer else "not installed"
    return circumstances(command, options.device, options.threads, load, [f"{PEER_NAME} ({PEER}) {theirs}"])


def _targets(table: Table, results: Sequence[Result]) -> list[str]:
    """What was asked for, and whether each row has it."""
    pairs = [
        f"{result.method} at {tuple(result.shape)}"
        for result in results
        if result.memory[0].largest >= result.shape.vectors * result.shape.codes
    ]
    lines = [
        "- no N x K buffer on our side (no allocation of N x K bytes or more): "
        + (f"missed by {', '.join(pairs)}" if pairs else "met at every shape")
    ]
    for result in results:
        if result.method in table.judged and result.speedup is not None and result.shape in table.judged_shapes:
            ours, theirs = result.memory
            lines.append(
                f"- {result.method} at {tuple(result.shape)}: {result.speedup:.3g} times faster "
                f"(asked: {table.speedup:g}, {'met' if result.speedup >= table.speedup else 'missed'})"
            )
            if ours.peak is not None and theirs is not None and theirs.peak is not None:
                met = "met" if ours.peak <= table.share * theirs.peak else "missed"
                lines[-1] += (
                    f"; {number(ours.peak / theirs.peak)} of its memory (asked: at most {table.share:.2g}, {met})"
                )
    return lines


def _states(options: argparse.Namespace) -> list[str]:
    lines = ["| method | vqkit | the other |", "|---|---|---|"]
    for method in options.methods:
        sides = comparison(method)
        lines.append(f"| {method} | {sides.state_of_ours} | {sides.state_of_theirs} |")
    return lines


DEFAULT_SHAPES = (Shape(8192, 1024, 64), Shape(4096, 16384, 64), Shape(16384, 16384, 8))
SINGLE = Table(
    script="quantizer_step",
    title="A training step",
    methods=list(COMPARISONS),
    shapes=DEFAULT_SHAPES,
    judged=("vq", "ema"),
    judged_shapes=DEFAULT_SHAPES[:2],
    speedup=5,
    share=1 / 5,
)


def _parser(table: Table) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=table.script, description=f"{table.title} beside {PEER_NAME}.")
    parser.add_argument("--shapes", nargs="+", type=partial(parse_shape, least_dim=2), metavar="N,K,D")
    parser.add_argument("--methods", nargs="+", choices=table.methods, default=table.methods)
    parser.add_argument("--rounds", type=parse_positive, default=200, help="at most; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="start no round of a row that would end later; default: %(default)s"
    )
    parser.add_argument("--threads", type=parse_positive, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    output = Path(__file__).parent / "results" / f"{table.script}.md"
    parser.add_argument("--output", type=Path, default=output, help=f"default: benchmarks/results/{output.name}")
    return parser


def _rows(table: Table, options: argparse.Namespace) -> list[tuple[Shape, str]]:
    """Each method at the shapes that were asked for, or at its own, or at those of the table; equal shapes together."""
    pairs = [
        (shape, method)
        for method in options.methods
        for shape in options.shapes or comparison(method).shapes or table.shapes
    ]
    order = list(dict.fromkeys((shape, comparison(method).other) for shape, method in pairs))
    return sorted(pairs, key=lambda pair: order.index((pair[0], comparison(pair[1]).other)))


def main(arguments: Sequence[str] | None = None, table: Table = SINGLE) -> None:
    """Measure everything that was asked for, and write the table."""
    options = _parser(table).parse_args(arguments)
    if counterparts.peer is None:
        print(f"{PEER_NAME} is not installed, so vqkit is measured alone; for both: pip install -e '.[bench]'")
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    results = []
    try:
        for shape, method in _rows(table, options):
            results.append(compare(method, shape, options))
            print(f"{tuple(shape)} {_row(results[-1])}", flush=True)
    finally:
        torch.set_num_threads(threads)
    write(options.output, report(table, results, options, load))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
