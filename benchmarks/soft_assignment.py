"""Index backpropagation with its entropy terms, forward and backward, beside the same with N x K matrices.

    python benchmarks/soft_assignment.py                           # writes benchmarks/results/soft_assignment.md
    python benchmarks/soft_assignment.py --shapes 4096,262144,256 --rounds 1
    python benchmarks/soft_assignment.py --device cuda             # writes benchmarks/results/soft_assignment_cuda.md

Both sides get the same tensors, in one process, and take turns; `benchmarks/README.md` says how time and memory are
measured.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import device as devices
from benchmarks import paired
from benchmarks.arguments import Shape, parse_positive, parse_shape
from benchmarks.device import NOT_MEASURED, torch_device
from benchmarks.machine import circumstances, free_memory, number, table_row, write
from benchmarks.memory import MIB, Memory, in_own_process, observe, return_freed_memory
from vqkit.kernels import assignment_entropy, entropy, index_backpropagation, nearest

TEMPERATURE = 0.01  # of the entropies
MATRICES = 8  # of N x K numbers that the materialized side holds at once, at least
LIMIT = 2 * 2**30  # bytes beyond outputs that are allowed at the full size
FULL_SIZES = {"cpu": Shape(4096, 262144, 256), "cuda": Shape(16384, 262144, 256)}
DEFAULT_SHAPES = (Shape(8192, 1024, 64), Shape(4096, 16384, 64), Shape(1024, 16384, 256), Shape(4096, 262144, 256))
GPU_SHAPES = (Shape(16384, 16384, 64), Shape(4096, 262144, 256), FULL_SIZES["cuda"])


class Step(NamedTuple):
    """What a step leaves: indices (N,) and the gradients to z (N, D) and codes (K, D)."""

    indices: Tensor
    dz: Tensor
    dcodes: Tensor


def streamed(z: Tensor, codes: Tensor, upstream: Tensor) -> Step:
    """Ours: three passes over blocks of rows."""
    indices = nearest(z, codes, metric="dot").indices
    quantized = index_backpropagation(z, codes, indices)
    found = assignment_entropy(z, codes, temperature=TEMPERATURE)
    loss = found.per_sample.mean() - entropy(found.mean_probabilities)
    return Step(indices, *torch.autograd.grad((quantized, loss), (z, codes), (upstream, torch.ones_like(loss))))


def materialized(z: Tensor, codes: Tensor, upstream: Tensor) -> Step:
    """The equations of IBQ (arXiv:2412.02692) as they stand: one-hot and softmax as N x K matrices."""
    logits = z @ codes.T
    soft = logits.softmax(1)
    indices = soft.argmax(1)
    hard = torch.zeros_like(soft).scatter_(1, indices[:, None], 1.0)
    quantized = (hard - soft.detach() + soft) @ codes
    log_probabilities = F.log_softmax(logits / TEMPERATURE, 1)
    probabilities = log_probabilities.exp()
    per_sample = -(probabilities * log_probabilities).sum(1).mean()
    loss = per_sample - entropy(probabilities.mean(0))
    return Step(indices, *torch.autograd.grad((quantized, loss), (z, codes), (upstream, torch.ones_like(loss))))


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Step]] = {"vqkit": streamed, "materialized": materialized}


@dataclass(frozen=True)
class Result:
    """One row of the table; no times where the side was refused."""

    side: str
    shape: Shape
    times: tuple[float, ...] = ()
    speedup: float | None = None
    memory: Memory | None = None
    agreement: float | None = None
    difference: float | None = None
    refusal: str | None = None
    device: str = "cpu"

    @property
    def beyond_outputs(self) -> int | None:
        """Bytes at the peak beyond the quantized vectors and the two gradients."""
        if self.memory is None or self.memory.peak is None:
            return None
        return self.memory.peak - 4 * self.shape.dim * (2 * self.shape.vectors + self.shape.codes)


def tensors(shape: Shape, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (N, D), standard normal codes (K, D) as IBQ starts from, and the gradient to the quantized rows (N, D)."""
    generator = torch.Generator().manual_seed(0)
    z, codes, upstream = (
        torch.randn(size, shape.dim, generator=generator) for size in (shape.vectors, shape.codes, shape.vectors)
    )
    z = z / shape.dim**0.5  # logits of unit variance: a softmax that is neither flat nor decided
    z, codes, upstream = (tensor.to(torch_device(device)) for tensor in (z, codes, upstream))
    return z.requires_grad_(), codes.requires_grad_(), upstream


