"""Compare a trained run with k-means of raw patches, JPEG and WebP on a folder of photographs that it never saw.

    python scripts/compare.py runs/photos --training data/photos/train --evaluation data/photos/validation

It writes `comparison.json`, `reconstructions.png` and `codebook.png` into the run folder, and prints the table.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainers.comparison import PREPROCESSING, compare, draw, load_photographs, table
from trainers.metrics import protocol, write_json
from vqkit import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, as the trainer left it")
    parser.add_argument("--training", type=Path, required=True, help="folder of the photographs it was trained on")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of photographs it never saw")
    parser.add_argument("--kmeans-patches", type=int, default=204_800, help="training patches of the k-means baseline")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_pretrained(arguments.run / "tokenizer").eval()
    originals = load_photographs(arguments.evaluation, tokenizer.encoder.downsampling_factor)
    training = load_photographs(arguments.training, 1)
    comparison = compare(tokenizer, originals, training, kmeans_patches=arguments.kmeans_patches)
    split = f"{arguments.evaluation}, {len(originals)} photographs"
    record = {
        **comparison.figures,
        "baselines": comparison.baselines,
        "protocol": protocol(comparison.figures, split=split, preprocessing=PREPROCESSING, precision="float32"),
    }
    write_json(arguments.run / "comparison.json", record)
    draw(comparison, tokenizer, arguments.run)
    print(table(record, record["baselines"]))


if __name__ == "__main__":
    main()
