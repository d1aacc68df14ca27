"""The table of `benchmarks/search.py`, and whether it meets the targets."""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import paired
from benchmarks.arguments import Shape
from benchmarks.device import NOT_MEASURED
from benchmarks.device import circumstances as gpu_circumstances
from benchmarks.machine import circumstances, instruction_sets, number, table_row, version
from benchmarks.memory import MIB
from benchmarks.search_methods import METHODS, PEER_NAME, YARDSTICK
from vqkit.kernels import native

CHECKED_SCORES = 2**26  # float64 scores that are formed to check the codes
NATIVE_TARGET, NATIVE_ROUNDS = 1.15, 15  # of the compiled search, times the product alone; in so many rounds at least
TORCH_TARGET, TORCH_ROUNDS, TORCH_ROWS = 1.0, 3, 256  # of the torch path, times cdist; from so many rows on
DISTURBED = 1.5  # times its minimum: where a reference has a larger median, other processes were measured
TARGET_SHAPES = (Shape(8192, 1024, 64), Shape(16384, 16384, 8), Shape(16384, 16384, 256), Shape(4096, 262144, 64))
# Seconds of the searches `fast` and `exact` on an H200, as asked for; estimates of a model of the chip.
GPU_TARGETS = {
    Shape(8192, 1024, 64): (12e-6, 25e-6),
    Shape(16384, 16384, 8): (70e-6, 90e-6),
    Shape(16384, 16384, 256): (250e-6, 700e-6),
    Shape(4096, 262144, 64): (350e-6, 750e-6),
    Shape(65536, 16384, 128): (500e-6, 1.4e-3),
    Shape(16384, 262144, 256): (4e-3, 11e-3),
}


@dataclass(frozen=True)
class Result:
    """One row of the table: seconds of each round, or the reason why there are none."""

    method: str
    shape: Shape
    times: tuple[float, ...] = ()
    memory: int | None = None
    agreement: float | None = None
    graph_time: float | None = None
    refusal: str | None = None
    device: str = "cpu"
    k: int = 1


