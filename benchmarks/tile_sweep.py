"""Times the fused kernels with other tiles than those of their tables, so that a person can edit the tables.

    python benchmarks/tile_sweep.py                        # writes benchmarks/results/tile_sweep.md

The tables are in `vqkit/kernels/gpu/tiles.py`, `soft_tiles.py`, `residual.py` and `statistics.py`.
"""

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch

from benchmarks import paired
from benchmarks.arguments import Shape, parse_positive
from benchmarks.device import NOT_MEASURED, circumstances, kernels_on, torch_device
from benchmarks.machine import number, table_row, write
from vqkit.kernels import gpu

MOST = 24  # configurations of a bucket
CALLS, ROUNDS = 5, 3  # calls in a row are timed, and the fastest round counts


class Bucket(NamedTuple):
    """One entry of a table.

    Attributes:
        name: what it is for.
        module: in which the function that looks the tile up is called.
        attribute: that function.
        looked_up: the arguments of the look-up that this entry is for, less those that are the same for all.
        tile: as it stands.
        call: that takes it.
        limits: the least and the most that some sizes may be, where others would be wrong.
    """

    name: str
    module: ModuleType
    attribute: str
    looked_up: tuple
    tile: Any
    call: Callable[[], object]
    limits: dict[str, tuple[float, float]] = {}


def buckets(device: str, depths: Sequence[int], shape: Shape) -> Iterator[Bucket]:
    """Each entry of the tables that a device uses, at N and K of `shape`."""
    from vqkit.kernels.gpu import nearest, residual, soft, soft_passes, soft_tiles, statistics

    place = torch.device(torch_device(device))
    generation = gpu.generation(place)
    padding = soft_tiles.PADDING if generation != gpu.INTERPRETER else soft_tiles.INTERPRETED_PADDING
    for depth in depths:
        x, codes = (torch.randn(size, depth, device=place) for size in shape[:2])
        for planes, precision in ((1, "fast"), (2, "high")):
            tile = nearest.scan_tile(generation, depth, planes)
            yield Bucket(
                *(f"search, D = {depth}, {precision}", nearest, "scan_tile", (), tile),
                lambda x=x, codes=codes, precision=precision: nearest.nearest(
                    x[None], codes[None], None, "euclidean", precision
                ),
            )
        weights, dmean = torch.full_like(x[:, 0], 1 / len(x)), torch.randn_like(codes[:, 0])
        for kernel in ("rows", "codes", "gradient"):
            tile = soft_passes.tiles_of(kernel, depth, place)
            yield Bucket(
                *(f"soft assignment, {kernel}, D = {depth}", soft_passes, "tiles_of", (kernel,), tile),
                lambda x=x, codes=codes, weights=weights, dmean=dmean: (
                    soft.assignment_entropy(x, codes, weights, 0.01),
                    soft.assignment_entropy_backward(weights, dmean, x, codes, weights, 0.01),
                ),
                {"owned": (16, padding), "streamed": (16, padding), "out": (16, tile.out)},
            )
        index = torch.randint(len(codes), (len(x),), device=place)
        yield Bucket(
            *(f"statistics, D = {depth}", statistics, "_tile", (), statistics._tile(x)),
            lambda x=x, codes=codes, index=index: statistics.segment_sums(x, index, len(codes), None),
            {"rows": (4, 1024)},
        )
    books = [codes[: shape.codes // 8] for _ in range(8)]
    if not residual.unfit(x, books, "euclidean"):
        yield Bucket(
            *(f"residual search, 8 levels, D = {depth}", residual, "_tile", (), residual._tile(x)),
            lambda: residual.search_levels(x, books, "euclidean"),
        )


def candidates(bucket: Bucket) -> list[Any]:
    """Tiles, first the one that stands, then those that differ from it in few sizes, by half or twice as much."""
    tile = bucket.tile
    fixed = {"depth", "width"} if "width" in tile._fields else set()
    choices = []
    for name, size in zip(tile._fields, tile, strict=True):
        others = {size - 1, size, size + 1} if name == "stages" else {size // 2, size, 2 * size}
        least, most = bucket.limits.get(name, (1, math.inf))
        choices.append([other for other in others if other == size or (name not in fixed and least <= other <= most)])
    found = (tile._make(sizes) for sizes in itertools.product(*choices))
    return sorted(found, key=lambda other: sum(a != b for a, b in zip(other, tile, strict=True)))[:MOST]


@contextmanager
def taking(bucket: Bucket, tile: Any) -> Iterator[None]:
    """Inside the block the bucket's look-up gives another tile."""
    before = getattr(bucket.module, bucket.attribute)

    def look_up(*arguments: Any) -> Any:
        fits = arguments[: len(bucket.looked_up)] == bucket.looked_up
        return tile if fits else before(*arguments)

    setattr(bucket.module, bucket.attribute, look_up)
    try:
        yield
    finally:
        setattr(bucket.module, bucket.attribute, before)


def sweep(bucket: Bucket, most: int, seconds: float, calls: int, rounds: int) -> list[tuple[Any, float | str]]:
    """Tiles with seconds of a call, best first; then those that do not run, with the reason."""
    times, failures = [], []
    start = time.perf_counter()
    for tile in candidates(bucket)[:most]:
        if times and time.perf_counter() - start > seconds:
            break
        with taking(bucket, tile):
            try:
                bucket.call()
                times.append((tile, min(paired.timed(bucket.call, calls=calls) for _ in range(rounds))))
            except Exception as error:  # too much shared memory, or a tile that the compiler does not take
                failures.append((tile, f"{type(error).__name__}: {error}".partition("\n")[0][:100]))
    return [*sorted(times, key=lambda pair: pair[1]), *failures]


def table(bucket: Bucket, found: Sequence[tuple[Any, float | str]], device: str) -> list[str]:
    """The rows of a bucket and their header."""
    lines = [f"\n## {bucket.name}\n", table_row([*bucket.tile._fields, "ms", "in the table"])]
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
            print(bucket.name, flush=True)
    write(options.output, "\n".join(lines) + "\n")
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
