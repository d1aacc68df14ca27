"""The first run: train an image tokenizer on the photographs in assets/, and measure it on photographs it never saw.

    python scripts/quickstart.py  # about three minutes on two CPU cores

It runs `python -m trainers fit --config configs/image/quickstart.yaml`, then compares the tokenizer with k-means of raw
patches at the same bits per pixel and with JPEG, WebP and AVIF at the nearest rate and at that of the coded tokens,
whatever the outcome, and leaves everything in `runs/quickstart/`.
"""

from compare import measured
from first_run import ROOT, quickstart_parser, report, train

from trainers.image.comparison import table
from vqkit.saving.files import write_json

FOLDERS = ROOT / "assets/images/train", ROOT / "assets/images/eval"
CONFIG = ROOT / "configs/image/quickstart.yaml"


def main() -> None:
    parser = quickstart_parser(__doc__, max_minutes=12.0)
    parser.add_argument("--kmeans-patches", type=int, default=204_800, help="training patches of the k-means baseline")
    arguments = parser.parse_args()
    folder = arguments.runs / "quickstart"
    training = train(CONFIG, folder, FOLDERS, arguments, repeats=400, shortcut="make quickstart")
    print("measuring on photographs it never saw, and fitting k-means of raw patches beside it ...", flush=True)
    split = "assets/images/eval: " + ", ".join(path.stem for path in sorted(FOLDERS[1].iterdir()))
    record = measured(folder, FOLDERS, training, kmeans_patches=arguments.kmeans_patches, split=split)
    write_json(folder / "metrics.json", record)
    print("\n" + table(record, record["baselines"]))
    report(
        training,
        folder,
        CONFIG,
        f"{record['images']:.0f} photographs",
        swap_the_quantizer="... --quantizer simvq  (or vq, ema, ibq, fsq, lfq, rotation: docs/quantizers.md)",
        use_the_layer_in_your_own_model="examples/plain_pytorch.py, or: from vqkit import Quantizer",
    )


if __name__ == "__main__":
    main()
