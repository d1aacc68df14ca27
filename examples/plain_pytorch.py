"""Train a quantizer in a bare PyTorch loop: a small autoencoder of photographs, without Lightning.

    python examples/plain_pytorch.py                 # about a minute on two CPU cores
    python examples/plain_pytorch.py --images DIR --steps 2000 --codebook-size 1024

Needs torch, vqkit and Pillow. The lines that matter for your own model are in `train`, `evaluate` and `save_and_load`.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from the checkout, installed or not

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from vqkit import CodebookUsage, Quantizer

ROOT = Path(__file__).resolve().parents[1]
PATCH = 8  # pixels along a side for each index
DIM = 32


class ResidualBlock(nn.Module):
    """x + two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.body(x)


class Autoencoder(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> indices (B, H / 8, W / 8) -> images."""

    def __init__(self, codebook_size: int, channels: int = 96) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, channels, PATCH, PATCH), ResidualBlock(channels), nn.Conv2d(channels, DIM, 1)
        )
        self.quantizer = Quantizer("ema", dim=DIM, codebook_size=codebook_size, channel_dim=1)  # (B, 32, H, W)
        self.decoder = nn.Sequential(
            nn.Conv2d(DIM, channels, 3, padding=1),
            ResidualBlock(channels),
            nn.Conv2d(channels, 3 * PATCH**2, 1),
            nn.PixelShuffle(PATCH),
        )


def load_images(folder: Path) -> list[Tensor]:
    """The pictures of a folder as (3, H, W) in [-1, 1], cut to a multiple of the patch size."""
    images = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in Image.registered_extensions():
            continue
        with Image.open(path) as picture:
            picture = picture.convert("RGB")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(picture.height, picture.width, 3)
        height, width = (size // PATCH * PATCH for size in pixels.shape[:2])
        images.append(pixels[:height, :width].permute(2, 0, 1) / 127.5 - 1)
    if not images:
        raise SystemExit(f"{folder} holds no picture: give a folder of JPEG or PNG files")
    return images


def batches(images: Sequence[Tensor], batch_size: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random crops (B, 3, size, size), without end."""
    while True:
        crops = []
        for number in torch.randint(len(images), (batch_size,), generator=generator).tolist():
            image = images[number]
            top, left = (int(torch.randint(side - size + 1, (), generator=generator)) for side in image.shape[1:])
            crops.append(image[:, top : top + size, left : left + size])
        yield torch.stack(crops)


def psnr(images: Tensor, reconstructions: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, on the grid of 8-bit pixels."""
    grid = [((x.clamp(-1, 1) + 1) * 127.5).round() for x in (images, reconstructions)]
    errors = (grid[0] - grid[1]).square().flatten(1).mean(1).clamp(min=1e-10)
    return (10 * torch.log10(255**2 / errors)).mean().item()


def train(model: Autoencoder, loader: Iterator[Tensor], steps: int, learning_rate: float) -> None:
    """The loop. Only three lines of it are about quantization."""
    with torch.no_grad():  # 1. once, before training: codes where the latents are
        model.quantizer.initialize(model.encoder(next(loader)) for _ in range(32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    usage = CodebookUsage(model.quantizer.codebook_size)
    model.train()
    for number in range(1, steps + 1):
        images = next(loader)
        output = model.quantizer(model.encoder(images))  # 2. quantized, indices, loss, losses, nonfinite
        reconstructions = model.decoder(output.quantized)
        loss = mse_loss(reconstructions, images) + output.loss  # 3. the weighted commitment is in output.loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        usage.update(output.indices)
        if number % max(1, steps // 8) == 0:
            codes = usage.compute()
            print(
                f"step {number:5d}  loss {loss.item():.4f}  commitment {output.losses['commitment'].item():.4f}  "
                f"PSNR {psnr(images, reconstructions.detach()):.2f} dB  usage {codes['usage']:.1%}  "
                f"perplexity {codes['perplexity']:.0f}",
                flush=True,
            )
            usage.reset()


@torch.no_grad()
def evaluate(model: Autoencoder, images: Sequence[Tensor]) -> dict[str, float]:
    """PSNR, usage and rate on pictures that were not trained on."""
    model.eval()
    usage = CodebookUsage(model.quantizer.codebook_size)
    scores = []
    for image in images:
        indices = model.quantizer.encode(model.encoder(image[None]))  # (1, H / 8, W / 8) int64
        reconstruction = model.decoder(model.quantizer.decode(indices))
        scores.append(psnr(image[None], reconstruction))
        usage.update(indices)
    codes = usage.compute()
    return {
        "psnr": sum(scores) / len(scores),
        "bits_per_pixel": math.log2(model.quantizer.codebook_size) / PATCH**2,
        "usage": codes["usage"],
        "perplexity": codes["perplexity"],
    }


@torch.no_grad()
def save_and_load(model: Autoencoder, image: Tensor, folder: Path) -> None:
    """The quantizer as `config.json` and `model.safetensors`, and back."""
    model.quantizer.save_pretrained(folder)
    loaded = Quantizer.from_pretrained(folder)
    latents = model.encoder(image[None])
    if not torch.equal(loaded.encode(latents), model.quantizer.encode(latents)):
        raise RuntimeError("the loaded quantizer gives other indices than the one that was saved")


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate, save; the figures of the evaluation."""
    parser = argparse.ArgumentParser(prog="plain_pytorch", description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, default=ROOT / "assets/images/train", help="folder to train on")
    parser.add_argument("--evaluation", type=Path, default=ROOT / "assets/images/eval", help="folder to evaluate on")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--crop", type=int, default=64, help="pixels along a side of a training crop, a multiple of 8")
    parser.add_argument("--codebook-size", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="keep the quantizer in this folder")
    options = parser.parse_args(arguments)
    if options.crop < PATCH or options.crop % PATCH:
        parser.error(f"--crop {options.crop}: expected a multiple of {PATCH}")

    torch.manual_seed(options.seed)
    start = time.monotonic()
    images, unseen = load_images(options.images), load_images(options.evaluation)
    smallest = min(min(image.shape[1:]) for image in images)
    if smallest < options.crop:
        parser.error(f"--crop {options.crop}: a picture of {options.images} has only {smallest} pixels")
    model = Autoencoder(options.codebook_size)
    generator = torch.Generator().manual_seed(options.seed)
    train(model, batches(images, options.batch_size, options.crop, generator), options.steps, options.learning_rate)
    print("health  " + "  ".join(f"{name} {value:.3g}" for name, value in model.quantizer.health().items()))
    with tempfile.TemporaryDirectory() as temporary:
        save_and_load(model, unseen[0], options.output or Path(temporary))
    figures = evaluate(model, unseen)
    print(f"on {len(unseen)} photographs that were not trained on:")
    print("  ".join(f"{name} {value:.4g}" for name, value in figures.items()) + f"  ({time.monotonic() - start:.0f} s)")
    return figures


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        sys.exit(f"error: {error}")
