"""Cut photographs into abutting squares of their own pixels, as many whole ones as each holds: more images to measure.

    python scripts/cut_tiles.py data/photos/validation --to data/photos/tiles --side 128

Distances of sets need many images. The squares of a photograph resemble each other, so n of them say less than n
photographs: `data.group_by: "[0-9]+_"` keeps them together.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from einops import rearrange
from torchvision.io import encode_png

from trainers.image.comparison import load_photographs
from vqkit.saving.files import write_whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument("--to", type=Path, required=True, help="folder of the squares, which must be empty or new")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    arguments = parser.parse_args()
    if arguments.to.is_dir() and any(arguments.to.iterdir()):
        sys.exit(f"--to {arguments.to} is not empty: name a new folder, so that no other squares are measured too")
    arguments.to.mkdir(parents=True, exist_ok=True)
    count = 0
    for number, photograph in enumerate(load_photographs(arguments.photographs, arguments.side)):
        tiles = rearrange(
            photograph.to(torch.uint8), "c (h a) (w b) -> (h w) c a b", a=arguments.side, b=arguments.side
        )
        for place, tile in enumerate(tiles):
            write_whole(arguments.to / f"{number:04}_{place:04}.png", encode_png(tile.contiguous()).numpy().tobytes())
        count += len(tiles)
    print(f"{count} squares of {arguments.side} pixels of the photographs in {arguments.photographs} in {arguments.to}")


if __name__ == "__main__":
    main()
