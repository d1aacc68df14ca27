"""Drawn images for runs of the command line."""

from pathlib import Path

import numpy
from PIL import Image


def draw_pictures(folder: Path, count: int, *, width: int = 40, height: int = 36, seed: int = 0) -> None:
    """Smooth random colours in `000.png`, `001.png` ..., another image for each number and seed."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        coarse = numpy.random.default_rng(seed + number).integers(0, 256, (5, 5, 3), dtype=numpy.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
