"""Crops without chance, for evaluation and prediction."""

from abc import abstractmethod
from typing import Any, ClassVar

import numpy
from torch import Tensor

from trainers.image.crops import Crop, ShorterSideCrop, adm_resized, channels_first
from trainers.image.resampling import FastBicubicFilter


class FixedCrop(Crop):
    """A crop without chance: all of it is done by `prepare`.

    Attributes:
        pads: whether pixels are added that the picture does not have.
        taken: in words, what is encoded of each picture.
    """

    pads: ClassVar[bool] = False
    taken: ClassVar[str] = "the centre square of each is encoded"

    def cut(self, pixels: numpy.ndarray, resolution: int, generator: numpy.random.Generator) -> Tensor:
        """The prepared picture."""
        return channels_first(pixels)

    def extent(self, height: int, width: int) -> tuple[int, int] | None:
        """(height, width) of the part of the result that is picture, from its upper left corner; None is all of it."""
        return None

    def share(self, height: int, width: int, resolution: int) -> float:
        """The share of a picture's area that is seen."""
        return min(height, width) / max(height, width)

    @abstractmethod
    def record(self, resolution: int) -> dict[str, Any]:
        """What is done, for the record of a measurement: `decoding`, `resize`, `filter`, `antialias` and `crop`."""


class CentreCrop(ShorterSideCrop, FixedCrop):
    """The centre square of a picture whose shorter side is resized first.

    What torchvision's `Resize` and `CenterCrop` make of an image of Pillow.

    Arguments are those of `ShorterSideCrop`.
    """

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """The square."""
        return resolution, resolution

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """Resizes, and takes the centre."""
        resized = super().prepare(pixels, resolution)
        top, left = (round((size - resolution) / 2) for size in resized.shape[:2])
        return numpy.ascontiguousarray(resized[top : top + resolution, left : left + resolution])

    def share(self, height: int, width: int, resolution: int) -> float:
        """Less with a `resize_ratio`."""
        return super().share(height, width, resolution) * (resolution / self.side(resolution)) ** 2

    def record(self, resolution: int) -> dict[str, Any]:
        """The resize, and the crop."""
        side = self.side(resolution)
        return {
            "decoding": f"JPEG at 1/2, 1/4 or 1/8 where its shorter side has more than {side} px"
            if self.filter.shrinks_files
            else "whole",
            "resize": f"shorter side to {side} px",
            "filter": self.filter.name,
            "antialias": self.filter.antialias,
            "crop": "centre square",
        }


class ADMCentreCrop(FixedCrop):
    """ADM's centre square: halved by a box filter while twice as large, then bicubic by Pillow.

    Source: Dhariwal and Nichol 2021 ([arXiv:2105.05233](https://arxiv.org/abs/2105.05233)), guided-diffusion's
    `center_crop_arr`.
    """

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """The square."""
        return resolution, resolution

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """All of it."""
        resized = adm_resized(pixels, resolution)
        top, left = ((size - resolution) // 2 for size in resized.shape[:2])
        return numpy.ascontiguousarray(resized[top : top + resolution, left : left + resolution])

    def record(self, resolution: int) -> dict[str, Any]:
        """The resize, and the crop."""
        return {
            "decoding": "whole",
            "resize": f"shorter side to {resolution} px",
            "filter": "box to less than twice the side, then bicubic",
            "antialias": True,
            "crop": "centre square",
        }


class NativeCrop(FixedCrop):
    """A whole picture in its own size, save for what is left at right and bottom of a multiple of the patches.

    For evaluation and prediction: sizes differ.

    Args:
        multiple: of height and width in pixels; that of the tokenizer, such as its downsampling factor.

    Raises:
        ValueError: `multiple` is below 1.
    """

    square = False
    taken = "each is encoded in its own size"

    def __init__(self, multiple: int) -> None:
        if multiple < 1:
            raise ValueError(f"multiple must be at least 1 pixel, such as the downsampling factor, got {multiple}.")
        self.multiple = multiple

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """Rounded down to multiples."""
        return height - height % self.multiple, width - width % self.multiple

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """Cuts at right and bottom."""
        height, width = self.prepared_size(pixels.shape[0], pixels.shape[1], resolution)
        return numpy.ascontiguousarray(pixels[:height, :width])

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """All of what is encoded."""
        return self.prepared_size(height, width, 0)

    def share(self, height: int, width: int, resolution: int) -> float:
        """What is not cut off."""
        down, across = self.prepared_size(height, width, resolution)
        return down * across / (height * width)

    def record(self, resolution: int) -> dict[str, Any]:
        """The crop."""
        crop = f"cropped at right and bottom to a multiple of {self.multiple} px"
        return {"decoding": "whole", "resize": "none", "filter": None, "antialias": None, "crop": crop}


class NativePadding(NativeCrop):
    """A whole picture in its own size, of which the last row and column are repeated up to a multiple of the patches.

    For prediction, where the true extent is written beside the tokens; a measure would count what is repeated. The
    argument is that of `NativeCrop`.
    """

    pads = True

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """Rounded up to multiples."""
        return height + -height % self.multiple, width + -width % self.multiple

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """Repeats the last row and column."""
        height, width = pixels.shape[:2]
        return numpy.pad(pixels, ((0, -height % self.multiple), (0, -width % self.multiple), (0, 0)), "edge")

    def extent(self, height: int, width: int) -> tuple[int, int]:
        """The picture's own size."""
        return height, width

    def share(self, height: int, width: int, resolution: int) -> float:
        """All of it."""
        return 1.0


DEFAULT_EVALUATION = CentreCrop(FastBicubicFilter())
"""The centre square, of a file that is shrunk while it is decoded."""
