"""Crops: which part of a picture is seen, and at what size; those that draw, for training.

Everything that is the same for each sample of a picture is done once (`prepare`), and kept in memory as far as it
reaches; what differs from sample to sample is `cut`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import numpy
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from trainers.image.files import crop_side
from trainers.image.resampling import ResizeFilter, ShownWithArguments

ATTEMPTS = 10  # of torchvision's RandomResizedCrop, before it takes the centre


class Crop(ShownWithArguments, ABC):
    """A part of a picture as a square of `resolution` pixels.

    Attributes:
        square: whether all results have one size, as batches of training must.
    """

    square: ClassVar[bool] = True

    def file_side(self, resolution: int) -> int | None:
        """The shorter side, in pixels, to which a file may be shrunk while it is decoded; None decodes it whole."""
        return None

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """(height, width) of what `prepare` makes of a picture."""
        return height, width

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """What all samples of a picture have in common: (H, W, 3) uint8 -> (*prepared_size, 3) uint8."""
        return pixels

    @abstractmethod
    def cut(self, pixels: numpy.ndarray, resolution: int, generator: numpy.random.Generator) -> Tensor:
        """One sample of a prepared picture: (H, W, 3) uint8 -> (3, resolution, resolution) uint8."""


class RandomScaleCrop(Crop):
    """A square of a random side at a random place, resized to the resolution: vqkit's own.

    Files are shrunk while they are decoded so that the least side is the resolution.

    Args:
        scale: least and greatest side as a share of the picture's shorter side, in (0, 1]; its logarithm is uniform.
            Crops are never cut smaller than the resolution where the picture allows it.

    Raises:
        ValueError: `scale` is out of range.
    """

    def __init__(self, scale: tuple[float, float] = (0.5, 1.0)) -> None:
        self.scale = checked_scale("scale", scale)

    def file_side(self, resolution: int) -> int:
        """The shorter side of which the least crop is the resolution."""
        return round(resolution / self.scale[0])

    def cut(self, pixels: numpy.ndarray, resolution: int, generator: numpy.random.Generator) -> Tensor:
        """A random square, bicubic and antialiased by torchvision."""
        size, across, down = generator.random(3)
        height, width = pixels.shape[:2]
        side = crop_side(size, shorter_side=min(height, width), resolution=resolution, scale=self.scale)
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        return functional.resized_crop(
            channels_first(pixels), top, left, side, side, [resolution] * 2, InterpolationMode.BICUBIC, antialias=True
        )


class ShorterSideCrop(Crop):
    """A square of a picture whose shorter side is resized first.

    Args:
        filter: of the resize.
        resize_ratio: the shorter side over the resolution, rounded to whole pixels; at least 1.

    Raises:
        ValueError: `resize_ratio` is below 1.
    """

    def __init__(self, filter: ResizeFilter, *, resize_ratio: float = 1.0) -> None:
        if not 1 <= resize_ratio < math.inf:
            raise ValueError(f"resize_ratio must be at least 1, such as 1.125, got {resize_ratio}.")
        self.filter = filter
        self.resize_ratio = float(resize_ratio)

    def side(self, resolution: int) -> int:
        """Pixels of the shorter side."""
        return round(self.resize_ratio * resolution)

    def file_side(self, resolution: int) -> int | None:
        """The shorter side, if the filter may shrink files."""
        return self.side(resolution) if self.filter.shrinks_files else None

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """The shorter side resized."""
        return self.filter.size(height, width, self.side(resolution))

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """Resizes where the size differs."""
        height, width = pixels.shape[:2]
        size = self.filter.size(height, width, self.side(resolution))
        return pixels if size == (height, width) else self.filter.resize(pixels, *size)


class RandomCrop(ShorterSideCrop):
    """A square at a random place of a picture whose shorter side is resized first.

    What torchvision's `Resize` and `RandomCrop` make of an image of Pillow.

    Arguments are those of `ShorterSideCrop`.
    """

    def cut(self, pixels: numpy.ndarray, resolution: int, generator: numpy.random.Generator) -> Tensor:
        """A random square."""
        return random_square(pixels, resolution, generator)


class ADMRandomCrop(Crop):
    """ADM's random square: the shorter side resized to a random length as by `ADMCentreCrop`, then a random place.

    Source: Dhariwal and Nichol 2021 ([arXiv:2105.05233](https://arxiv.org/abs/2105.05233)), guided-diffusion's
    `random_crop_arr`.

    Args:
        scale: least and greatest side of the crop as a share of the shorter side, in (0, 1]; the length of the shorter
            side is uniform.

    Raises:
        ValueError: `scale` is out of range.
    """

    def __init__(self, scale: tuple[float, float] = (0.8, 1.0)) -> None:
        self.scale = checked_scale("scale", scale)

    def sides(self, resolution: int) -> tuple[int, int]:
        """The least and the greatest length of the shorter side, in pixels."""
        return math.ceil(resolution / self.scale[1]), math.ceil(resolution / self.scale[0])

    def prepared_size(self, height: int, width: int, resolution: int) -> tuple[int, int]:
        """Halved while all samples would be."""
        return halved_size(height, width, self.sides(resolution)[1])

    def prepare(self, pixels: numpy.ndarray, resolution: int) -> numpy.ndarray:
        """Halves as often as all samples would."""
        return numpy.array(halved(Image.fromarray(pixels), self.sides(resolution)[1]))

    def cut(self, pixels: numpy.ndarray, resolution: int, generator: numpy.random.Generator) -> Tensor:
        """A random length of the shorter side, and a random place."""
        least, greatest = self.sides(resolution)
        return random_square(adm_resized(pixels, int(generator.integers(least, greatest + 1))), resolution, generator)


class RandomResizedCrop(Crop):
    """A rectangle of random area and aspect ratio at a random place, resized to a square.

    torchvision's `RandomResizedCrop` on an image of Pillow. Source: Szegedy et al. 2015
    ([arXiv:1409.4842](https://arxiv.org/abs/1409.4842)), section 6.

    Args:
        filter: of the resize.
        scale: least and greatest area as a share of the picture's, in (0, 1].
        ratio: least and greatest width over height, above 0; its logarithm is uniform.

    Raises:
        ValueError: `scale` or `ratio` is out of range, or the filter shrinks files, which have many crops here.
    """

    def __init__(
        self,
        filter: ResizeFilter,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.scale = checked_scale("scale", scale)
        if not 0 < ratio[0] <= ratio[1] < math.inf:
            raise ValueError(f"ratio must be (least, greatest) width over height, 0 < least <= greatest, got {ratio}.")
        if filter.shrinks_files:
            raise ValueError(f"filter={filter!r} shrinks whole files: give another one, such as BicubicFilter.")
        self.filter = filter
        self.ratio = (float(ratio[0]), float(ratio[1]))

    def box(self, height: int, width: int, generator: numpy.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a random rectangle; the centre where none was found that fits."""
        least, greatest = (math.log(bound) for bound in self.ratio)
        for _ in range(ATTEMPTS):
            area = height * width * generator.uniform(*self.scale)
            aspect = math.exp(generator.uniform(least, greatest))
            across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < across <= width and 0 < down <= height:
                top, left = generator.integers(0, height - down + 1), generator.integers(0, width - across + 1)
                return int(top), int(left), down, across
        aspect = min(max(width / height, self.ratio[0]), self.ratio[1])
        across, down = min(width, round(height * aspect)), min(height, round(width / aspect))
        return (height - down) // 2, (width - across) // 2, down, across

    def cut(self, pixels: numpy.ndarray, resolution: int, generator: numpy.random.Generator) -> Tensor:
        """A random rectangle, resized."""
        top, left, height, width = self.box(pixels.shape[0], pixels.shape[1], generator)
        part = numpy.ascontiguousarray(pixels[top : top + height, left : left + width])
        return channels_first(self.filter.resize(part, resolution, resolution))


def channels_first(pixels: numpy.ndarray) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(pixels).permute(2, 0, 1)


def random_square(pixels: numpy.ndarray, side: int, generator: numpy.random.Generator) -> Tensor:
    """A square at a random place: (H, W, 3) -> (3, side, side)."""
    top, left = (int(generator.integers(0, size - side + 1)) for size in pixels.shape[:2])
    return channels_first(pixels[top : top + side, left : left + side])


def halved_size(height: int, width: int, side: int) -> tuple[int, int]:
    """(height, width) after halving while the shorter side is at least twice `side`."""
    return [(height, width), *halvings(height, width, side)][-1]


def halvings(height: int, width: int, side: int) -> Iterator[tuple[int, int]]:
    """(height, width) after each halving while the shorter side is at least twice `side`."""
    while min(height, width) >= 2 * side:
        height, width = height // 2, width // 2
        yield height, width


def halved(image: Image.Image, side: int) -> Image.Image:
    """Halved by a box filter, step by step, while the shorter side is at least twice `side`."""
    for height, width in halvings(image.height, image.width, side):
        image = image.resize((width, height), Image.Resampling.BOX)
    return image


def adm_resized(pixels: numpy.ndarray, side: int) -> numpy.ndarray:
    """(H, W, 3) uint8 with `side` pixels on the shorter side, as ADM resizes."""
    image = halved(Image.fromarray(pixels), side)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return numpy.array(image.resize(size, Image.Resampling.BICUBIC))


def checked_scale(name: str, scale: tuple[float, float]) -> tuple[float, float]:
    """Shares as they are; refuses those that are none.

    Raises:
        ValueError: not 0 < least <= greatest <= 1.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"{name} must be (least, greatest), 0 < least <= greatest <= 1, got {scale}.")
    return float(scale[0]), float(scale[1])
