"""Draw what several runs make of the same photographs, a column for each run: the middle of each, enlarged.

python scripts/side_by_side.py data/photos/validation runs/photos_l2 runs/photos_features --to together.png
"""

import argparse
from pathlib import Path

import torch
from first_run import of_run

from trainers.image.comparison import load_photographs
from trainers.image.figures import reconstruction_figure
from trainers.image.metrics import psnr, to_uint8_grid
from vqkit.backbones.protocol import properties_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument("runs", type=Path, nargs="+", help="run folders")
    parser.add_argument("--to", type=Path, required=True, help="PNG to write")
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 1, 2, 3], help="numbers of photographs, by name")
    arguments = parser.parse_args()
    tokenizers = {run.name: of_run(run) for run in arguments.runs}
    multiple = max(properties_of(tokenizer.encoder).downsampling_factor or 1 for tokenizer in tokenizers.values())
    photographs = load_photographs(arguments.photographs, multiple)
    originals = [photographs[row] for row in arguments.rows]
    columns, captions = {"original": originals}, {"original": [""] * len(originals)}
    for name, tokenizer in tokenizers.items():
        with torch.no_grad():
            copies = [tokenizer.decode(tokenizer.encode(image[None] / 127.5 - 1)) for image in originals]
        columns[name] = [to_uint8_grid(copy)[0] for copy in copies]
        pairs = zip(originals, columns[name], strict=True)
        captions[name] = [f"{float(psnr(original[None], copy[None])):.1f} dB" for original, copy in pairs]
    reconstruction_figure(columns, captions, arguments.to)


if __name__ == "__main__":
    main()
