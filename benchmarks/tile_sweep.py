"""Times the fused kernels with other tiles than those of their table, so that a person can edit it.

    python benchmarks/tile_sweep.py                        # writes benchmarks/results/tile_sweep.md

The table is `vqkit/kernels/gpu/tiles.py`.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch

from benchmarks import paired
from benchmarks.arguments import Shape, parse_positive
from benchmarks.device import NOT_MEASURED, circumstances, kernels_on, torch_device
from benchmarks.machine import number, table_row, write
from vqkit.kernels import gpu
from vqkit.kernels.gpu.tiles import TABLE, Tile, padding_of

MOST = 24  # configurations of a bucket
CALLS, ROUNDS = 5, 3  # calls in a row are timed, and the fastest round counts


Limits = dict[str, tuple[float, float]]


class Bucket(NamedTuple):
    """One entry of the table.

    Attributes:
        kernel: its name in the table.
        depth: D of the call.
        entries: those of the kernel for the device.
        most: the largest depth that the entry is for.
        call: that takes it.
        limits: the least and the most that some sizes may be, where others would be wrong.
    """

    kernel: str
    depth: int
    entries: dict[float, Tile]
    most: float
    call: Callable[[], object]
    limits: Limits

    @property
    def tile(self) -> Tile:
        """As it stands."""
        return self.entries[self.most]


def buckets(device: str, depths: Sequence[int], shape: Shape) -> Iterator[Bucket]:
    """Each entry of the table that a device uses, at N and K of `shape`."""
    from vqkit.kernels.gpu import nearest, residual, soft, statistics

    place = torch.device(torch_device(device))

    def bucket(kernel: str, depth: int, call: Callable[[], object], limits: Limits | None = None) -> Bucket:
        entries = TABLE[kernel][gpu.generation(place)]
        return Bucket(kernel, depth, entries, min(most for most in entries if depth <= most), call, limits or {})

    padding = 16, padding_of(place)
    for depth in depths:
        x, codes = (torch.randn(size, depth, device=place) for size in shape[:2])
        for kernel, precision in (("scan of one half", "fast"), ("scan", "high")):
            search = partial(nearest.nearest, x[None], codes[None], None, "euclidean", precision)
            yield bucket(kernel, depth, search)
        weights, dmean = torch.full_like(x[:, 0], 1 / len(x)), torch.randn_like(codes[:, 0])
        entropy = partial(soft.assignment_entropy, x, codes, weights, 0.01)
        backward = partial(soft.assignment_entropy_backward, weights, dmean, x, codes, weights, 0.01)
        for kernel, call in (("row sums", entropy), ("code sums", entropy), ("gradient", backward)):
            yield bucket(kernel, depth, call, {"owned": padding, "streamed": padding, "out": (16, 256)})
        index = torch.randint(len(codes), (len(x),), device=place)
        sums = partial(statistics.segment_sums, x, index, len(codes), None)
        yield bucket("segment sums", depth, sums, {"owned": (4, 1024), "streamed": (1, 1), "depth": (1, 1024)})
    books = [codes[: shape.codes // 8] for _ in range(8)]
    if not residual.unfit(x, books, "euclidean"):
        yield bucket("levels", depth, partial(residual.search_levels, x, books, "euclidean"))


def candidates(bucket: Bucket) -> list[Tile]:
    """Tiles, first the one that stands, then those that differ from it in few sizes, by half or twice as much."""
    tile = bucket.tile
    choices = []
    for name, size in zip(tile._fields, tile, strict=True):
        others = {size - 1, size, size + 1} if name == "stages" else {size // 2, size, 2 * size}
        least, most = bucket.limits.get(name, (size, size) if name == "depth" else (1, math.inf))
        choices.append([other for other in others if other == size or least <= other <= most])
    found = (Tile(*sizes) for sizes in itertools.product(*choices))
    return sorted(found, key=lambda other: sum(a != b for a, b in zip(other, tile, strict=True)))[:MOST]


def sweep(bucket: Bucket, most: int, seconds: float, calls: int, rounds: int) -> list[tuple[Tile, float | str]]:
    """Tiles with seconds of a call, best first; then those that do not run, with the reason."""
    times: list[tuple[Tile, float]] = []
    failures: list[tuple[Tile, str]] = []
    start = time.perf_counter()
    for tile in candidates(bucket)[:most]:
        if times and time.perf_counter() - start > seconds:
            break
        with patch.dict(bucket.entries, {bucket.most: tile}):
            try:
                bucket.call()
                times.append((tile, min(paired.timed(bucket.call, calls=calls) for _ in range(rounds))))
            except Exception as error:  # too much shared memory, or a tile that the compiler does not take
                failures.append((tile, f"{type(error).__name__}: {error}".partition("\n")[0][:100]))
    return [*sorted(times, key=lambda pair: pair[1]), *failures]


def table(bucket: Bucket, found: Sequence[tuple[Tile, float | str]], device: str) -> list[str]:
    """The rows of a bucket and their header."""
    lines = [f"\n## {bucket.kernel}, D = {bucket.depth}\n", table_row([*bucket.tile._fields, "ms", "in the table"])]
    lines.append("|" + "---:|" * (len(bucket.tile) + 2))
    for tile, value in found:
        cell = number(value, 1e3) if isinstance(value, float) else f"not run: {value}"
        shown = NOT_MEASURED if device != "cuda" else cell
        lines.append(table_row([*tile, shown, "yes" if tile == bucket.tile else ""]))
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(prog="tile_sweep", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "interpreter"], default="cuda", help="interpreter: a dry run")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each bucket, about; default: %(default)s")
    parser.add_argument("--most", type=parse_positive, default=MOST, help="tiles of a bucket; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tile_sweep.md")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device; use --device interpreter for a dry run")
    real = options.device == "cuda"
    depths, shape = ((64, 128, 256), Shape(16384, 16384, 0)) if real else ((8,), Shape(6, 40, 0))
    calls, rounds = (CALLS, ROUNDS) if real else (1, 1)
    command = f"python benchmarks/tile_sweep.py --device {options.device} --seconds {options.seconds:g}"
    lines = ["# Tiles\n", *circumstances(command, options.device), f"- N = {shape.vectors}, K = {shape.codes}"]
    with torch.no_grad(), kernels_on(options.device):
        for bucket in buckets(options.device, depths, shape):
            lines += table(bucket, sweep(bucket, options.most, options.seconds, calls, rounds), options.device)
            print(bucket.kernel, bucket.depth, flush=True)
    write(options.output, "\n".join(lines) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
