"""Folders of images as training, validation and prediction data."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import default_collate

from trainers.data.files import Folder, in_threads
from trainers.data.folder import FolderData
from trainers.image.files import MAX_PIXELS, ImageFile, greatest_found, scan
from trainers.image.samples import CentreCrops, ImageStore, TrainingCrops
from vqkit.tokens.names import escaped

SAMPLED = 16  # images with more than 8 bits of which the values are looked at, to warn


class ImageFolderData(FolderData[ImageFile]):
    """Images in a folder of any size and nesting, in any format that Pillow reads.

    A batch is a dict: `"image"`, (B, 3, resolution, resolution) float32 in [-1, 1]; `"name"`, a list of B file names
    relative to the root. Corrupt and too small files are skipped, counted and named (`skipped`, `describe`).

    Training sees random square crops, an endless stream that a checkpoint continues exactly (`TrainingLoader`).
    Validation and test see the centre square of the validation images, prediction that of all images.

    Without `validation_root` the split is decided by each file's content: it does not change when files are renamed,
    moved or added, and identical files are on one side. (In a folder so small that no image would be drawn for a
    side, one is moved there; only that one can change sides when files are added.)

    Args:
        root: Folder of the images.
        resolution: Side of the square images in pixels.
        min_size: Images whose shorter side has fewer pixels are skipped; None is `resolution`. A lower value lets
            images in that must be enlarged.
        horizontal_flip: Whether half of the training crops are mirrored.
        random_scale: Least and greatest side of a training crop as a share of the image's shorter side, in (0, 1].
            Crops are never cut smaller than `resolution`. Larger images are first shrunk so that the least side is
            `resolution`.
        white: The value that is white in images of more than 8 bits; black is 0. None is the greatest that the file's
            type holds, 65535 for 16 bits; a warning names another where they use no more than half of it. Integers of
            32 bits and floating-point values need it. A file with values beyond it is skipped.
        max_pixels: Larger images are skipped; decoded, a pixel takes three bytes or more.
        cache_bytes: Memory for decoded images.
        arguments: Of `FolderData`.

    Raises:
        ValueError: At construction for a missing folder or an argument out of range; at `setup` for too few images.
    """

    noun = "image"
    overfit_hint = ", random_scale=[1, 1] and horizontal_flip=false"

    def __init__(
        self,
        root: str,
        *,
        resolution: int = 256,
        min_size: int | None = None,
        horizontal_flip: bool = True,
        random_scale: tuple[float, float] = (0.5, 1.0),
        white: float | None = None,
        max_pixels: int = MAX_PIXELS,
        cache_bytes: int = 512 * 2**20,
        **arguments: Any,
    ) -> None:
        super().__init__(root=root, cache_bytes=cache_bytes, **arguments)
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}.")
        if not 0 < random_scale[0] <= random_scale[1] <= 1:
            raise ValueError(f"random_scale must be (least, greatest), 0 < least <= greatest <= 1, got {random_scale}.")
        if white is not None and not 0 < white < math.inf:
            raise ValueError(f"white must be a positive value of the pixels, such as 4095 for 12 bits, got {white}.")
        if max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {max_pixels}.")
        self.resolution = resolution
        self.min_size = resolution if min_size is None else min_size
        self.horizontal_flip = horizontal_flip
        self.random_scale = (float(random_scale[0]), float(random_scale[1]))
        self.white = white
        self.max_pixels = max_pixels

    def find(self, root: Path) -> Folder[ImageFile]:
        """Finds the images under a folder by their headers."""
        folder = scan(root, min_size=self.min_size, white=self.white, max_pixels=self.max_pixels)
        if self.white is None:
            self._warn_of_unused_range(self._store(root, [file for file in folder.files if file.deep]))
        return folder

    def _warn_of_unused_range(self, deep: ImageStore) -> None:
        """Some of the images with more than 8 bits are decoded; if a bit is unused in all of them, they are dark."""
        sampled = [deep.path(file) for file in deep.files[:: max(1, len(deep.files) // SAMPLED)]]
        found = in_threads(partial(greatest_found, max_pixels=self.max_pixels), sampled)
        greatest, white = max(found, key=lambda pair: pair[0] / pair[1], default=(1, 1))
        if 0 < greatest <= white / 2:
            rank_zero_warn(
                f"The greatest value in {len(sampled)} of {len(deep.files)} images of more than 8 bits under "
                f"{escaped(str(deep.root))} is {greatest:g}, and {white:g} counts as white: they will be dark. Give "
                f"white={2 ** math.ceil(math.log2(greatest + 1)) - 1}, or white={white:g} if they are meant to be so."
            )

    def _store(self, root: Path, files: list[ImageFile], *, share: float = 1.0) -> ImageStore:
        side = round(self.resolution / share)
        return ImageStore(root, files, shorter_side=side, white=self.white, max_pixels=self.max_pixels)

    def least(self) -> str:
        """The least size, in words."""
        return f"at least {self.min_size} pixels, or lower min_size"

    def training_samples(self, root: Path, files: list[ImageFile]) -> TrainingCrops:
        """Random crops of images that are shrunk as far as the smallest crop allows."""
        return TrainingCrops(
            self._store(root, files, share=self.random_scale[0]),
            resolution=self.resolution,
            random_scale=self.random_scale,
            horizontal_flip=self.horizontal_flip,
            repeats=self.repeats,
            seed=self.seed,
        )

    def evaluation_samples(self, root: Path, files: list[ImageFile]) -> CentreCrops:
        """Centre squares of images that are shrunk to the resolution."""
        return CentreCrops(self._store(root, files), resolution=self.resolution)

    @staticmethod
    def join(samples: list[Tensor]) -> dict[str, Any]:
        """`image`: (B, 3, resolution, resolution)."""
        return {"image": default_collate(samples)}

    def extent(self, files: list[ImageFile]) -> str:
        """The smallest and the largest size, in words."""
        areas = sorted(files, key=lambda file: file.height * file.width)
        smallest, largest = areas[0], areas[-1]
        return f"{smallest.width}x{smallest.height} to {largest.width}x{largest.height} pixels"

    def cut_from_prediction(self, files: list[ImageFile]) -> str:
        """How much lies outside of the centre squares."""
        shares = [1 - min(file.height, file.width) / max(file.height, file.width) for file in files]
        if not any(shares):
            return ""
        mean, most = sum(shares) / len(shares), max(shares)
        return f"the centre square of each is encoded: {mean:.0%} of their area is left out, of one {most:.0%}"

    def preprocessing(self) -> dict[str, Any]:
        """What is done to the pictures that validate and are tested, which are the reference too: for records."""
        return {
            "reference": "the same pictures, after the same preprocessing",
            "split": "by content of the files" if self.validation_root is None else "validation_root",
            "decoding": "upright, RGB of 8 bits, over white; JPEG at 1/2, 1/4 or 1/8 where larger than the resolution",
            "resize": "shorter side to the resolution, by Pillow; enlarged by torchvision",
            "filter": "bicubic",
            "antialias": True,
            "crop": "centre square",
            "resolution": self.resolution,
            "min_size": self.min_size,
            "white": self.white,
            "rounding": "to 8 bits after the resize",
            "range": "[-1, 1]",
        }

    def settings_of_prediction(self) -> str:
        """The resolution, and what is white."""
        return f"{self.resolution}" if self.white is None else f"{self.resolution} {self.white:g}"
