"""Decoded image files as samples: random crops for training, fixed ones for evaluation."""

from pathlib import Path

import numpy
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from trainers.data.files import FileStore
from trainers.data.samples import EvaluationSamples, TrainingSamples
from trainers.image.crops import Crop, channels_first
from trainers.image.files import ImageFile
from vqkit.media.pictures import read, reduced_size


class ImageStore(FileStore[ImageFile]):
    """Images of one folder, decoded and prepared by a crop; see `FileStore`.

    Args:
        root: The folder.
        files: Its image files.
        crop: What is done to them.
        resolution: Side of its squares, in pixels.
        white: As for `vqkit.media.pictures.read`, like `max_pixels`.
        max_pixels: See there.
    """

    def __init__(
        self,
        root: Path,
        files: list[ImageFile],
        *,
        crop: Crop,
        resolution: int,
        white: float | None,
        max_pixels: int,
    ) -> None:
        super().__init__(root, files)
        self.crop = crop
        self.resolution = resolution
        self.white = white
        self.max_pixels = max_pixels

    def size(self, file: ImageFile) -> int:
        """Bytes of the pixels."""
        read_size = reduced_size(file.height, file.width, self.crop.file_side(self.resolution))
        height, width = self.crop.prepared_size(*read_size, self.resolution)
        return 3 * height * width

    def decode(self, file: ImageFile) -> numpy.ndarray:
        """The pixels of a file as the crop prepares them, (height, width, 3) uint8."""
        side = self.crop.file_side(self.resolution)
        pixels = read(self.path(file), shorter_side=side, white=self.white, max_pixels=self.max_pixels)
        if pixels.shape[:2] != reduced_size(file.height, file.width, side):
            raise ValueError(f"no longer the image of {file.width}x{file.height} pixels that was found there")
        return self.crop.prepare(pixels, self.resolution)

    def pixels(self, file: ImageFile) -> numpy.ndarray:
        """What `decode` gives, from memory if it is there; ValueError with the reason if it cannot be decoded."""
        kept = self.kept(file)
        return self.decode(file) if kept is None else kept


class TrainingCrops(TrainingSamples[ImageFile]):
    """Random crops, as the store's crop cuts them; see `TrainingSamples`.

    Args:
        store: The images.
        horizontal_flip: Whether half of the crops are mirrored.
        repeats: Samples per image and pass.
        seed: Seed of the crops.
    """

    store: ImageStore

    def __init__(self, store: ImageStore, *, horizontal_flip: bool, repeats: int, seed: int) -> None:
        super().__init__(store, repeats=repeats, seed=seed)
        self.horizontal_flip = horizontal_flip

    def __len__(self) -> int:
        return len(self.store.files) * self.repeats

    def file_number(self, sample: int) -> int:
        """Files in turn."""
        return sample % len(self.store.files)

    def draw(self, file: ImageFile, generator: numpy.random.Generator) -> Tensor:
        """One crop, (3, resolution, resolution) float32 in [-1, 1]."""
        pixels = self.store.crop.cut(self.store.pixels(file), self.store.resolution, generator)
        coin = generator.random()
        return _normalized(functional.horizontal_flip(pixels) if self.horizontal_flip and coin < 0.5 else pixels)


class FixedCrops(EvaluationSamples[ImageFile]):
    """Every image as the store's crop prepares it; see `EvaluationSamples`."""

    store: ImageStore

    def whole(self, file: ImageFile) -> Tensor:
        """(3, height, width) float32 in [-1, 1]."""
        return _normalized(channels_first(self.store.pixels(file)))


def _normalized(pixels: Tensor) -> Tensor:
    """(3, H, W) uint8 to float32 in [-1, 1]."""
    return functional.to_dtype(pixels, torch.float32, scale=True) * 2 - 1
