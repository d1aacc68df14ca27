"""Folders of images as training, validation and prediction data."""

import hashlib
import math
import re
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from trainers.data.files import Folder, in_threads
from trainers.data.folder import FolderData
from trainers.image.crops import Crop, RandomScaleCrop, checked_scale
from trainers.image.files import ImageFile, class_names, groups, labelled, scan
from trainers.image.fixed_crops import DEFAULT_EVALUATION, FixedCrop, NativeCrop
from trainers.image.samples import FixedCrops, ImageStore, TrainingCrops
from vqkit import Tiles
from vqkit.media.pictures import MAX_PIXELS, greatest_found
from vqkit.tokens.names import escaped

SAMPLED = 16  # images with more than 8 bits of which the values are looked at, to warn


class ImageFolderData(FolderData[ImageFile]):
    """Images in a folder of any size and nesting, in any format that Pillow reads.

    A batch is a dict: `"image"`, (B, 3, resolution, resolution) float32 in [-1, 1], and a list of (3, H, W) where sizes
    differ; `"name"`, a list of B file names relative to the root; with `class_folders` `"label"`, (B,) int64. Corrupt,
    too small and too long files are skipped, counted and named (`skipped`, `describe`).

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
        max_aspect_ratio: Images whose longer side is more times the shorter one are skipped; None takes all.
        class_folders: Whether the folders in the root are classes, numbered by their sorted names (`class_names`), as
            torchvision's ImageFolder does. Those of the other roots have the same names.
        horizontal_flip: Whether half of the training crops are mirrored.
        random_scale: Least and greatest side of a training crop as a share of the image's shorter side, in (0, 1].
            Crops are never cut smaller than `resolution`. Larger images are first shrunk so that the least side is
            `resolution`. With a `crop` it is (0.5, 1) or None.
        crop: Of training; None is `RandomScaleCrop(random_scale)`.
        evaluation_crop: Of validation and test; None is the centre square, of files that are shrunk while they are
            decoded. `NativeCrop` measures images in their own size.
        prediction_crop: Of prediction; None is `evaluation_crop`.
        tiles: Prediction encodes images part by part, and joins the tokens; None encodes each at once.
        white: The value that is white in images of more than 8 bits; black is 0. None is the greatest that the file's
            type holds, 65535 for 16 bits; a warning names another where they use no more than half of it. Integers of
            32 bits and floating-point values need it. A file with values beyond it is skipped.
        max_pixels: Larger images are skipped; decoded, a pixel takes three bytes or more.
        group_by: A regular expression. Images belong together, as squares of one photograph do, where what it matches
            at the beginning of their names is equal: they are on one side of the split and in one half of the
            originals of a measure, and batches have a `group`. None makes each image its own.
        cache_bytes: Memory for decoded images.
        arguments: Of `FolderData`.

    Raises:
        ValueError: At construction for a missing folder or an argument out of range; at `setup` for too few images, and
            for class folders of which there are fewer than two or other ones than in `root`.
    """

    noun = "image"
    overfit_hint = ", a crop without chance such as CentreCrop, and horizontal_flip=false"

    def __init__(
        self,
        root: str,
        *,
        resolution: int = 256,
        min_size: int | None = None,
        max_aspect_ratio: float | None = None,
        class_folders: bool = False,
        horizontal_flip: bool = True,
        random_scale: tuple[float, float] | None = (0.5, 1.0),
        crop: Crop | None = None,
        evaluation_crop: FixedCrop | None = None,
        prediction_crop: FixedCrop | None = None,
        tiles: Tiles | None = None,
        white: float | None = None,
        max_pixels: int = MAX_PIXELS,
        group_by: str | None = None,
        cache_bytes: int = 512 * 2**20,
        **arguments: Any,
    ) -> None:
        super().__init__(root=root, cache_bytes=cache_bytes, **arguments)
        if resolution < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}.")
        if max_aspect_ratio is not None and not 1 <= max_aspect_ratio < math.inf:
            raise ValueError(f"max_aspect_ratio must be at least 1, such as 2, or null, got {max_aspect_ratio}.")
        scale = checked_scale("random_scale", random_scale or (0.5, 1.0))
        if crop is not None and scale != (0.5, 1.0):
            raise ValueError(
                f"random_scale={list(scale)} is of the crop without a name: set it to null, or leave out crop={crop!r}."
            )
        if white is not None and not 0 < white < math.inf:
            raise ValueError(f"white must be a positive value of the pixels, such as 4095 for 12 bits, got {white}.")
        if max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {max_pixels}.")
        try:
            re.compile(group_by or "")
        except re.error as error:
            raise ValueError(f"group_by={group_by!r} is no regular expression, such as '.*_': {error}.") from error
        self.resolution = resolution
        self.min_size = resolution if min_size is None else min_size
        self.max_aspect_ratio = math.inf if max_aspect_ratio is None else max_aspect_ratio
        self.class_folders = class_folders
        self.horizontal_flip = horizontal_flip
        self.crop = RandomScaleCrop(scale) if crop is None else crop
        self.evaluation_crop = DEFAULT_EVALUATION if evaluation_crop is None else evaluation_crop
        self.prediction_crop = self.evaluation_crop if prediction_crop is None else prediction_crop
        self.tiles = tiles
        self.white = white
        self.max_pixels = max_pixels
        self.group_by = group_by
        self._check_crops()

    def _check_crops(self) -> None:
        if not self.crop.square:
            raise ValueError(f"crop={self.crop!r} has no one size, as a batch of training must: crop squares.")
        for name, crop in (("evaluation_crop", self.evaluation_crop), ("prediction_crop", self.prediction_crop)):
            if not isinstance(crop, FixedCrop):
                raise ValueError(f"{name}={crop!r} draws: expected a crop without chance, such as CentreCrop.")
            if isinstance(crop, NativeCrop) and not crop.pads and self.min_size < crop.multiple:
                raise ValueError(
                    f"min_size={self.min_size} lets in images of which {name}={crop!r} leaves nothing: expected at "
                    f"least {crop.multiple}."
                )
        if self.evaluation_crop.pads:
            raise ValueError(
                f"evaluation_crop={self.evaluation_crop!r} would measure what is padded: give NativeCrop, or give it "
                "as prediction_crop."
            )

    @cached_property
    def class_names(self) -> list[str]:
        """The classes by number, escaped as names of files are; none without `class_folders`.

        Raises:
            ValueError: There are fewer than two class folders.
        """
        if not self.class_folders:
            return []
        found = class_names(self.root)
        if len(found) < 2:
            raise ValueError(
                f"root={escaped(str(self.root))} holds {len(found)} folder(s) ({', '.join(found)}), but class_folders "
                "needs one for each of two or more classes. Give the folder that holds them, or set class_folders to "
                "false."
            )
        return found

    def find(self, root: Path) -> Folder[ImageFile]:
        """Finds the images under a folder by their headers."""
        folder = scan(
            root,
            min_size=self.min_size,
            max_aspect_ratio=self.max_aspect_ratio,
            white=self.white,
            max_pixels=self.max_pixels,
        )
        if self.white is None:
            deep = [file for file in folder.files if file.deep]
            self._warn_of_unused_range(self._store(root, deep, self.evaluation_crop))
        if not self.class_folders:
            return folder
        folder = labelled(folder, self.class_names)
        used = {file.label for file in folder.files}
        empty = [name for number, name in enumerate(self.class_names) if number not in used]
        if empty:
            rank_zero_warn(
                f"{len(empty)} of {len(self.class_names)} classes have no usable image under {escaped(str(root))}, "
                f"{empty[0]} first; their numbers are kept."
            )
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

    def _store(self, root: Path, files: list[ImageFile], crop: Crop) -> ImageStore:
        return ImageStore(
            root, files, crop=crop, resolution=self.resolution, white=self.white, max_pixels=self.max_pixels
        )

    def least(self) -> str:
        """The least size, in words."""
        return f"at least {self.min_size} pixels, or lower min_size"

    def training_samples(self, root: Path, files: list[ImageFile]) -> TrainingCrops:
        """Random crops."""
        return TrainingCrops(
            self._store(root, files, self.crop),
            horizontal_flip=self.horizontal_flip,
            repeats=self.repeats,
            seed=self.seed,
        )

    def units(self, files: list[ImageFile]) -> list[str]:
        """By content, or by groups: the least of several hashes is no hash, and would make most of them validate."""
        if self.group_by is None:
            return super().units(files)
        found = groups(files, self.group_by)
        if len(set(found)) == 1:
            raise ValueError(
                f"group_by={self.group_by!r} matches the same of all {len(files)} names, such as {files[0].name}: "
                "expected an expression that tells two groups or more apart"
            )
        return [hashlib.sha256(group.encode()).hexdigest()[:16] for group in found]

    @property
    def grouping(self) -> str | None:
        """How `group` of the images that are measured came about, for records; None where they have none."""
        if self.group_by is None:
            return None
        number = len(set(groups(self._split()[1], self.group_by)))
        return f"by a hash of the group; {number} groups, each of equal matches of {self.group_by!r} in the names"

    def evaluation_samples(self, root: Path, files: list[ImageFile]) -> FixedCrops:
        """The part of each image that is measured."""
        if self.group_by is not None:
            pairs = zip(files, groups(files, self.group_by), strict=True)
            files = [replace(file, group=int(group, 16) >> 1) for file, group in pairs]
        return self._fixed(root, files, self.evaluation_crop)

    def prediction_samples(self, root: Path, files: list[ImageFile]) -> FixedCrops:
        """The part of each image that is encoded."""
        return self._fixed(root, files, self.prediction_crop)

    def _fixed(self, root: Path, files: list[ImageFile], crop: FixedCrop) -> FixedCrops:
        """Ordered by name, and by size before where sizes differ, so that most batches have one."""
        files = [replace(file, extent=crop.extent(file.height, file.width)) for file in files]
        if not crop.square:
            files.sort(key=lambda file: (crop.prepared_size(file.height, file.width, self.resolution), file.name))
        return FixedCrops(self._store(root, files, crop))

    @staticmethod
    def join(samples: list[Tensor], files: list[ImageFile]) -> dict[str, Any]:
        """`image`: (B, 3, H, W), or a list of (3, H, W) where sizes differ; and what else files have.

        `label` and `group` are (B,) int64, `extent` (B, 2) int64, height and width in pixels.
        """
        one_size = len({sample.shape for sample in samples}) == 1
        batch: dict[str, Any] = {"image": torch.stack(samples) if one_size else samples}
        for name in ("label", "extent", "group"):
            values = [getattr(file, name) for file in files]
            batch |= {} if None in values else {name: torch.tensor(values)}
        return batch

    def extent(self, files: list[ImageFile]) -> str:
        """The smallest and the largest size, in words."""
        areas = sorted(files, key=lambda file: file.height * file.width)
        smallest, largest = areas[0], areas[-1]
        return f"{smallest.width}x{smallest.height} to {largest.width}x{largest.height} pixels"

    def cut_from_prediction(self, files: list[ImageFile]) -> str:
        """How much is left out of what is encoded."""
        crop = self.prediction_crop
        shares = [1 - crop.share(file.height, file.width, self.resolution) for file in files]
        if not any(shares):
            return ""
        mean, most = sum(shares) / len(shares), max(shares)
        return f"{crop.taken}: {mean:.0%} of their area is left out, of one {most:.0%}"

    def facts(self) -> dict[str, Any]:
        """The number of classes too, where there are any."""
        return super().facts() | ({"classes": len(self.class_names)} if self.class_folders else {})

    def _how_divided(self) -> str:
        if self.validation_root is not None:
            return "validation_root"
        return "by content of the files" if self.group_by is None else f"by groups of files, {self.group_by!r}"

    def preprocessing(self) -> dict[str, Any]:
        """What is done to the pictures that validate and are tested, which are the reference too: for records."""
        return {
            "reference": "the same pictures, after the same preprocessing",
            "split": self._how_divided(),
            "pixels": "upright, RGB of 8 bits, over white",
            **self.evaluation_crop.record(self.resolution),
            "resolution": self.resolution if self.evaluation_crop.square else "native",
            "min_size": self.min_size,
            "max_aspect_ratio": None if math.isinf(self.max_aspect_ratio) else self.max_aspect_ratio,
            "white": self.white,
            "rounding": "to 8 bits after each resize",
            "range": "[-1, 1]",
        }

    def settings_of_prediction(self) -> str:
        """The resolution, what is white, and what else is not as it was before there was a choice."""
        settings = f"{self.resolution}" if self.white is None else f"{self.resolution} {self.white:g}"
        if repr(self.prediction_crop) != repr(DEFAULT_EVALUATION):
            settings += f" {self.prediction_crop!r}"
        if self.tiles is not None:
            settings += f" {self.tiles!r}"
        return f"{settings} {self.class_names}" if self.class_folders else settings
