"""The sizes of tiles that the kernels take: one table, no tuning at run time.

Chosen by what compiles for D = 64, 256 and 1024 without spills, within 99 KiB of shared memory for 80 (which serves all
GPUs of that design, up to the consumer ones of today) and 227 KiB for 90 and 100. None was measured on a GPU.
"""

import math
from typing import NamedTuple

import torch

from vqkit.kernels import gpu
from vqkit.kernels.gpu import INTERPRETER

SLOTS = 4  # threads that share a row of a tensor core's result: groups in a tile
ALL_REGISTERS = 255  # of a thread; without a number the compiler spills some, to fit more programs at a time
MOST_PROGRAMS = 65535  # of a grid, in all directions but the first
LONGER = math.inf
REAL = (80, 90, 100)


def round_up(number: int, block: int) -> int:
    """The next multiple of a block."""
    return -(-number // block) * block


class Tile(NamedTuple):
    """Sizes of a program.

    Attributes:
        owned: rows that it keeps, or codes where it streams rows; a multiple of 16 where it forms products.
        streamed: of the other side, at a time; likewise.
        depth: coordinates that it takes at once, a power of two.
        warps: of 32 threads.
        stages: tiles of the other side, or of the depth, that are on their way at a time.
        out: coordinates of a gradient that it owns, a power of two; 0 where it forms none.
    """

    owned: int
    streamed: int
    depth: int
    warps: int
    stages: int
    out: int = 0

    def width(self, depth: int) -> int:
        """The depth that vectors are padded to: whole chunks."""
        return round_up(depth, self.depth)


# By kernel, generation and the largest depth that an entry is for. Rows of up to 256 numbers stay on chip while codes
# pass; longer ones are multiplied in chunks. The interpreter has several tiles in each direction in a small test.
TABLE: dict[str, dict[int, dict[float, Tile]]] = {
    "scan of one half": {
        INTERPRETER: {256: Tile(32, 32, 256, 4, 1), LONGER: Tile(32, 32, 64, 4, 1)},
        80: {
            64: Tile(128, 32, 64, 4, 3),
            128: Tile(256, 32, 128, 4, 2),
            256: Tile(128, 32, 256, 4, 2),
            LONGER: Tile(128, 32, 64, 4, 2),
        },
        90: {
            64: Tile(128, 128, 64, 8, 4),
            128: Tile(128, 128, 128, 8, 3),
            256: Tile(128, 128, 256, 8, 2),
            LONGER: Tile(128, 128, 64, 8, 3),
        },
        100: {
            64: Tile(128, 64, 64, 4, 4),
            128: Tile(128, 64, 128, 4, 3),
            256: Tile(128, 64, 256, 4, 3),
            LONGER: Tile(128, 64, 64, 4, 2),
        },
    },
    "scan": {
        INTERPRETER: {256: Tile(32, 32, 256, 4, 1), LONGER: Tile(32, 32, 64, 4, 1)},
        80: {
            64: Tile(128, 128, 64, 8, 2),
            128: Tile(128, 64, 128, 8, 2),
            256: Tile(64, 32, 256, 4, 2),
            LONGER: Tile(128, 64, 64, 8, 2),
        },
        90: {
            64: Tile(128, 128, 64, 8, 3),
            128: Tile(128, 128, 128, 8, 2),
            256: Tile(64, 64, 256, 4, 2),
            LONGER: Tile(128, 128, 64, 8, 3),
        },
        100: {
            64: Tile(128, 64, 64, 4, 3),
            128: Tile(128, 64, 128, 4, 2),
            256: Tile(128, 32, 256, 4, 1),
            LONGER: Tile(128, 64, 64, 4, 2),
        },
    },
    "levels": {
        INTERPRETER: {LONGER: Tile(16, 16, 128, 4, 1)},
        80: {LONGER: Tile(64, 32, 128, 8, 2)},
        90: {LONGER: Tile(64, 64, 128, 8, 2)},
        100: {LONGER: Tile(64, 32, 128, 8, 2)},
    },
    "row sums": {
        INTERPRETER: {LONGER: Tile(16, 16, 16, 4, 1)},
        80: {LONGER: Tile(128, 64, 32, 8, 2)},
        **{generation: {LONGER: Tile(128, 128, 32, 8, 3)} for generation in (90, 100)},
    },
    "code sums": {
        INTERPRETER: {LONGER: Tile(16, 16, 16, 4, 1)},
        **{generation: {LONGER: Tile(128, 64, 32, 8, 3)} for generation in REAL},
    },
    "gradient": {
        INTERPRETER: {LONGER: Tile(16, 16, 16, 4, 1, 16)},
        80: {LONGER: Tile(64, 32, 32, 8, 2, 256)},
        **{generation: {LONGER: Tile(128, 32, 32, 8, 2, 256)} for generation in (90, 100)},
    },
    # Rows in a chunk: a power of two, at least 4. One warp, and from depth 128 on a column of the chunk in the
    # registers of one thread, so that its scan needs no other.
    "segment sums": {
        INTERPRETER: {LONGER: Tile(4, 1, 4, 1, 1)},
        **{
            generation: {
                **{1: Tile(128, 1, 1, 1, 1), 8: Tile(64, 1, 8, 1, 1), 32: Tile(32, 1, 32, 1, 1)},
                64: Tile(16, 1, 64, 1, 1),
                LONGER: Tile(16, 1, 128, 1, 1),
            }
            for generation in REAL
        },
    },
}


def tile_of(kernel: str, depth: int, device: torch.device) -> Tile:
    """The tile of a kernel of the table, for vectors of a depth; it takes no more of it at once than there is."""
    entries = TABLE[kernel][gpu.generation(device)]
    tile = entries[min(most for most in entries if depth <= most)]
    reach = max(16, 1 << (depth - 1).bit_length())
    return tile._replace(depth=min(tile.depth, reach), out=min(tile.out, reach))


def padding_of(device: torch.device) -> int:
    """What rows and codes of soft assignment are padded to a multiple of: a multiple of all tiles of its kernels.

    Twice theirs in the interpreter, so that some hold padding only, as on a GPU.
    """
    return 32 if gpu.architecture(device) == INTERPRETER else 128


def parts_of(programs: int, tiles: int, device: torch.device, most: int = MOST_PROGRAMS) -> tuple[int, int]:
    """Into how many parts to split the tiles that programs stream, to keep the device busy, and the tiles of a part."""
    wanted = 2 * gpu.multiprocessors(device) // max(1, programs)
    per_part = -(-tiles // max(1, min(wanted, tiles, most)))
    return -(-tiles // per_part), per_part
