"""The first run: train an image tokenizer on the photographs in assets/, and measure it on photographs it never saw.

    python scripts/quickstart.py  # about four minutes of training on two CPU cores, then a minute or two of measuring

It runs `python -m trainers fit --config configs/image/quickstart.yaml`, then compares the tokenizer with k-means of raw
patches at the same bits per pixel and with JPEG and WebP at the nearest rate, whatever the outcome, and leaves
everything in `runs/quickstart/`.
"""

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from first_run import circumstances, train  # noqa: E402

from trainers.image.comparison import PREPROCESSING, compare, draw, load_photographs, table  # noqa: E402
from trainers.image.metrics import protocol  # noqa: E402
from vqkit import Tokenizer  # noqa: E402
from vqkit.saving.files import write_json  # noqa: E402

TRAIN, EVALUATION = ROOT / "assets/images/train", ROOT / "assets/images/eval"
CONFIG = ROOT / "configs/image/quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the run folders")
    parser.add_argument("--steps", type=int, help="training steps, instead of the config's")
    parser.add_argument(
        "--max-minutes", type=float, default=12.0, help="stop training after this long, and record it as capped"
    )
    parser.add_argument("--kmeans-patches", type=int, default=204_800, help="training patches of the k-means baseline")
    arguments = parser.parse_args()
    folder = arguments.runs / "quickstart"
    options = {"repeats": 400, "steps": arguments.steps, "max_minutes": arguments.max_minutes}
    training = train(CONFIG, folder, (TRAIN, EVALUATION), **options)
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer").eval()
    print("measuring on photographs it never saw, and fitting k-means of raw patches beside it ...", flush=True)
    originals = load_photographs(EVALUATION, tokenizer.encoder.downsampling_factor)
    comparison = compare(tokenizer, originals, load_photographs(TRAIN, 1), kmeans_patches=arguments.kmeans_patches)
    record = {
        **comparison.figures,
        "baselines": comparison.baselines,
        "protocol": protocol(
            comparison.figures,
            split="assets/images/eval: " + ", ".join(path.stem for path in sorted(EVALUATION.iterdir())),
            preprocessing=PREPROCESSING,
            precision=f"trained in {training['precision']}, measured in float32",
        ),
        "training": training | {"circumstances": circumstances("make quickstart")},
    }
    write_json(folder / "metrics.json", record)
    draw(comparison, tokenizer, folder)
    report(record, folder)


def report(record: dict, folder: Path) -> None:
    """The table, and where to go from here."""
    print("\n" + table(record, record["baselines"]))
    training = record["training"]
    capped = ", CAPPED before the end" if training["capped"] else ""
    print(f"\n{training['steps']} steps in {training['seconds']:.0f} s{capped}, {training['precision']}, ", end="")
    print(f"{training['circumstances']}; {record['images']:.0f} photographs never trained on\n")
    shown = os.path.relpath(folder)
    for what, where in (
        ("look at it", f"{shown}/reconstructions.png and {shown}/codebook.png (figures: {shown}/metrics.json)"),
        ("train on your own folder", f"{shown_command()} --data.root DIR --name mine"),
        (
            "swap the quantizer",
            "... --quantizer simvq  (or vq, ema, ibq, fsq, lfq, rotation: docs/quantizers.md)",
        ),
        ("open the report", f"wandb sync {shown}/wandb/offline-run-*  (needs an account; until then it stays here)"),
        ("use the layer in your own model", "examples/plain_pytorch.py, or: from vqkit import Quantizer"),
    ):
        print(f"  {what + ':':34}{where}")


def shown_command() -> str:
    return ".venv/bin/python -m trainers fit --config configs/image/quickstart.yaml"


if __name__ == "__main__":
    main()
