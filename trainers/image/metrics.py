"""Image metrics, each with the protocol by which it was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    structural_similarity_index_measure,
)

from trainers.core.metrics import TokenizerMetrics, versions
from trainers.image.measures.measure import ImageMeasure
from vqkit.bitstream.container import Picture
from vqkit.distributed import all_reduce_sum

MS_SSIM_SMALLEST = 161
"""Five scales of an 11 pixel window need more than (11 - 1) * 2**4 pixels on the shorter side."""

PSNR_OF_EQUAL_IMAGES = 100.0
"""In dB, in place of infinity, which would swallow the mean."""

PROTOCOL = {
    "range": "[-1, 1], clipped, rounded to the uint8 grid (originals and reconstructions alike); NaN is 0",
    "psnr": "10 log10(255^2 / mse) per image over pixels and channels, then the mean over images; equal images: 100 dB",
    "ssim": "torchmetrics, Gaussian window 11 px, sigma 1.5, data_range 255, per image, then the mean over images",
    "ms_ssim": "torchmetrics, five scales with their published weights, window as for ssim, then the mean over images",
}
CODES_PROTOCOL = {
    "bpp": "tokens * log2(codebook_size) / pixels, per level, without entropy coding",
    "entropy_bpp": "tokens * order-0 entropy of the codes of this very set / pixels, per level",
    "codebook_usage": "share of the codes used at least once by the whole set; perplexity 2^entropy of the whole set",
}
CODED_PROTOCOL = {"coded_bpp": "bits of files of indices (vqkit.bitstream), one for each image, with headers / pixels"}
CONTINUOUS_PROTOCOL = {
    "kl": "KL(posterior || N(0, 1)) in nats, summed over dimensions, mean over the latent vectors of the set",
    "kl_bpp": "the same in bits, summed over latent vectors / pixels; decoded is the posterior's mean, without noise",
}
"""Of figures where there are no codes."""
BY_PIXELS = "by a hash of the pixels"
PACKAGES = ("torch", "torchmetrics", "torchvision", "pillow")


def to_uint8_grid(images: Tensor) -> Tensor:
    """Images in [-1, 1] to float32 whole numbers 0 ... 255; clipped, never wrapped, and 128 where they are NaN."""
    return ((images.detach().float().nan_to_num(0.0, 1.0, -1.0).clamp(-1, 1) + 1) * 127.5).round()


def psnr(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal to noise ratio of each image, in dB.

    Args:
        originals: (B, C, H, W) on the uint8 grid.
        reconstructions: like `originals`.

    Returns:
        (B,) at most `PSNR_OF_EQUAL_IMAGES`.
    """
    error = (originals - reconstructions).square().flatten(1).mean(1)
    ratio = 10 * torch.log10(255**2 / error)
    return torch.where(error == 0, PSNR_OF_EQUAL_IMAGES, ratio)