def checked_rows(shape: Shape) -> slice:
    """Evenly spaced rows, as many as `CHECKED_SCORES` allow."""
    return slice(0, None, -(-shape.vectors * shape.codes // CHECKED_SCORES))


def report(results: Sequence[Result], options: argparse.Namespace, load: float) -> str:
    """The whole Markdown file."""
    parts = ["# Nearest-code search\n", *_circumstances(options, load)]
    for (shape, k), group in itertools.groupby(results, key=lambda result: (result.shape, result.k)):
        rows = list(group)
        checked = len(range(shape.vectors)[checked_rows(shape)])
        speed = 2e-9 * shape.vectors * shape.codes * shape.dim / statistics.median(_of(rows, YARDSTICK).times)
        yardstick = f"{METHODS[YARDSTICK].title} runs at {number(speed)} GFLOP/s. "
        parts += [
            f"\n## N = {shape.vectors}, K = {shape.codes}, D = {shape.dim}{f', k = {k}' if k > 1 else ''}\n",
            f"A float32 N x K matrix has {number(4 * shape.vectors * shape.codes / MIB)} MiB. "
            f"{yardstick if options.device != 'interpreter' else ''}Codes are checked on {checked} rows.\n",
            *table(rows),
        ]
    met = targets([result for result in results if result.k == 1]) if options.device == "cpu" else gpu_targets(results)
    parts += ["\n## Targets\n", *met, "\n## What is measured\n"]
    parts += [f"- {METHODS[name].title}: {METHODS[name].state}" for name in options.methods]
    return "\n".join(parts) + "\n"


def table(rows: Sequence[Result]) -> list[str]:
    """The rows of one shape and their header."""
    columns = ["method", "ms", "minimum ms", "times mm", f"times {_rival(rows)}", "MiB", "right codes", "rounds"]
    if rows[0].device != "cpu":
        columns += ["graph ms"]
    return [table_row(columns), "|---|" + "---:|" * (len(columns) - 1), *(_row(row, rows) for row in rows)]


def _rival(rows: Sequence[Result]) -> str:
    """The method that the others are compared with, besides the yardstick."""
    return "cdist" if rows[0].k == 1 else "faiss"


def _of(rows: Sequence[Result], method: str) -> Result:
    """The row of a method, one without times where it was not measured."""
    return next((row for row in rows if row.method == method), Result(method, rows[0].shape))


def _row(result: Result, rows: Sequence[Result]) -> str:
    title, width = METHODS[result.method].title, 7 if result.device == "cpu" else 8
    if result.refusal is not None:
        return table_row([title, f"skipped: {result.refusal}", *"-" * (width - 1)])
    if result.device == "interpreter":
        return table_row([title, *[NOT_MEASURED] * width])
    cells = [
        title,
        number(statistics.median(result.times), 1e3),
        number(min(result.times), 1e3),
        number(paired.ratio(result.times, _of(rows, YARDSTICK).times)),
        number(paired.ratio(result.times, _of(rows, _rival(rows)).times)),
        number(result.memory, 1 / MIB),
        "-" if result.agreement is None else f"{result.agreement:.2%}",
        len(result.times),
        number(result.graph_time, 1e3),
    ]
    return table_row(cells[: width + 1])


def _circumstances(options: argparse.Namespace, load: float) -> list[str]:
    command = (
        f"python benchmarks/search.py --device {options.device} --threads {options.threads} --rounds {options.rounds} "
        f"--seconds {options.seconds:g} --seed {options.seed} --methods {' '.join(options.methods)} "
        f"--shapes {' '.join(map(str, options.shapes))} --k {' '.join(map(str, options.k))}"
    )
    versions = [f"{name} {version(name)}" for name in ("faiss-cpu", PEER_NAME, "flash-kmeans")]
    if options.device != "cpu":
        head = [*gpu_circumstances(command, options.device), f"- others: {', '.join(versions[1:])}"]
        return [*head, f"- data: standard normal rows and codes, float32, seed {options.seed}; several copies in turn"]
    head = circumstances(command, options.device, options.threads, load, versions)
    return [
        *head,
        f"- variants of vqkit's compiled search that run here: {', '.join(native.variants()) or 'none, not built'}",
        f"- data: standard normal rows and codes, float32, seed {options.seed}",
    ]


def targets(results: Sequence[Result]) -> list[str]:
    """What was asked for, and whether each row has it."""
    lines = []
    for shape, group in itertools.groupby(results, key=lambda result: result.shape):
        rows = list(group)
        if shape in TARGET_SHAPES and "avx512f" in instruction_sets():
            lines += _target(_of(rows, "native"), _of(rows, YARDSTICK), NATIVE_TARGET, NATIVE_ROUNDS)
        if shape.vectors >= TORCH_ROWS:
            lines += _target(_of(rows, "torch"), _of(rows, "cdist"), TORCH_TARGET, TORCH_ROUNDS)
    return lines or ["- none applies to what was measured"]


def gpu_targets(results: Sequence[Result]) -> list[str]:
    """What was asked for on an H200, and what was measured, of calls without the processor's part."""
    lines = []
    for shape, group in itertools.groupby(results, key=lambda result: result.shape):
        rows = list(group)
        for method, limit in zip(("fast", "exact"), GPU_TARGETS.get(shape, ()), strict=False):
            found, verdict = _of(rows, method).graph_time, NOT_MEASURED
            if found is not None:
                verdict = f"{number(found, 1e3)} ms, {'met' if found <= limit else 'missed'}"
            asked = f"asked on an H200: at most {limit * 1e3:g} ms"
            lines.append(f"- {METHODS[method].title} at {tuple(shape)}, {asked}: {verdict}")
    return lines or ["- none applies to what was measured"]


def _target(result: Result, reference: Result, limit: float, rounds: int) -> list[str]:
    """A line that says whether a method takes at most `limit` times the reference; none where one was not measured."""
    value = paired.ratio(result.times, reference.times)
    if value is None:
        return []
    common = min(len(result.times), len(reference.times))
    spread = statistics.median(reference.times) / min(reference.times)
    other = METHODS[reference.method].title
    if common < rounds:
        verdict = f"not decided: {common} of the {rounds} rounds that are needed"
    elif spread > DISTURBED:
        verdict = f"not decided: the median of {other} is {number(spread)} times its minimum, the machine was busy"
    else:
        verdict = "met" if value <= limit else "missed"
    title = METHODS[result.method].title
    return [f"- {title} at {tuple(result.shape)}: {number(value)} times {other} (asked: at most {limit:g}): {verdict}"]