def measure_memory(side: str, shape: Shape, device: str, threads: int) -> Memory:
    """Memory of the first full-size step; to be called in a process of its own."""
    torch.set_num_threads(threads)
    return_freed_memory()
    with devices.kernels_on(device):
        SIDES[side](*tensors(Shape(64, 64, shape.dim), device))
        return observe(partial(SIDES[side], *tensors(shape, device)), device)


class Contestant:
    """A side, its times, and what its last step left."""

    def __init__(self, side: str, shape: Shape, device: str) -> None:
        self.step = partial(SIDES[side], *tensors(shape, device))
        self.times: list[float] = []
        self.result: Step | None = None

    def measure(self) -> float:
        """Seconds of one more step."""
        self.times.append(paired.timed(self._run))
        return self.times[-1]

    def _run(self) -> None:
        self.result = self.step()


def refusal(side: str, shape: Shape, device: str) -> str | None:
    """Why a side is not run, or None."""
    needed, free = 4 * MATRICES * shape.vectors * shape.codes, free_memory(device)
    if side == "materialized" and free is not None and needed > 0.9 * free:
        return f"not run: {MATRICES} N x K matrices take {number(needed / 2**30)} GiB, {number(free / 2**30)} are free"
    return None


def compare(shape: Shape, options: argparse.Namespace) -> list[Result]:
    """Both rows of a shape."""
    refusals = {side: refusal(side, shape, options.device) for side in SIDES}
    running = [side for side in SIDES if refusals[side] is None]
    memory = {side: in_own_process(measure_memory, side, shape, options.device, options.threads) for side in running}
    contestants = {side: Contestant(side, shape, options.device) for side in running}
    with devices.kernels_on(options.device):
        for round_number in range(options.rounds):
            paired.one_round({side: contestants[side].measure for side in running}, round_number)
            spent = sum(sum(contestant.times) for contestant in contestants.values())
            if spent * (round_number + 2) / (round_number + 1) > options.seconds:
                break
    rows = [Result(side, shape, refusal=refusals[side], device=options.device) for side in SIDES if refusals[side]]
    agreement, difference, speedup = _agreement(contestants)
    for side in running:
        found = (speedup, agreement, difference) if side == "vqkit" else (None, None, None)
        measured = tuple(contestants[side].times), found[0], memory[side], *found[1:]
        rows.append(Result(side, shape, *measured, device=options.device))
    return sorted(rows, key=lambda row: list(SIDES).index(row.side))


def _agreement(contestants: dict[str, Contestant]) -> tuple[float | None, float | None, float | None]:
    """Share of equal codes, largest difference of a gradient relative to the largest gradient, times faster."""
    if len(contestants) < 2:
        return None, None, None
    ours, theirs = (contestants[side].result for side in SIDES)
    agreement = (ours.indices == theirs.indices).double().mean().item()
    differences = [
        (a - b).abs().amax() / b.abs().amax() for a, b in ((ours.dz, theirs.dz), (ours.dcodes, theirs.dcodes))
    ]
    times = (contestants[side].times for side in reversed(SIDES))
    return agreement, max(differences).item(), paired.ratio(*times)


HEADER = (
    "| side | ms | times faster | MiB | MiB beyond outputs | largest MiB | same codes | gradients differ | rounds |"
)


def table(rows: Sequence[Result]) -> list[str]:
    """The rows of one shape and their header."""
    return [HEADER, "|---|" + "---:|" * 8, *map(_row, rows)]


