"""What a user would compare an image tokenizer with at the same rate: k-means of raw patches, and image files."""

import io
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from vqkit.clustering import kmeans
from vqkit.kernels import nearest

FileFormat = Literal["JPEG", "WEBP", "AVIF"]
FILE_FORMATS: tuple[FileFormat, ...] = ("JPEG", "WEBP", "AVIF")
QUALITIES = {"JPEG": range(1, 96), "WEBP": range(0, 101), "AVIF": range(0, 101)}
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True},
    "WEBP": {"method": 6},
    "AVIF": {"speed": 6, "max_threads": 1},
}


class PatchKMeans:
    """Vector quantization of raw pixels: each patch is replaced by the nearest of K patches, found by k-means.

    The strongest tokenizer without a network, and the right yardstick: at equal patch size and K it spends the same
    bits.

    Args:
        images: training images (3, H, W), float32 on the uint8 grid 0 ... 255.
        codebook_size: K.
        patch_size: side of a patch in pixels.
        num_patches: training patches, drawn at random positions, in proportion to the images' areas.
        iterations: Lloyd rounds after k-means++ seeding.
        seed: of the draw and of the k-means.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        codebook_size: int,
        *,
        patch_size: int,
        num_patches: int = 204_800,
        iterations: int = 20,
        seed: int = 0,
    ) -> None:
        self.patch_size = patch_size
        self.codebook_size = codebook_size
        patches = draw_patches(images, num_patches, patch_size, torch.Generator().manual_seed(seed))
        self.codes = kmeans(patches, codebook_size, iterations=iterations, seed=seed).centers
        self.protocol = (
            f"k-means++ and {iterations} Lloyd rounds on {len(patches)} training patches of {patch_size} x {patch_size}"
            f" x 3 pixels from {len(images)} images, K = {codebook_size}"
        )

    def encode(self, image: Tensor) -> Tensor:
        """(3, H, W) to indices (H / p, W / p)."""
        p = self.patch_size
        return nearest(rearrange(image, "c (h p) (w q) -> h w (c p q)", p=p, q=p), self.codes).indices

    def decode(self, indices: Tensor) -> Tensor:
        """Indices (h, w) to an image (3, h p, w p) on the uint8 grid."""
        p = self.patch_size
        patches = self.codes[indices].round().clamp(0, 255)
        return rearrange(patches, "h w (c p q) -> c (h p) (w q)", p=p, q=p)


def draw_patches(images: Sequence[Tensor], count: int, patch_size: int, generator: torch.Generator) -> Tensor:
    """Patches at random positions, (count, 3 p p), each image in proportion to its area."""
    areas = torch.tensor([image.shape[1] * image.shape[2] for image in images], dtype=torch.float64)
    owners = torch.multinomial(areas, count, replacement=True, generator=generator)
    drawn = []
    for image, wanted in zip(images, torch.bincount(owners, minlength=len(images)).tolist(), strict=True):
        windows = image.unfold(1, patch_size, 1).unfold(2, patch_size, 1)  # a view: (3, H', W', p, p)
        rows = torch.randint(windows.shape[1], (wanted,), generator=generator)
        columns = torch.randint(windows.shape[2], (wanted,), generator=generator)
        drawn.append(rearrange(windows[:, rows, columns], "c n p q -> n (c p q)"))
    return torch.cat(drawn)


def image_files(
    images: Sequence[Tensor], bits_per_pixel: float, file_format: FileFormat
) -> tuple[list[Tensor], float, int]:
    """Compress with the one quality setting whose mean rate over the images is nearest to a given one.

    Whole files are counted, headers included, as they are stored.

    Args:
        images: (3, H, W) float32 on the uint8 grid.
        bits_per_pixel: the rate to come near to.
        file_format: as Pillow calls it.

    Returns:
        reconstructions on the uint8 grid, their rate in bits per pixel (mean over images), and the quality.
    """

    @cache
    def rate(quality: int) -> float:
        rates = [8 * len(_encode(image, file_format, quality)) / image[0].numel() for image in images]
        return sum(rates) / len(rates)

    # Rates grow with quality, near enough for a bisection to find the neighbours of the wanted rate.
    low, high = QUALITIES[file_format].start, QUALITIES[file_format].stop - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) < bits_per_pixel else (low, middle)
    quality = min((low, high), key=lambda candidate: abs(rate(candidate) - bits_per_pixel))
    return [_decode(_encode(image, file_format, quality)) for image in images], rate(quality), quality


def _encode(image: Tensor, file_format: str, quality: int) -> bytes:
    picture = Image.fromarray(image.permute(1, 2, 0).byte().numpy())
    buffer = io.BytesIO()
    picture.save(buffer, format=file_format, quality=quality, **OPTIONS[file_format])
    return buffer.getvalue()


def _decode(data: bytes) -> Tensor:
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.reshape(picture.height, picture.width, 3).permute(2, 0, 1).float()
