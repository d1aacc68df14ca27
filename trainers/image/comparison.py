"""An image tokenizer beside what a user would compare it with, on the same photographs at the same rate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from trainers.image.baselines import PatchKMeans, image_files
from trainers.image.figures import codebook_figure, reconstruction_figure
from trainers.image.metrics import ImageMetrics, psnr, to_uint8_grid
from vqkit import Tokenizer

KEPT = ("psnr", "ssim", "bpp", "codebook_usage", "perplexity")
PREPROCESSING = "native size, cropped at right and bottom to a multiple of the downsampling factor"


@dataclass
class Comparison:
    """Figures and images of a tokenizer and its baselines.

    Attributes:
        figures: of the tokenizer, as `ImageMetrics.compute` gives them.
        baselines: name -> psnr, ssim, bpp and protocol of `patch_kmeans`, `jpeg` and `webp`.
        images: name -> reconstructions (3, H, W) on the uint8 grid; `original` and `vqkit` too.
        counts: (K,) how often each code was used.
    """

    figures: dict[str, float]
    counts: Tensor
    baselines: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, list[Tensor]] = field(default_factory=dict)


def load_photographs(folder: Path, multiple: int) -> list[Tensor]:
    """All photographs below a folder, by name: (3, H, W) on the uint8 grid, cropped to a multiple of `multiple`.

    Raises:
        ValueError: there are none.
    """
    suffixes = Image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise ValueError(f"{folder} holds no photographs")
    images = []
    for path in paths:
        with Image.open(path) as picture:
            image = transforms.pil_to_tensor(picture.convert("RGB")).float()
        images.append(image[:, : image.shape[1] // multiple * multiple, : image.shape[2] // multiple * multiple])
    return images


def compare(
    tokenizer: Tokenizer, originals: Sequence[Tensor], training: Sequence[Tensor], *, kmeans_patches: int = 204_800
) -> Comparison:
    """Measure a tokenizer, k-means of raw patches at the same bits per pixel, and JPEG and WebP at the nearest rate.

    Args:
        tokenizer: with a single codebook.
        originals: photographs that it never saw, (3, H, W) on the uint8 grid.
        training: photographs for the k-means.
        kmeans_patches: how many patches of them.
    """
    if tokenizer.quantizer.level_axis:
        raise ValueError("the comparison is of tokenizers with a single codebook; this one has several levels")
    comparison = measure(tokenizer, originals)
    size = tokenizer.encoder.downsampling_factor
    baseline = PatchKMeans(training, tokenizer.quantizer.codebook_size, patch_size=size, num_patches=kmeans_patches)
    indices = [baseline.encode(original) for original in originals]
    comparison.images["patch_kmeans"] = [baseline.decode(tokens) for tokens in indices]
    metrics = ImageMetrics(baseline.codebook_size)
    _update(metrics, originals, comparison.images["patch_kmeans"], indices)
    figures = metrics.compute()
    comparison.baselines["patch_kmeans"] = {name: figures[name] for name in KEPT} | {"protocol": baseline.protocol}
    for file_format in ("JPEG", "WEBP"):
        images, rate, quality = image_files(originals, comparison.figures["bpp"], file_format)
        metrics = ImageMetrics(1)
        _update(metrics, originals, images, [torch.zeros(1, dtype=torch.int64)] * len(images))
        figures = metrics.compute()
        comparison.images[file_format.lower()] = images
        comparison.baselines[file_format.lower()] = {
            "psnr": figures["psnr"],
            "ssim": figures["ssim"],
            "bpp": rate,
            "protocol": f"Pillow, quality {quality}, whole files, one quality for all",
        }
    return comparison


@torch.no_grad()
def measure(tokenizer: Tokenizer, originals: Sequence[Tensor]) -> Comparison:
    """Reconstruct photographs from their tokens alone, as the reader of a token file would, and measure."""
    metrics = ImageMetrics(tokenizer.quantizer.codebook_size)
    indices = [tokenizer.encode(_normalize(original))[0] for original in originals]
    images = [to_uint8_grid(tokenizer.decode(tokens[None]))[0] for tokens in indices]
    _update(metrics, originals, images, indices)
    tokens = torch.cat([part.flatten() for part in indices])
    counts = torch.bincount(tokens, minlength=tokenizer.quantizer.codebook_size)
    return Comparison(metrics.compute(), counts, images={"original": list(originals), "vqkit": images})


def draw(comparison: Comparison, tokenizer: Tokenizer, folder: Path, *, rows: int = 4) -> None:
    """Write `reconstructions.png` and `codebook.png` into a folder."""
    titles = {"original": "original", "vqkit": "vqkit", "patch_kmeans": "k-means of patches", "jpeg": "JPEG"}
    originals = comparison.images["original"][:rows]
    columns, captions = {}, {}
    for name, title in titles.items():
        images = comparison.images[name][:rows]
        columns[title] = images
        figures = [float(psnr(a[None], b[None])) for a, b in zip(originals, images, strict=True)]
        captions[title] = ["" if name == "original" else f"{value:.1f} dB" for value in figures]
    reconstruction_figure(columns, captions, folder / "reconstructions.png")
    title = f"photographs it never saw, perplexity {comparison.figures['perplexity']:.0f}"
    codebook_figure(tokenizer, comparison.counts, folder / "codebook.png", title=title)


def table(figures: dict[str, Any], baselines: dict[str, dict[str, Any]]) -> str:
    """The comparison as lines for a person."""
    rows = {"vqkit (this run)": figures, "k-means of raw patches": baselines["patch_kmeans"]}
    rows |= {"JPEG": baselines["jpeg"], "WebP": baselines["webp"]}
    lines = [f"{'':24}{'PSNR':>9}{'SSIM':>8}{'bits/pixel':>12}{'usage':>8}{'perplexity':>12}"]
    for name, row in rows.items():
        use = (
            f"{row['codebook_usage']:>8.1%}{row['perplexity']:>12.0f}" if "perplexity" in row else f"{'-':>8}{'-':>12}"
        )
        lines.append(f"{name:24}{row['psnr']:>6.2f} dB{row['ssim']:>8.3f}{row['bpp']:>12.3f}{use}")
    return "\n".join(lines)


def _normalize(image: Tensor) -> Tensor:
    return image[None] / 127.5 - 1


def _update(
    metrics: ImageMetrics, originals: Sequence[Tensor], images: Sequence[Tensor], indices: Sequence[Tensor]
) -> None:
    for original, image, tokens in zip(originals, images, indices, strict=True):
        metrics.update(_normalize(original), _normalize(image), tokens[None])
