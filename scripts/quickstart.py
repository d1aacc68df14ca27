"""The first run: train an image tokenizer on the photographs in assets/, and measure it on photographs it never saw.

    python scripts/quickstart.py            # about four minutes of training on two CPU cores, then a minute of
    measuring python scripts/quickstart.py --help

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
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as transforms

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from trainers.baselines import PatchKMeans, image_files  # noqa: E402
from trainers.figures import codebook_figure, reconstruction_figure  # noqa: E402
from trainers.metrics import ImageMetrics, protocol, write_json  # noqa: E402
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
    parser.add_argument("--kmeans-patches", type=int, default=262_144, help="training patches of the k-means baseline")
    arguments = parser.parse_args()
    folder = arguments.runs / "quickstart"

    precision = "bf16-mixed" if bfloat16_is_fast() else "32-true"
    seconds, steps, wanted = train(arguments, folder, precision)
    tokenizer = Tokenizer.from_pretrained(folder / "tokenizer").eval()
    originals = [load(path, tokenizer.encoder.downsampling_factor) for path in sorted(EVALUATION.iterdir())]

    print("measuring on photographs it never saw ...", flush=True)
    figures, reconstructions, counts = measure(tokenizer, originals)
    baselines, details = compare(originals, figures["bpp"], tokenizer, arguments.kmeans_patches)
    record = {
        **figures,
        "baselines": baselines,
        "protocol": protocol(
            figures,
            split="assets/images/eval: " + ", ".join(path.stem for path in sorted(EVALUATION.iterdir())),
            preprocessing="native size, cropped at right and bottom to a multiple of the downsampling factor",
            precision=f"trained in {precision}, measured in float32",
            weights="moving average of the weights, last step",
        ),
        "training": {
            "steps": steps,
            "seconds": round(seconds, 1),
            "capped": steps < wanted,
            "precision": precision,
            "threads": torch.get_num_threads(),
            "processor": processor(),
            "command": "make quickstart",
        },
    }
    write_json(folder / "metrics.json", record)
    draw(folder, tokenizer, originals, reconstructions, details, counts, figures)
    report(record, folder)


def train(arguments: argparse.Namespace, folder: Path, precision: str) -> tuple[float, int, int]:
    """Run the trainer's command; seconds it took, steps taken, steps wanted."""
    minutes = int(arguments.max_minutes)
    limit = f"00:{minutes // 60:02}:{minutes % 60:02}:{int(60 * (arguments.max_minutes - minutes)):02}"
    command = [sys.executable, "-m", "trainers", "fit", "--config", str(CONFIG), "--runs", str(arguments.runs)]
    command += ["--trainer.precision", precision, "--trainer.max_time", limit]
    if arguments.steps:
        command += ["--trainer.max_steps", str(arguments.steps)]
    print("$ python " + " ".join(part.replace(f"{ROOT}/", "") for part in command[1:]), flush=True)
    start = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if status:
        sys.exit(f"training ended with status {status}; what it said stands above")
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    wanted = arguments.steps or yaml.safe_load(CONFIG.read_text())["trainer"]["max_steps"]
    return time.monotonic() - start, checkpoint["global_step"], wanted