class ImageMetrics(TokenizerMetrics):
    """Distortion, rate and codebook usage of a tokenizer on a set of images.

    Args:
        codebook_sizes: K of each level, or of the single codebook; with several the last axis of the indices is levels.
            Empty where latents are continuous.
        books: the codebook of each level; see `CodebookUsage`.
        measures: by frozen networks; they start anew.
    """

    def __init__(
        self,
        codebook_sizes: int | Sequence[int],
        *,
        books: Sequence[int] | None = None,
        measures: Sequence[ImageMeasure] = (),
    ) -> None:
        super().__init__(codebook_sizes, books=books)
        self.measures = measures
        for measure in measures:
            measure.reset(torch.device("cpu"))
        self.tokens = torch.zeros(len(self.codebook_sizes), dtype=torch.int64)
        # Sums over images: psnr, ssim, ms_ssim, images, images with ms_ssim, pixels, copies with NaN or infinity.
        self.sums = torch.zeros(7, dtype=torch.float64)

    def to(self, device: torch.device) -> Self:
        """See `TokenizerMetrics`; measures start anew there."""
        for measure in self.measures:
            measure.reset(device)
        return super().to(device)

    @torch.no_grad()
    def update(
        self, originals: Tensor, reconstructions: Tensor, indices: Tensor, groups: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Add a batch.

        Args:
            originals: (B, C, H, W) in [-1, 1], any floating dtype.
            reconstructions: like `originals`; values outside the range are clipped.
            indices: (B, h, w[, levels]) int64.
            groups: (B,) int64, equal for images that measures keep in one half; None divides by a hash of the pixels.

        Returns:
            psnr, ssim, of images that are large enough ms_ssim, and the measures' own: (B,) each.

        Raises:
            ValueError: the shapes differ.
        """
        if originals.shape != reconstructions.shape:
            raise ValueError(
                f"reconstructions have shape {tuple(reconstructions.shape)}: expected {tuple(originals.shape)}"
            )
        with torch.autocast(originals.device.type, enabled=False):
            original, reconstructed = to_uint8_grid(originals), to_uint8_grid(reconstructions)
            pair = {"preds": reconstructed, "target": original, "data_range": 255.0}
            figures = {"psnr": psnr(original, reconstructed), "ssim": _each(structural_similarity_index_measure, pair)}
            large = min(originals.shape[-2:]) >= MS_SSIM_SMALLEST
            if large:
                figures["ms_ssim"] = _each(multiscale_structural_similarity_index_measure, pair)
            for measure in self.measures:
                alike = _hash(original) if groups is None else groups
                figures |= measure.update(original / 127.5 - 1, reconstructed / 127.5 - 1, alike)
        sums = [figures[name].sum() if name in figures else torch.zeros(()) for name in ("psnr", "ssim", "ms_ssim")]
        count, pixels = len(originals), len(originals) * originals.shape[-2] * originals.shape[-1]
        counts = torch.tensor([count, count * large, pixels], dtype=torch.float64)
        broken = (~reconstructions.isfinite()).flatten(1).any(1).sum()
        summed = torch.stack([value.to(self.sums) for value in (*sums, *counts, broken)])
        self.sums += summed
        if self.usage is not None:
            self.usage.update(indices)
        if self.codebook_sizes:
            self.tokens += (indices.reshape(-1, len(self.codebook_sizes)) >= 0).sum(0).to(self.tokens)
        return figures

    def extent(self, originals: Tensor) -> Picture:
        """See `TokenizerMetrics`."""
        return Picture(originals.shape[-2], originals.shape[-1])

    def compute(self) -> dict[str, float]:
        """The figures of all ranks; every rank must call it.

        Returns:
            psnr (dB), ssim, ms_ssim (only if every image was large enough), those of the measures, images, not_finite
            (reconstructions with NaN or infinity), bpp, tokens_per_image, coded_bpp if files were added, and
            entropy_bpp and `usage_figures` if the codes can be counted; without codes kl (nats per latent vector) and
            kl_bpp (bits per pixel).

        Raises:
            ValueError: no image was seen on any rank.
        """
        psnr_sum, ssim_sum, ms_ssim_sum, images, large, pixels, broken = all_reduce_sum(self.sums.clone()).tolist()
        tokens, (nats, vectors) = all_reduce_sum(self.tokens).tolist(), all_reduce_sum(self.divergence).tolist()
        usage, entropies = self.usage_figures()
        coded_bits = self.coded_bits()
        if not images:
            raise ValueError("no images were measured: the split is empty")
        figures = {"psnr": psnr_sum / images, "ssim": ssim_sum / images}
        if large == images:
            figures["ms_ssim"] = ms_ssim_sum / images
        for measure in self.measures:
            figures |= measure.compute()
        if self.codebook_sizes:
            bits = sum(count * math.log2(size) for count, size in zip(tokens, self.codebook_sizes, strict=True))
            figures |= {"bpp": bits / pixels, "tokens_per_image": sum(tokens) / images}
        elif vectors:
            figures |= {"kl": nats / vectors, "kl_bpp": nats / math.log(2) / pixels}
        figures |= {"coded_bpp": coded_bits / pixels} if coded_bits else {}
        figures |= {"images": int(images), "not_finite": int(broken)}
        if not usage:
            return figures
        bits = sum(count * entropy for count, entropy in zip(tokens, entropies, strict=True))
        return figures | {"entropy_bpp": bits / pixels} | usage


def protocol(
    figures: Mapping[str, float],
    *,
    measures: Sequence[ImageMeasure] = (),
    halves: str = BY_PIXELS,
    **circumstances: Any,
) -> dict[str, Any]:
    """How `figures` were measured, so that nobody compares what cannot be compared.

    Args:
        figures: what `ImageMetrics.compute` returned.
        measures: as given to `ImageMetrics`.
        halves: as for `ImageMeasure.protocol`.
        circumstances: facts that only the caller knows (split, resize and crop, checkpoint, precision).
    """
    record: dict[str, Any] = PROTOCOL | (CODES_PROTOCOL if "bpp" in figures else CONTINUOUS_PROTOCOL)
    record |= CODED_PROTOCOL if "coded_bpp" in figures else {}
    if "ms_ssim" not in figures:
        record["ms_ssim"] = f"not measured: needs at least {MS_SSIM_SMALLEST} pixels on the shorter side of every image"
    if measures:
        record["measures"] = {measure.name: measure.protocol(halves=halves) for measure in measures}
    return record | {"images": figures["images"]} | circumstances | {"versions": versions(PACKAGES)}


def _hash(images: Tensor) -> Tensor:
    """(B,) int64 of images on the uint8 grid: the same whatever the order, the batch and the ranks."""
    values = images.flatten(1).to(torch.int64)
    return (values * torch.arange(1, 2 * values.shape[1], 2, device=values.device)).sum(1)


def _each(metric: Any, pair: dict[str, Any]) -> Tensor:
    return metric(**pair, reduction="none").reshape(-1)
