"""One training step of each quantizer, forward and backward, beside vector-quantize-pytorch: time and memory.

    python benchmarks/quantizer_step.py                            # writes benchmarks/results/quantizer_step.md
    python benchmarks/quantizer_step.py --methods vq ema --rounds 15

Both sides get the same tensors and the same codes, in one process, and take turns; `benchmarks/README.md` says what the
columns mean. The other library is the extra `bench`; without it, our side alone is measured.
"""

import argparse
import datetime
import importlib.metadata
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from torch import Tensor, nn

import vqkit
from benchmarks import counterparts
from benchmarks.counterparts import COMPARISONS, PEER_NAME, Shape, build, step, tensors, warm_up
from benchmarks.memory import MIB, Memory, in_own_process, measure_memory


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


def timed(module: nn.Module, x: Tensor, upstream: Tensor) -> tuple[float, Tensor]:
    """Seconds of a step, and its indices."""
    x.grad = None
    module.zero_grad(set_to_none=True)
    _synchronize(x)
    start = time.perf_counter()
    indices = step(module, x, upstream)
    _synchronize(x)
    return time.perf_counter() - start, indices


def _synchronize(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def time_rounds(
    method: str, shape: Shape, device: str, rounds: int, seconds: float
) -> tuple[list[list[float]], float | None]:
    """Seconds of each side in each round, and the share of equal indices in the first; at least one round."""
    sides = range(2 if counterparts.peer else 1)
    warm_up([build(method, side, shape, device) for side in sides], shape, device)
    modules = [build(method, side, shape, device) for side in sides]
    x, upstream = tensors(shape, device)
    taken: list[list[float]] = [[] for _ in sides]
    agreement = None
    start = time.perf_counter()
    for number in range(rounds):
        indices = {}
        for side in sides if number % 2 == 0 else reversed(sides):
            elapsed, indices[side] = timed(modules[side], x, upstream)
            taken[side].append(elapsed)
        if counterparts.peer and number == 0:
            agreement = (indices[0] == indices[1]).double().mean().item()
        if (time.perf_counter() - start) * (number + 2) / (number + 1) > seconds:
            break
    return taken, agreement


def compare(method: str, shape: Shape, options: argparse.Namespace) -> Result:
    """One row."""
    sides = range(2 if counterparts.peer else 1)
    memory = [in_own_process(measure_memory, method, side, shape, options.device, options.threads) for side in sides]
    taken, agreement = time_rounds(method, shape, options.device, options.rounds, options.seconds)
    return Result(
        method=method,
        shape=shape,
        seconds=(statistics.median(taken[0]), statistics.median(taken[1]) if counterparts.peer else None),
        speedup=statistics.median(theirs / ours for ours, theirs in zip(*taken, strict=True))
        if counterparts.peer
        else None,
        memory=(memory[0], memory[1] if counterparts.peer else None),
        agreement=agreement,
        rounds=len(taken[0]),
    )


def report(results: Sequence[Result], options: argparse.Namespace, load: float) -> str:
    """The whole Markdown file."""
    parts = [f"# A training step beside {PEER_NAME}\n", *_circumstances(options, load)]
    for shape, rows in itertools.groupby(results, key=lambda result: result.shape):
        pair_matrix = shape.vectors * shape.codes * 4 / MIB
        parts += [
            f"\n## N = {shape.vectors}, K = {shape.codes}, D = {shape.dim}\n",
            f"A float32 N x K matrix has {pair_matrix:.4g} MiB.\n",
            "| method | vqkit ms | VQP ms | times faster | vqkit MiB | VQP MiB | share of VQP | largest vqkit MiB "
            "| largest VQP MiB | same codes | rounds |",
            "|---|" + "---:|" * 10,
            *map(_row, rows),
        ]
    parts += ["\n## Targets\n", *_targets(results), "\n## State of both sides\n", *_states(options)]
    return "\n".join(parts) + "\n"


def _row(result: Result) -> str:
    ours, theirs = result.memory
    share = ours.peak / theirs.peak if theirs and ours.peak is not None and theirs.peak else None
    cells = [
        result.method,
        _number(result.seconds[0], 1e3),
        _number(result.seconds[1], 1e3),
        _number(result.speedup),
        _number(ours.peak, 1 / MIB),
        _number(theirs and theirs.peak, 1 / MIB),
        _number(share),
        _number(ours.largest, 1 / MIB),
        _number(theirs and theirs.largest, 1 / MIB),
        "-" if result.agreement is None else f"{result.agreement:.2%}",
        str(result.rounds),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, factor: float = 1.0) -> str:
    if value is None:
        return "-"
    return f"{value * factor:.0f}" if value * factor >= 100 else f"{value * factor:.3g}"


def _circumstances(options: argparse.Namespace, load: float) -> list[str]:
    shapes = " ".join(",".join(map(str, shape)) for shape in options.shapes)
    command = (
        f"python benchmarks/quantizer_step.py --device {options.device} --threads {options.threads} "
        f"--rounds {options.rounds} --seconds {options.seconds:g} --methods {' '.join(options.methods)} "
        f"--shapes {shapes}"
    )
    theirs = importlib.metadata.version(PEER_NAME) if counterparts.peer else "not installed"
    device = torch.cuda.get_device_name() if options.device == "cuda" else _processor()
    return [
        f"- command: `{command}`",
        f"- machine: {device}, {os.cpu_count()} cores, load average at the start {load:.1f}",
        f"- threads: {options.threads}",
        f"- versions: torch {torch.__version__}, vqkit {vqkit.__version__}, {PEER_NAME} (VQP) {theirs}",
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
    ]


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _targets(results: Sequence[Result]) -> list[str]:
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
        if result.method in ("vq", "ema") and result.speedup is not None and result.shape in DEFAULT_SHAPES[:2]:
            ours, theirs = result.memory
            lines.append(
                f"- {result.method} at {tuple(result.shape)}: {result.speedup:.3g} times faster (asked: 5, "
                f"{'met' if result.speedup >= 5 else 'missed'})"
            )
            if ours.peak is not None and theirs is not None and theirs.peak is not None:
                met = "met" if ours.peak * 5 <= theirs.peak else "missed"
                lines[-1] += f"; {_number(ours.peak / theirs.peak)} of its memory (asked: at most 0.2, {met})"
    return lines


def _states(options: argparse.Namespace) -> list[str]:
    lines = ["| method | vqkit | VQP |", "|---|---|---|"]
    for method in options.methods:
        comparison = COMPARISONS[method]
        lines.append(f"| {method} | {comparison.state_of_ours} | {comparison.state_of_theirs} |")
    return lines


def write(path: Path, text: str) -> None:
    """Under a temporary name first, so that an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


DEFAULT_SHAPES = (Shape(8192, 1024, 64), Shape(4096, 16384, 64), Shape(16384, 16384, 8))


def _shape(text: str) -> Shape:
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: expected N,K,D such as 8192,1024,64") from None
    if min(shape) < 1 or shape.dim < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected N and K of at least 1, and D of at least 2")
    return shape


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quantizer_step", description=__doc__.partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", type=_shape, default=list(DEFAULT_SHAPES), metavar="N,K,D")
    parser.add_argument("--methods", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--rounds", type=_positive, default=9, help="at most; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="start no round of a row that would end later; default: %(default)s"
    )
    parser.add_argument("--threads", type=_positive, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    output = Path(__file__).parent / "results" / "quantizer_step.md"
    parser.add_argument("--output", type=Path, default=output, help="default: benchmarks/results/quantizer_step.md")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything that was asked for, and write the table."""
    options = _parser().parse_args(arguments)
    if counterparts.peer is None:
        print(f"{PEER_NAME} is not installed, so vqkit is measured alone; for both: pip install -e '.[bench]'")
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    results = []
    try:
        for shape, method in itertools.product(options.shapes, options.methods):
            results.append(compare(method, shape, options))
            print(f"{tuple(shape)} {_row(results[-1])}", flush=True)
    finally:
        torch.set_num_threads(threads)
    write(options.output, report(results, options, load))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