def load(path: Path, multiple: int) -> Tensor:
    """A photograph (3, H, W) on the uint8 grid, cropped to a multiple of `multiple`."""
    with Image.open(path) as picture:
        image = transforms.pil_to_tensor(picture.convert("RGB")).float()
    return image[:, : image.shape[1] // multiple * multiple, : image.shape[2] // multiple * multiple]


@torch.no_grad()
def measure(tokenizer: Tokenizer, originals: list[Tensor]) -> tuple[dict[str, float], list[Tensor], Tensor]:
    """Figures over the photographs, reconstructions on the uint8 grid, and how often each code was used."""
    metrics = ImageMetrics(tokenizer.quantizer.codebook_size)
    reconstructions, indices = [], []
    for original in originals:
        image = original[None] / 127.5 - 1
        tokens = tokenizer.encode(image)
        decoded = tokenizer.decode(tokens)  # from the tokens alone, as a user of the file would
        metrics.update(image, decoded, tokens)
        reconstructions.append(to_grid(decoded[0]))
        indices.append(tokens.flatten())
    counts = torch.bincount(torch.cat(indices), minlength=tokenizer.quantizer.codebook_size)
    return metrics.compute(), reconstructions, counts


def compare(
    originals: list[Tensor], bits_per_pixel: float, tokenizer: Tokenizer, patches: int
) -> tuple[dict[str, dict], dict[str, list[Tensor]]]:
    """The baselines' figures, and their images."""
    size = tokenizer.encoder.downsampling_factor
    print("fitting the patch k-means baseline ...", flush=True)
    training = [load(path, 1) for path in sorted(TRAIN.iterdir())]
    baseline = PatchKMeans(training, tokenizer.quantizer.codebook_size, patch_size=size, num_patches=patches)
    metrics = ImageMetrics(baseline.codebook_size)
    images: dict[str, list[Tensor]] = {"patch_kmeans": []}
    for original in originals:
        indices = baseline.encode(original)
        images["patch_kmeans"].append(baseline.decode(indices))
        metrics.update(original[None] / 127.5 - 1, images["patch_kmeans"][-1][None] / 127.5 - 1, indices[None])
    kept = ("psnr", "ssim", "bpp", "codebook_usage", "perplexity")
    figures = {"patch_kmeans": {name: metrics.compute()[name] for name in kept} | {"protocol": baseline.protocol}}
    for file_format in ("JPEG", "WEBP"):
        name = file_format.lower()
        images[name], rate, quality = image_files(originals, bits_per_pixel, file_format)
        metrics = ImageMetrics(1)
        for original, decoded in zip(originals, images[name], strict=True):
            tokens = torch.zeros(1, 1, dtype=torch.int64)
            metrics.update(original[None] / 127.5 - 1, decoded[None] / 127.5 - 1, tokens)
        chosen = {key: metrics.compute()[key] for key in ("psnr", "ssim")}
        figures[name] = chosen | {
            "bpp": rate,
            "protocol": f"Pillow, quality {quality}, whole files, one quality for all",
        }
    return figures, images


def draw(folder, tokenizer, originals, reconstructions, details, counts, figures) -> None:
    """The two pictures."""
    columns = {
        "original": originals,
        "vqkit": reconstructions,
        "patch k-means": details["patch_kmeans"],
        "JPEG": details["jpeg"],
    }
    captions = {
        title: [
            "" if title == "original" else f"{psnr(original, image):.1f} dB"
            for original, image in zip(originals, images, strict=True)
        ]
        for title, images in columns.items()
    }
    reconstruction_figure(columns, captions, folder / "reconstructions.png")
    title = f"photographs it never saw, perplexity {figures['perplexity']:.0f}"
    codebook_figure(tokenizer, counts, folder / "codebook.png", title=title)


def report(record: dict, folder: Path) -> None:
    """The table, and where to go from here."""
    rows = {"vqkit (this run)": record, "k-means of raw patches": record["baselines"]["patch_kmeans"]}
    rows |= {"JPEG": record["baselines"]["jpeg"], "WebP": record["baselines"]["webp"]}
    print(f"\n{'':24}{'PSNR':>9}{'SSIM':>8}{'bits/pixel':>12}{'usage':>8}{'perplexity':>12}")
    for name, row in rows.items():
        use = (
            f"{row['codebook_usage']:>8.1%}{row['perplexity']:>12.0f}" if "perplexity" in row else f"{'-':>8}{'-':>12}"
        )
        print(f"{name:24}{row['psnr']:>6.2f} dB{row['ssim']:>8.3f}{row['bpp']:>12.3f}{use}")
    training = record["training"]
    capped = ", CAPPED before the end" if training["capped"] else ""
    print(f"\n{training['steps']} steps in {training['seconds']:.0f} s{capped}, {training['precision']}, ", end="")
    print(f"{training['threads']} threads, {training['processor']}; {record['images']} photographs never trained on\n")
    shown = os.path.relpath(folder)
    for what, where in (
        (
            "look at it",
            f"{shown}/reconstructions.png and {shown}/codebook.png (figures and protocol: {shown}/metrics.json)",
        ),
        (
            "train on your own folder",
            "python -m trainers fit --config configs/image/quickstart.yaml --data.root DIR --name mine",
        ),
        ("swap the quantizer", "... --config configs/quantizers/simvq.yaml  (vq, ema, simvq, fsq, residual, rotation)"),
        (
            "open the report",
            f"wandb sync {shown}/wandb/offline-run-*  (needs an account; until then everything stays here)",
        ),
        ("use the layer in your own model", "examples/plain_pytorch.py, or: from vqkit import Quantizer"),
    ):
        print(f"  {what + ':':34}{where}")


def psnr(original: Tensor, image: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (original - image).square().mean().clamp(min=1e-10)))


def to_grid(image: Tensor) -> Tensor:
    return ((image.clamp(-1, 1) + 1) * 127.5).round()


def bfloat16_is_fast() -> bool:
    """Whether a convolution of the size that is trained runs at least a fifth faster in bfloat16: tried, not
    guessed.
    """
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
