"""The sizes of tiles that the search takes: a table for each architecture, no tuning at run time."""

from typing import NamedTuple

from vqkit.kernels.gpu import INTERPRETER

SLOTS = 4  # threads that share a row of a tensor core's result: groups in a tile
DEEPEST = 256  # numbers of a row that stay on chip while codes pass
CHUNK = 64  # of longer rows, that are multiplied at once
ALL_REGISTERS = 255  # of a thread; without a number the compiler spills some, to fit more programs at a time


class ScanTile(NamedTuple):
    """Sizes of a tile of scores.

    Attributes:
        rows: multiple of 16.
        codes: multiple of 16.
        depth: numbers that are multiplied at once, a power of two.
        width: the padded depth, a multiple of `depth`.
        warps: of a program.
        stages: tiles of codes that are on their way at a time.
    """

    rows: int
    codes: int
    depth: int
    width: int
    warps: int
    stages: int


# By generation, planes and depth (`LONGER`: in chunks): rows, codes, warps, stages. Chosen by what
# compiles without spills, within 99 KiB of shared memory for 80 (which serves all GPUs of that design, up to the
# consumer ones of today) and 227 KiB for 90 and 100. None was measured on a GPU.
LONGER = 1024
TILES = {
    80: {
        1: {64: (128, 32, 4, 3), 128: (256, 32, 4, 2), 256: (128, 32, 4, 2), LONGER: (128, 32, 4, 2)},
        2: {64: (128, 128, 8, 2), 128: (128, 64, 8, 2), 256: (64, 32, 4, 2), LONGER: (128, 64, 8, 2)},
    },
    90: {
        1: {64: (128, 128, 8, 4), 128: (128, 128, 8, 3), 256: (128, 128, 8, 2), LONGER: (128, 128, 8, 3)},
        2: {64: (128, 128, 8, 3), 128: (128, 128, 8, 2), 256: (64, 64, 4, 2), LONGER: (128, 128, 8, 3)},
    },
    100: {
        1: {64: (128, 64, 4, 4), 128: (128, 64, 4, 3), 256: (128, 64, 4, 3), LONGER: (128, 64, 4, 2)},
        2: {64: (128, 64, 4, 3), 128: (128, 64, 4, 2), 256: (128, 32, 4, 1), LONGER: (128, 64, 4, 2)},
    },
}
INTERPRETED = (32, 32, 4, 1)


def scan_tile(generation: int, depth: int, planes: int) -> ScanTile:
    """The tile for a `gpu.generation` and rows of a depth in one or two planes."""
    chunk = CHUNK
    if depth <= DEEPEST:
        chunk = 16
        while chunk < depth:
            chunk *= 2
    width = -(-depth // chunk) * chunk
    if generation == INTERPRETER:
        rows, codes, warps, stages = INTERPRETED
    else:
        table = TILES[generation][planes]
        rows, codes, warps, stages = table[min(size for size in table if size >= (chunk if width == chunk else LONGER))]
    return ScanTile(rows, codes, chunk, width, warps, stages)


def list_tile(tile: ScanTile, planes: int) -> ScanTile:
    """The tile for the second look at a few rows after a scan with a tile; its epilogue needs more registers."""
    return tile._replace(rows=min(tile.rows, 64), codes=min(tile.codes, 16 * planes), warps=4, stages=1)
