"""How images become as large as a network wants them."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor


class BilinearResize:
    """Bilinear interpolation to a square, such as that of TiTok's losses (224 pixels, antialiased).

    Source: Yu et al. 2024 (TiTok, arXiv:2406.07550), its code.

    Args:
        resolution: height and width afterwards, in pixels; images of another aspect are stretched.
        antialias: whether pixels are averaged where images become smaller.

    Raises:
        ValueError: `resolution` is below 1.
    """

    mode: ClassVar[str] = "bilinear"

    def __init__(self, resolution: int = 224, *, antialias: bool = True) -> None:
        if resolution < 1:
            raise ValueError(f"resolution={resolution}: expected 1 or more pixels, such as 224")
        self.resolution = resolution
        self.antialias = antialias

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, resolution, resolution)."""
        size = (self.resolution, self.resolution)
        return F.interpolate(images, size, mode=self.mode, align_corners=False, antialias=self.antialias)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.resolution}, antialias={self.antialias})"


class BicubicResize(BilinearResize):
    """The same with bicubic interpolation, as timm's networks and DINOv2 are measured."""

    mode = "bicubic"


class TensorFlowResize(BilinearResize):
    """Bilinear interpolation of TensorFlow 1: place i of the result is place i * old / new of the image.

    Corners are not aligned, and pixels have no width: the picture moves up and left by up to half a pixel.

    Source: `tf.image.resize_bilinear` with its defaults, which the first FID was computed with.

    Args:
        resolution: see `BilinearResize`.
    """

    def __init__(self, resolution: int = 299) -> None:
        super().__init__(resolution, antialias=False)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, resolution, resolution)."""
        for dim in (-1, -2):
            old = images.shape[dim]
            places = torch.arange(self.resolution, device=images.device, dtype=torch.float32) * (old / self.resolution)
            low = places.long()
            share = (places - low).to(images.dtype).reshape(-1, *[1] * (-1 - dim))
            low_pixels, high_pixels = (images.index_select(dim, at) for at in (low, (low + 1).clamp(max=old - 1)))
            images = low_pixels + (high_pixels - low_pixels) * share
        return images
