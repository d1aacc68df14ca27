"""Decoded image files as samples: random crops for training, centre crops for evaluation."""

from pathlib import Path

import numpy
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from trainers.data.files import FileStore
from trainers.data.samples import EvaluationSamples, TrainingSamples
from trainers.image.files import ImageFile, crop_side, read, reduced_size


class ImageStore(FileStore[ImageFile]):
    """Decoded images of one folder; see `FileStore`.

    Args:
        root: The folder.
        files: Its image files.
        shorter_side: Pixels to which larger images are shrunk.
        white: As for `trainers.image.files.read`, like `max_pixels`.
        max_pixels: See there.
    """

    def __init__(
        self, root: Path, files: list[ImageFile], *, shorter_side: int, white: float | None, max_pixels: int
    ) -> None:
        super().__init__(root, files)
        self.shorter_side = shorter_side
        self.white = white
        self.max_pixels = max_pixels

    def size(self, file: ImageFile) -> int:
        """Bytes of the pixels."""
        height, width = reduced_size(file.height, file.width, self.shorter_side)
        return 3 * height * width

    def decode(self, file: ImageFile) -> numpy.ndarray:
        """The pixels of a file, (height, width, 3) uint8."""
        path = self.path(file)
        pixels = read(path, shorter_side=self.shorter_side, white=self.white, max_pixels=self.max_pixels)
        if pixels.shape[:2] != reduced_size(file.height, file.width, self.shorter_side):
            raise ValueError(f"no longer the image of {file.width}x{file.height} pixels that was found there")
        return pixels

    def pixels(self, file: ImageFile) -> Tensor:
        """The pixels of a file, (3, height, width) uint8; ValueError with the reason if it cannot be decoded."""
        kept = self.kept(file)
        return torch.from_numpy(self.decode(file) if kept is None else kept).permute(2, 0, 1)


class TrainingCrops(TrainingSamples[ImageFile]):
    """Random square crops; see `TrainingSamples`.

    Args:
        store: The images.
        resolution: Side of the crops in pixels.
        random_scale: Least and greatest side of the part that is cut out, as a share of the image's shorter side.
        horizontal_flip: Whether half of the crops are mirrored.
        repeats: Samples per image and pass.
        seed: Seed of the crops.
    """

    store: ImageStore

    def __init__(
        self,
        store: ImageStore,
        *,
        resolution: int,
        random_scale: tuple[float, float],
        horizontal_flip: bool,
        repeats: int,
        seed: int,
    ) -> None:
        super().__init__(store, repeats=repeats, seed=seed)
        self.resolution = resolution
        self.random_scale = random_scale
        self.horizontal_flip = horizontal_flip

    def __len__(self) -> int:
        return len(self.store.files) * self.repeats

    def file_number(self, sample: int) -> int:
        """Files in turn."""
        return sample % len(self.store.files)

    def draw(self, file: ImageFile, generator: numpy.random.Generator) -> Tensor:
        """One crop, (3, resolution, resolution) float32 in [-1, 1]."""
        pixels = self.store.pixels(file)
        size, across, down, coin = generator.random(4)
        height, width = pixels.shape[1:]
        side = crop_side(size, shorter_side=min(height, width), resolution=self.resolution, scale=self.random_scale)
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        pixels = functional.resized_crop(
            pixels, top, left, side, side, [self.resolution] * 2, InterpolationMode.BICUBIC, antialias=True
        )
        return _normalized(functional.horizontal_flip(pixels) if self.horizontal_flip and coin < 0.5 else pixels)


class CentreCrops(EvaluationSamples[ImageFile]):
    """The centre square of every image, shorter side resized to the resolution; see `EvaluationSamples`.

    Args:
        store: The images.
        resolution: Side of the square in pixels.
    """

    store: ImageStore

    def __init__(self, store: ImageStore, *, resolution: int) -> None:
        super().__init__(store)
        self.resolution = resolution

    def whole(self, file: ImageFile) -> Tensor:
        """(3, resolution, resolution) float32 in [-1, 1]."""
        pixels = self.store.pixels(file)
        if min(pixels.shape[1:]) != self.resolution:
            pixels = functional.resize(pixels, [self.resolution], InterpolationMode.BICUBIC, antialias=True)
        return _normalized(functional.center_crop(pixels, [self.resolution] * 2))


def _normalized(pixels: Tensor) -> Tensor:
    """(3, H, W) uint8 to float32 in [-1, 1]."""
    return functional.to_dtype(pixels, torch.float32, scale=True) * 2 - 1
