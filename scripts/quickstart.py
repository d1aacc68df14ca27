"""The first run: train an image tokenizer on the photographs in assets/, and measure it on photographs it never saw.

    python scripts/quickstart.py  # about four minutes of training on two CPU cores, then a minute or two of measuring

It runs `python -m trainers fit --config configs/image/quickstart.yaml`, then compares the tokenizer with k-means of raw
patches at the same bits per pixel and with JPEG and WebP at the nearest rate, whatever the outcome, and leaves
everything in `runs/quickstart/`.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainers.comparison import PREPROCESSING, compare, draw, load_photographs, table  # noqa: E402
from trainers.metrics import protocol, write_json  # noqa: E402
from vqkit import Tokenizer  # noqa: E402

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
    command = "make quickstart" if len(sys.argv) == 1 else " ".join(["python scripts/quickstart.py", *sys.argv[1:]])

    precision = "bf16-mixed" if bfloat16_is_fast() else "32-true"
    seconds, steps, wanted = train(arguments, folder, precision)
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
            precision=f"trained in {precision}, measured in float32",
        ),
        "training": {
            "steps": steps,
            "seconds": round(seconds, 1),
            "capped": steps < wanted,
            "precision": precision,
            "circumstances": f"{torch.get_num_threads()} threads, {processor()}; `{command}`",
        },
    }
    write_json(folder / "metrics.json", record)
    draw(comparison, tokenizer, folder)
    report(record, folder)


def train(arguments: argparse.Namespace, folder: Path, precision: str) -> tuple[float, int, int]:
    """Run the trainer's command; seconds it took, steps taken, steps wanted."""
    minutes = int(arguments.max_minutes)
    limit = f"00:{minutes // 60:02}:{minutes % 60:02}:{int(60 * (arguments.max_minutes - minutes)):02}"
    command = [sys.executable, "-m", "trainers", "fit", "--config", str(CONFIG.relative_to(ROOT))]
    command += ["--runs", os.path.relpath(arguments.runs, ROOT)]
    # The evaluation photographs are watched, and nothing is chosen by them: the last weights are the result.
    roots = [str(folder.relative_to(ROOT)) for folder in (TRAIN, EVALUATION)]
    command += ["--data.root", roots[0], "--data.validation_root", roots[1], "--data.repeats", "400"]
    command += ["--trainer.precision", precision, "--trainer.max_time", limit]
    if arguments.steps:
        command += ["--trainer.max_steps", str(arguments.steps)]
    print("$ python " + " ".join(command[1:]), flush=True)
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if status:
        sys.exit(f"training ended with status {status}; what it said stands above")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    wanted = arguments.steps or yaml.safe_load(CONFIG.read_text())["trainer"]["max_steps"]
    return time.monotonic() - start, checkpoint["global_step"], wanted


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
            "... --config configs/quantizers/simvq.yaml  (vq, ema, simvq, ibq, fsq, residual, rotation)",
        ),
        ("open the report", f"wandb sync {shown}/wandb/offline-run-*  (needs an account; until then it stays here)"),
        ("use the layer in your own model", "examples/plain_pytorch.py, or: from vqkit import Quantizer"),
    ):
        print(f"  {what + ':':34}{where}")


def shown_command() -> str:
    return ".venv/bin/python -m trainers fit --config configs/image/quickstart.yaml"


def bfloat16_is_fast() -> bool:
    """Whether a convolution like those trained here runs a fifth faster in bfloat16 at least: tried, not guessed."""
    convolution, x = nn.Conv2d(64, 64, 3, padding=1), torch.randn(16, 64, 16, 16)

    def seconds(low_precision: bool) -> float:
        best = float("inf")
        for _ in range(8):
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low_precision):
                convolution(x).float().sum().backward()
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(True) * 1.2 < seconds(False)


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