def _row(row: Result) -> str:
    if row.refusal:
        return table_row([row.side, row.refusal, *["-"] * 7])
    if row.device == "interpreter":
        return table_row([row.side, *[NOT_MEASURED] * 8])
    cells = [
        row.side,
        number(statistics.median(row.times), 1e3),
        number(row.speedup),
        number(row.memory.peak, 1 / MIB),
        number(row.beyond_outputs, 1 / MIB),
        number(row.memory.largest, 1 / MIB),
        "-" if row.agreement is None else f"{row.agreement:.2%}",
        "-" if row.difference is None else f"{row.difference:.1e}",
        len(row.times),
    ]
    return table_row(cells)


def report(groups: Sequence[Sequence[Result]], options: argparse.Namespace, load: float) -> str:
    """The whole Markdown file."""
    command = (
        f"python benchmarks/soft_assignment.py --device {options.device} --threads {options.threads} "
        f"--rounds {options.rounds} --seconds {options.seconds:g} --shapes {' '.join(map(str, options.shapes))}"
    )
    if options.device == "cpu":
        head = circumstances(command, options.device, options.threads, load)
    else:
        head = devices.circumstances(command, options.device)
    parts = [
        "# Soft assignment\n",
        *head,
        f"\nSearch by dot product, index backpropagation at temperature 1, entropy terms at {TEMPERATURE}; forward and "
        "backward to z and codes, float32. *times faster*: median of the ratios of each round. *MiB beyond outputs*: "
        "less the quantized vectors and the gradients to z and codes. *gradients differ*: the largest difference "
        "over the largest gradient.",
    ]
    for rows in groups:
        shape = rows[0].shape
        matrix = number(4 * shape.vectors * shape.codes / MIB)
        parts += [
            f"\n## N = {shape.vectors}, K = {shape.codes}, D = {shape.dim}\n",
            f"A float32 N x K matrix has {matrix} MiB.\n",
            *table(rows),
        ]
    return "\n".join([*parts, "\n## Targets\n", *_targets([row for rows in groups for row in rows])]) + "\n"


def _targets(rows: Sequence[Result]) -> list[str]:
    ours = [row for row in rows if row.side == "vqkit"]
    if ours[0].device == "interpreter":
        return [f"- under {number(LIMIT, 2**-30)} GiB beyond parameters and outputs: {NOT_MEASURED}"]
    lines = []
    for row in ours:
        if row.shape == FULL_SIZES[row.device] and row.beyond_outputs is not None:
            met = "met" if row.beyond_outputs < LIMIT else "missed"
            lines.append(
                f"- {row.shape}: {number(row.beyond_outputs, 2**-30)} GiB beyond parameters and outputs (asked: under "
                f"{number(LIMIT, 2**-30)}, {met})"
            )
    missed = [str(row.shape) for row in ours if row.memory.largest >= 4 * row.shape.vectors * row.shape.codes]
    lines.append(
        "- no allocation of a float32 N x K matrix: " + (f"missed at {', '.join(missed)}" if missed else "met")
    )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="soft_assignment", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--device", choices=devices.DEVICES, default="cpu", help="interpreter: GPU rows without figures, for dry runs"
    )
    parser.add_argument("--threads", type=parse_positive, default=os.cpu_count(), help="default: %(default)s")
    parser.add_argument("--rounds", type=parse_positive, default=9, help="at most; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="start no round that would end later; default: %(default)s"
    )
    parser.add_argument("--shapes", nargs="+", type=parse_shape, metavar="N,K,D")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/soft_assignment.md")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything that was asked for, and write the table."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device cpu")
    options.shapes = options.shapes or list(DEFAULT_SHAPES if options.device == "cpu" else GPU_SHAPES)
    name = "soft_assignment.md" if options.device == "cpu" else f"soft_assignment_{options.device}.md"
    output = options.output or Path(__file__).parent / "results" / name
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    torch.set_num_threads(options.threads)
    groups: list[list[Result]] = []
    try:
        for shape in options.shapes:
            groups.append(compare(shape, options))
            print("\n".join([f"\n{shape}", *table(groups[-1])]), flush=True)
    finally:
        torch.set_num_threads(threads)
    write(output, report(groups, options, load))
    print(f"written: {output}")


if __name__ == "__main__":
    main()
