"""Decoded pictures as samples: random crops for training, centre crops for evaluation."""

from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.v2 import InterpolationMode, functional

from trainers.data.files import FileStore
from trainers.data.sampler import sample_generator
from trainers.image import pictures
from trainers.image.pictures import Picture


class PictureStore(FileStore[Picture]):
    """Decoded pictures of one folder, as far as a memory budget reaches; the rest is read from the file every time.

    Args:
        root: The folder.
        files: Its pictures.
        shorter_side: Pixels to which larger pictures are shrunk.
    """

    def __init__(self, root: Path, files: list[Picture], *, shorter_side: int) -> None:
        super().__init__(root, files)
        self.shorter_side = shorter_side

    def size(self, file: Picture) -> int:
        """Bytes of the pixels."""
        height, width = pictures.reduced_size(file.height, file.width, self.shorter_side)
        return 3 * height * width

    def decode(self, file: Picture) -> numpy.ndarray:
        """The pixels of a file, (height, width, 3) uint8."""
        return pictures.read(self.root / file.name, shorter_side=self.shorter_side)

    def read(self, picture: Picture) -> numpy.ndarray:
        """The pixels of a picture, (height, width, 3) uint8; ValueError with the reason if it cannot be decoded."""
        kept = self.kept(picture)
        return self.decode(picture) if kept is None else kept


def finished(pixels: Tensor) -> Tensor:
    """(3, H, W) uint8 to float32 in [-1, 1]."""
    return functional.to_dtype(pixels, torch.float32, scale=True) * 2 - 1


class TrainingImages(Dataset[dict[str, Any]]):
    """Random square crops; what a sample looks like depends on the seed, the pass and the sample's number, on nothing
    else.

    A file that turns out to be unreadable is replaced by the next one that can be read, and named in the sample.

    Args:
        store: The pictures.
        resolution: Side of the crops in pixels.
        random_scale: Least and greatest side of the part that is cut out, as a share of the picture's shorter side.
        horizontal_flip: Whether half of the crops are mirrored.
        repeats: Samples per picture and pass.
        seed: Seed of the crops.
    """

    def __init__(
        self,
        store: PictureStore,
        *,
        resolution: int,
        random_scale: tuple[float, float],
        horizontal_flip: bool,
        repeats: int,
        seed: int,
    ) -> None:
        self.store = store
        self.resolution = resolution
        self.random_scale = random_scale
        self.horizontal_flip = horizontal_flip
        self.repeats = repeats
        self.seed = seed

    def __len__(self) -> int:
        return len(self.store.files) * self.repeats

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, sample = key
        files = self.store.files
        failed: dict[str, str] = {}
        for offset in range(len(files)):
            picture = files[(sample + offset) % len(files)]
            try:
                pixels = torch.from_numpy(self.store.read(picture)).permute(2, 0, 1)
            except ValueError as error:
                failed[self.store.path(picture)] = str(error)
                continue
            return {"image": self.crop(pixels, epoch, sample), "name": picture.name, "failed": failed}
        raise ValueError(f"None of the {len(files)} training pictures under {self.store.root} can be decoded any more.")

    def crop(self, pixels: Tensor, epoch: int, sample: int) -> Tensor:
        """One crop.

        Args:
            pixels: (3, H, W) uint8.
            epoch: Number of the pass.
            sample: Number of the sample.

        Returns:
            (3, resolution, resolution) float32 in [-1, 1].
        """
        size, across, down, coin = sample_generator(self.seed, epoch, sample).random(4)
        height, width = pixels.shape[1:]
        side = pictures.crop_side(
            size, shorter_side=min(height, width), resolution=self.resolution, scale=self.random_scale
        )
        top, left = int(down * (height - side + 1)), int(across * (width - side + 1))
        pixels = functional.resized_crop(
            pixels, top, left, side, side, [self.resolution] * 2, InterpolationMode.BICUBIC, antialias=True
        )
        return finished(functional.horizontal_flip(pixels) if self.horizontal_flip and coin < 0.5 else pixels)


class EvaluationImages(Dataset[dict[str, Any]]):
    """The centre square of every picture, shorter side resized to the resolution.

    A file that turns out to be unreadable gives a sample without an image, which the loader leaves out and names.

    Args:
        store: The pictures.
        resolution: Side of the square in pixels.
    """

    def __init__(self, store: PictureStore, *, resolution: int) -> None:
        self.store = store
        self.resolution = resolution

    def __len__(self) -> int:
        return len(self.store.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.store.files[index]
        try:
            pixels = torch.from_numpy(self.store.read(picture)).permute(2, 0, 1)
        except ValueError as error:
            return {"failed": {self.store.path(picture): str(error)}}
        if min(pixels.shape[1:]) != self.resolution:
            pixels = functional.resize(pixels, [self.resolution], InterpolationMode.BICUBIC, antialias=True)
        pixels = functional.center_crop(pixels, [self.resolution] * 2)
        return {"image": finished(pixels), "name": picture.name, "failed": {}}


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins samples; those without an image leave only their reason."""
    failed = {path: reason for sample in samples for path, reason in sample["failed"].items()}
    usable = [sample for sample in samples if "image" in sample]
    if not usable:
        return {"failed": failed}
    image = default_collate([sample["image"] for sample in usable])
    return {"image": image, "name": [sample["name"] for sample in usable], "failed": failed}
