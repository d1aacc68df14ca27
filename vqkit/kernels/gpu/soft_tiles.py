"""Tiles of the passes behind soft assignment: how much each program owns, and how much it takes at a time."""

from typing import NamedTuple

import torch

from vqkit.kernels import gpu

PADDING = 128  # rows and codes are padded to multiples of it: of all tiles below
INTERPRETED_PADDING = 32  # in the interpreter, whose tiles are half that: so some hold padding only, as on a GPU


class Tiles(NamedTuple):
    """Shape of a program.

    Attributes:
        owned: rows or codes that it owns.
        streamed: of the other side, at a time.
        out: coordinates of the gradient that it owns.
        warps: of 32 threads.
        stages: of the depth under way at a time.
    """

    owned: int
    streamed: int
    out: int
    warps: int
    stages: int


# By generation and kernel. Chosen by compiling for D = 64, 256 and 1024 (no spills, no more
# shared memory than there is); never timed.
TABLE = {
    gpu.INTERPRETER: {
        "rows": Tiles(16, 16, 0, 4, 1),
        "codes": Tiles(16, 16, 0, 4, 1),
        "gradient": Tiles(16, 16, 16, 4, 1),
    },
    80: {"rows": Tiles(128, 64, 0, 8, 2), "codes": Tiles(128, 64, 0, 8, 3), "gradient": Tiles(64, 32, 256, 8, 2)},
    90: {"rows": Tiles(128, 128, 0, 8, 3), "codes": Tiles(128, 64, 0, 8, 3), "gradient": Tiles(128, 32, 256, 8, 2)},
    100: {"rows": Tiles(128, 128, 0, 8, 3), "codes": Tiles(128, 64, 0, 8, 3), "gradient": Tiles(128, 32, 256, 8, 2)},
}


def tiles_of(kernel: str, depth: int, device: torch.device) -> Tiles:
    """Tiles for a kernel, vectors of a depth, and a device."""
    tiles = TABLE[gpu.generation(device)][kernel]
    return tiles._replace(out=min(tiles.out, max(16, 1 << (depth - 1).bit_length())))


def has_tensor_memory(device: torch.device) -> bool:
    """Whether products have their sums in a memory of their own."""
    return gpu.generation(device) == 100


def parts_of(programs: int, streamed_tiles: int, device: torch.device) -> tuple[int, int]:
    """Into how many parts to split what programs stream, so that the device is busy, and tiles of each part."""
    wanted = 2 * gpu.multiprocessors(device) // programs
    per_part = -(-streamed_tiles // max(1, min(wanted, streamed_tiles)))
    return -(-streamed_tiles // per_part), per_part
