"""Filters by which pictures get another size."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from vqkit.media.pictures import reduced_size


class ShownWithArguments:
    """What is shown, and written into records, as a call with its arguments."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class ResizeFilter(ShownWithArguments, ABC):
    """A filter of 8-bit pictures.

    Attributes:
        antialias: whether pixels are averaged where pictures become smaller.
        shrinks_files: whether files may be shrunk while they are decoded.
    """

    name: ClassVar[str]
    antialias = True
    shrinks_files: ClassVar[bool] = False

    def size(self, height: int, width: int, side: int) -> tuple[int, int]:
        """(height, width) where the shorter side becomes `side`, and the longer one is rounded down."""
        return (side, int(side * width / height)) if height <= width else (int(side * height / width), side)

    @abstractmethod
    def resize(self, pixels: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
        """(H, W, 3) uint8 -> (height, width, 3) uint8."""


class _PillowFilter(ResizeFilter):
    """One of Pillow's, which are antialiased."""

    pillow: ClassVar[Image.Resampling]

    def resize(self, pixels: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
        """As Pillow does."""
        return numpy.array(Image.fromarray(pixels).resize((width, height), self.pillow))


class LanczosFilter(_PillowFilter):
    """Pillow's Lanczos filter of 3 lobes, antialiased."""

    name = "lanczos"
    pillow = Image.Resampling.LANCZOS


class BilinearFilter(_PillowFilter):
    """Bilinear interpolation, by Pillow.

    Args:
        antialias: False interpolates between the nearest pixels however small the picture becomes, in float32, as
            OpenCV and albumentations do, and torchvision on tensors.
    """

    name = "bilinear"
    pillow = Image.Resampling.BILINEAR

    def __init__(self, *, antialias: bool = True) -> None:
        self.antialias = antialias

    def resize(self, pixels: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
        """As Pillow does; without antialiasing the nearest whole numbers."""
        if self.antialias:
            return super().resize(pixels, height, width)
        floats = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
        resized = F.interpolate(floats, (height, width), mode=self.name, align_corners=False)
        return resized[0].round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


class BicubicFilter(BilinearFilter):
    """The same with bicubic interpolation, a = -0.5; without antialiasing a = -0.75, as OpenCV has it."""

    name = "bicubic"
    pillow = Image.Resampling.BICUBIC


class FastBicubicFilter(ResizeFilter):
    """Bicubic, antialiased, while the file is decoded: a JPEG at a half, quarter or eighth of its size where that is
    enough, up to four times faster than `BicubicFilter` and 45 to 50 dB from it on photographs.
    """

    name = "bicubic"
    shrinks_files = True

    def size(self, height: int, width: int, side: int) -> tuple[int, int]:
        """The longer side of pictures that become smaller is rounded to the nearest."""
        return reduced_size(height, width, side) if min(height, width) > side else super().size(height, width, side)

    def resize(self, pixels: numpy.ndarray, height: int, width: int) -> numpy.ndarray:
        """What is left to do behind the file: smaller pictures are enlarged by torchvision."""
        channels_first = torch.from_numpy(pixels).permute(2, 0, 1)
        resized = functional.resize(channels_first, [height, width], InterpolationMode.BICUBIC, antialias=True)
        return resized.permute(1, 2, 0).numpy()
