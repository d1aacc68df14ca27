"""An image tokenizer beside what a user would compare it with, on the same photographs at the same rate."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from trainers.core import comparison as shared
from trainers.core.comparison import Column, Comparison
from trainers.data.files import named
from trainers.image.baselines import FILE_FORMATS, PatchKMeans, image_files
from trainers.image.crops import channels_first
from trainers.image.figures import codebook_figure, reconstruction_figure
from trainers.image.files import scan
from trainers.image.fixed_crops import NativeCrop
from trainers.image.metrics import ImageMetrics, psnr, to_uint8_grid
from vqkit import Tokenizer
from vqkit.backbones.protocol import properties_of
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import FINGERPRINT_BYTES
from vqkit.bitstream.order import code_order
from vqkit.media.pictures import read
from vqkit.tokens.names import unescaped

TITLES = {
    "vqkit": "vqkit (this run)",
    "patch_kmeans": "k-means of raw patches",
    "jpeg": "JPEG",
    "webp": "WebP",
    "avif": "AVIF",
    "jpeg_coded": "JPEG, at coded bytes",
    "webp_coded": "WebP, at coded bytes",
    "avif_coded": "AVIF, at coded bytes",
}
"""Rows of the table, in order."""

COLUMNS = (
    Column("PSNR", 9, "{:.2f} dB", ("psnr",)),
    Column("SSIM", 8, "{:.3f}", ("ssim",)),
    Column("bits/pixel", 12, "{:.3f}", ("bpp",)),
    Column("zero-order", 12, "{:.3f}", ("entropy_bpp",)),
    Column("coded", 8, "{:.3f}", ("coded_bpp",)),
    Column("usage", 8, "{:.1%}", ("codebook_usage",)),
    Column("perplexity", 12, "{:.0f}", ("perplexity",)),
)
table = partial(shared.table, COLUMNS, TITLES)
"""The comparison as lines for a person."""
KEPT = ("psnr", "ssim", "bpp", "entropy_bpp", "coded_bpp", "codebook_usage", "perplexity")
PREPROCESSING = "native size, cropped at right and bottom to a multiple of the downsampling factor"


def load_photographs(folder: Path, multiple: int) -> list[Tensor]:
    """All photographs below a folder, by name: (3, H, W) on the uint8 grid, cropped to a multiple of `multiple`.

    Raises:
        ValueError: there are none.
    """
    usable = scan(folder, min_size=multiple)
    if not usable.files:
        raise ValueError(
            f"{folder} holds no photographs that can be used; {len(usable.skipped)} skipped: {named(usable.skipped)}"
        )
    images = []
    for file in usable.files:
        pixels = read(folder / unescaped(file.name), shorter_side=None)
        images.append(channels_first(NativeCrop(multiple).prepare(pixels, 0)).float())
    return images


@torch.no_grad()
def compare(
    tokenizer: Tokenizer, originals: Sequence[Tensor], training: Sequence[Tensor], *, kmeans_patches: int = 204_800
) -> Comparison:
    """Measure a tokenizer, k-means of raw patches at the same bits per pixel, and JPEG, WebP and AVIF.

    These come at the rate nearest to the nominal one of the tokenizer, and at that nearest to its coded one, what files
    of its tokens take. Photographs are reconstructed from their tokens alone, as the reader of such a file would.

    Args:
        tokenizer: with a single codebook and an index for each patch.
        originals: photographs that it never saw, (3, H, W) on the uint8 grid.
        training: photographs for the k-means.
        kmeans_patches: how many patches of them.

    Raises:
        ValueError: the tokenizer has several levels or scales, or its encoder does not say by which factor it reduces
            the sides.
    """
    tokenizer.quantizer.check_has_codes("the comparison")
    if tokenizer.quantizer.level_axis or not tokenizer.quantizer.index_per_position:
        raise ValueError(
            "the comparison is of tokenizers with a single codebook and an index for each patch; this one has several "
            "levels or scales"
        )
    patch_size = properties_of(tokenizer.encoder).downsampling_factor
    if patch_size is None:
        raise ValueError(
            f"encoder={type(tokenizer.encoder).__name__} has no downsampling_factor: patches need its side"
        )
    codebook_size = tokenizer.quantizer.codebook_size
    indices = [tokenizer.encode(normalized(original))[0] for original in originals]
    images = [to_uint8_grid(tokenizer.decode(tokens[None]))[0] for tokens in indices]
    metrics = metrics_of(codebook_size, originals, images, indices, TokenCodec.of(tokenizer))
    counts = torch.stack([torch.bincount(torch.cat([t.flatten() for t in indices]), minlength=codebook_size)])
    reconstructions = {"original": list(originals), "vqkit": images}
    comparison = Comparison(metrics.compute(), metrics.per_level(), counts, reconstructions)

    baseline = PatchKMeans(training, codebook_size, patch_size=patch_size, num_patches=kmeans_patches)
    indices = [baseline.encode(original) for original in originals]
    images = [baseline.decode(tokens) for tokens in indices]
    orders = (code_order(baseline.codes),)
    codec = TokenCodec((codebook_size,), fingerprint=bytes(FINGERPRINT_BYTES), orders=orders)
    figures = metrics_of(codebook_size, originals, images, indices, codec).compute()
    comparison.reconstructions["patch_kmeans"] = images
    comparison.baselines["patch_kmeans"] = {name: figures[name] for name in KEPT} | {"protocol": baseline.protocol}
    Image.init()
    for ending, wanted in (("", "bpp"), ("_coded", "coded_bpp")):
        for file_format in FILE_FORMATS:
            name = file_format.lower() + ending
            if file_format not in Image.SAVE:
                comparison.baselines[name] = f"not measured: this Pillow has no {file_format}"
                continue
            images, rate, quality = image_files(originals, comparison.figures[wanted], file_format)
            figures = metrics_of(1, originals, images, [torch.zeros(1, dtype=torch.int64)] * len(images)).compute()
            comparison.reconstructions[name] = images
            comparison.baselines[name] = {
                "psnr": figures["psnr"],
                "ssim": figures["ssim"],
                "bpp": rate,
                "protocol": f"Pillow, quality {quality}, whole files, one quality for all",
            }
    return comparison


def draw(comparison: Comparison, tokenizer: Tokenizer, folder: Path, *, rows: int = 4) -> None:
    """Write `reconstructions.png` and `codebook.png` into a folder."""
    titles = {name: TITLES[name] for name in ("vqkit", "patch_kmeans", "jpeg")}
    files = range(min(rows, len(comparison.reconstructions["original"])))
    columns, captions = comparison.grid(titles, files, lambda a, b: f"{float(psnr(a[None], b[None])):.1f} dB")
    reconstruction_figure(columns, captions, folder / "reconstructions.png")
    title = f"photographs it never saw, perplexity {comparison.figures['perplexity']:.0f}"
    codebook_figure(tokenizer, comparison.counts[0], folder / "codebook.png", title=title)


def normalized(image: Tensor) -> Tensor:
    """(3, H, W) on the uint8 grid as (1, 3, H, W) in [-1, 1]."""
    return image[None] / 127.5 - 1


def metrics_of(
    codebook_size: int,
    originals: Sequence[Tensor],
    images: Sequence[Tensor],
    indices: Sequence[Tensor],
    codec: TokenCodec | None = None,
) -> ImageMetrics:
    """What measures images (3, H, W) on the uint8 grid beside their originals, and their indices (h, w)."""
    metrics = ImageMetrics(codebook_size)
    for original, image, tokens in zip(originals, images, indices, strict=True):
        metrics.update(normalized(original), normalized(image), tokens[None])
        if codec is not None:
            metrics.add_coded(codec, original[None], tokens[None])
    return metrics
