"""Compare a trained run with k-means of raw patches, JPEG and WebP on a folder of photographs that it never saw.

    python scripts/compare.py runs/photos --training data/photos/train --evaluation data/photos/validation

It writes `comparison.json`, `reconstructions.png` and `codebook.png` into the run folder, and prints the table.
"""

import argparse
import sys
from pathlib import Path

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainers.image.comparison import PREPROCESSING, compare, draw, load_photographs, table
from trainers.image.metrics import protocol
from vqkit import Tokenizer
from vqkit.saving.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder, as the trainer left it")
    parser.add_argument("--training", type=Path, required=True, help="folder of the photographs it was trained on")
    parser.add_argument("--evaluation", type=Path, required=True, help="folder of photographs it never saw")
    parser.add_argument("--kmeans-patches", type=int, default=204_800, help="training patches of the k-means baseline")
    parser.add_argument("--circumstances", default="", help="what the record should say of the machine and command")
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
        "training": training_facts(arguments.run, arguments.circumstances),
    }
    write_json(arguments.run / "comparison.json", record)
    draw(comparison, tokenizer, arguments.run)
    print(table(record, record["baselines"]))


def training_facts(run: Path, circumstances: str) -> dict[str, object]:
    """How the run was trained, from what it left behind."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    checkpoint = torch.load(run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    timers = [state["time_elapsed"]["train"] for name, state in checkpoint["callbacks"].items() if "Timer" in name]
    return {
        "steps": checkpoint["global_step"],
        "seconds": timers[0] if timers else None,  # known where trainer.max_time was set
        "capped": checkpoint["global_step"] < config["trainer"]["max_steps"],
        "precision": config["trainer"]["precision"] or "32-true",  # what Lightning takes without one
        "circumstances": circumstances,
    }


if __name__ == "__main__":
    main()
