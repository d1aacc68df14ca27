"""Folders of pictures as training, validation and prediction data."""

import hashlib
import warnings
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from trainers.data import pictures
from trainers.data.crops import EvaluationImages, PictureStore, TrainingImages, collate
from trainers.data.pictures import Folder, Picture
from trainers.data.sampler import EvaluationLoader, TrainingLoader, ranks

NAMED = 5  # skipped files that a summary names


class ImageFolderData(lightning.LightningDataModule):
    """Pictures in a folder of any size and nesting, in any format that Pillow reads.

    A batch is a dict: `"image"`, (B, 3, resolution, resolution) float32 in [-1, 1]; `"name"`, a list of B file names
    relative to the root. Corrupt and too small files are skipped, counted and named (`skipped`, `describe`).

    Training sees random square crops, an endless stream that a checkpoint continues exactly (`TrainingLoader`).
    Validation and test see the centre square of the validation pictures, prediction that of all pictures.

    Without `validation_root` the split is decided by each file's content: it does not change when files are renamed,
    moved or added, and identical files are on one side. (In a folder so small that no picture would be drawn for a
    side, one is moved there; only that one can change sides when files are added.)

    Args:
        root: Folder of the pictures.
        validation_root: Folder of the validation pictures; None splits `root`.
        predict_root: Folder of the pictures to predict; None is `root`.
        resolution: Side of the square images in pixels.
        batch_size: Images in a batch on one rank.
        num_workers: Processes that load; 0 loads in the training process, which is best when all pictures fit the
            cache.
        validation_fraction: Share of the pictures under `root` that validate, in (0, 1).
        min_size: Pictures whose shorter side has fewer pixels are skipped; None is `resolution`. A lower value lets
            pictures in that must be enlarged.
        horizontal_flip: Whether half of the training crops are mirrored.
        random_scale: Least and greatest side of a training crop as a share of the picture's shorter side, in (0, 1].
            Crops are never cut smaller than `resolution`. Larger pictures are first shrunk so that the least side is
            `resolution`.
        repeats: Training samples per picture and epoch, so that an epoch of a small folder is worth its validation.
        seed: Seed of order and crops.
        cache_bytes: Memory for decoded pictures, which are then read once, at the start (and broken ones found there).
            Held once per rank; worker processes share it where processes are forked (Linux).

    Raises:
        ValueError: At construction for a missing folder or an argument out of range; at `setup` for too few pictures.
    """

    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(
        self,
        root: str,
        *,
        validation_root: str | None = None,
        predict_root: str | None = None,
        resolution: int = 256,
        batch_size: int = 16,
        num_workers: int = 2,
        validation_fraction: float = 0.1,
        min_size: int | None = None,
        horizontal_flip: bool = True,
        random_scale: tuple[float, float] = (0.5, 1.0),
        repeats: int = 1,
        seed: int = 0,
        cache_bytes: int = 512 * 2**20,
    ) -> None:
        super().__init__()
        for name, folder in (("root", root), ("validation_root", validation_root), ("predict_root", predict_root)):
            if folder is not None and not Path(folder).expanduser().is_dir():
                raise ValueError(f"{name}={folder!r} is not a folder. Give the folder that holds the pictures.")
        for name, value, least in (
            ("resolution", resolution, 1),
            ("batch_size", batch_size, 1),
            ("repeats", repeats, 1),
            ("num_workers", num_workers, 0),
            ("seed", seed, 0),
            ("cache_bytes", cache_bytes, 0),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}.")
        if not 0 < validation_fraction < 1:
            raise ValueError(f"validation_fraction must lie between 0 and 1, got {validation_fraction}.")
        if not 0 < random_scale[0] <= random_scale[1] <= 1:
            raise ValueError(f"random_scale must be (least, greatest), 0 < least <= greatest <= 1, got {random_scale}.")
        self.root = Path(root).expanduser()
        self.validation_root = None if validation_root is None else Path(validation_root).expanduser()
        self.predict_root = self.root if predict_root is None else Path(predict_root).expanduser()
        self.resolution = resolution
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.validation_fraction = validation_fraction
        self.min_size = resolution if min_size is None else min_size
        self.horizontal_flip = horizontal_flip
        self.random_scale = (float(random_scale[0]), float(random_scale[1]))
        self.repeats = repeats
        self.seed = seed
        self.cache_bytes = cache_bytes
        self.skipped: dict[str, str] = {}
        self._folders: dict[Path, Folder] = {}
        self._stores: tuple[PictureStore, PictureStore] | None = None
        self._training: TrainingLoader | None = None
        self._predicted: set[str] = set()

    # ---- what there is

    def _folder(self, root: Path) -> Folder:
        if root not in self._folders:
            folder = pictures.scan(root, min_size=self.min_size)
            self._folders[root] = folder
            self.skipped.update(folder.skipped)
            if folder.skipped:
                rank_zero_warn(f"{len(folder.skipped)} files under {root} are skipped: {self._named(folder.skipped)}")
            if not folder.pictures:
                raise ValueError(
                    f"There is no usable picture under {root}: {len(folder.skipped)} skipped as corrupt or too small"
                    f"{' (' + self._named(folder.skipped) + ')' if folder.skipped else ''}, {folder.other_files} other "
                    f"files. Give a folder with pictures of at least {self.min_size} pixels, or lower min_size."
                )
        return self._folders[root]

    @staticmethod
    def _named(skipped: dict[str, str]) -> str:
        first = [f"{path} ({reason})" for path, reason in list(skipped.items())[:NAMED]]
        return "; ".join(first) + ("; ..." if len(skipped) > NAMED else "")

    def _split(self) -> tuple[list[Picture], list[Picture]]:
        """The training and the validation pictures."""
        files = self._folder(self.root).pictures
        if self.validation_root is not None:
            validation = self._folder(self.validation_root).pictures
            contents = {picture.content for picture in files}
            shared = [picture.name for picture in validation if picture.content in contents]
            if shared:
                rank_zero_warn(
                    f"{len(shared)} of {len(validation)} validation pictures are training pictures too, {shared[0]} "
                    "first: validation will look better than it is. Remove them from one of the two folders."
                )
            return files, validation
        return split(files, self.validation_fraction, self.root)

    def _prepare(self) -> tuple[PictureStore, PictureStore]:
        """The training and the validation store, with their pictures decoded as far as the cache reaches."""
        if self._stores is None:
            training, validation = self._split()
            validation_root = self.root if self.validation_root is None else self.validation_root
            smallest_crop = round(self.resolution / self.random_scale[0])
            stores = (
                PictureStore(self.root, training, shorter_side=smallest_crop),
                PictureStore(validation_root, validation, shorter_side=self.resolution),
            )
            budget = self.cache_bytes
            failed: dict[str, str] = {}
            for store in reversed(stores):
                budget, broken = store.preload(budget)
                failed |= broken
            if failed:
                self.skipped.update(failed)
                rank_zero_warn(f"{len(failed)} files cannot be decoded and are skipped: {self._named(failed)}")
            for name, store in zip(("training", "validation"), stores, strict=True):
                if not store.files:
                    raise ValueError(f"No {name} picture can be decoded: {self._named(failed)}. Add pictures.")
            self._stores = stores
        return self._stores

    def describe(self) -> str:
        """What was found, in a few lines: pictures, sizes, split, skipped files. Reads the folder on the first call."""
        training, validation = self._prepare()
        found = training.files + validation.files
        smallest = min(found, key=lambda picture: picture.height * picture.width)
        largest = max(found, key=lambda picture: picture.height * picture.width)
        lines = [
            f"{len(found)} pictures under {self.root}"
            + ("" if self.validation_root is None else f" and {self.validation_root}")
            + f", {smallest.width}x{smallest.height} to {largest.width}x{largest.height} pixels: "
            + f"{len(training.files)} train"
            + (f" x {self.repeats} crops" if self.repeats > 1 else "")
            + f", {len(validation.files)} validate"
        ]
        if self.skipped:
            lines.append(f"{len(self.skipped)} files skipped: {self._named(self.skipped)}")
        return "\n".join(lines)

    def predict_hash(self) -> str:
        """A hash of what prediction reads: the pictures' names and contents, and the resolution."""
        listing = [f"{picture.name} {picture.content}" for picture in self._folder(self.predict_root).pictures]
        return hashlib.sha256("\n".join([str(self.resolution), *listing]).encode()).hexdigest()

    # ---- Lightning's hooks

    def setup(self, stage: str) -> None:
        """Finds the pictures that the stage needs, and puts the training stream at its start."""
        if stage == "predict":
            self._folder(self.predict_root)
            return
        _, validation = self._prepare()
        if stage != "fit":
            return
        self._training = self.initialization_dataloader()
        _, world_size = ranks()
        if len(self._training) == 0:
            raise ValueError(
                f"{self._training.samples} training samples do not fill a batch of {self.batch_size} on each of "
                f"{world_size} rank(s). Lower batch_size, raise repeats (now {self.repeats}), or add "
                f"pictures to {self.root}."
            )
        if len(validation.files) < world_size:
            raise ValueError(
                f"{len(validation.files)} validation picture(s) cannot be divided among {world_size} ranks. Add "
                "pictures, raise validation_fraction, or use fewer devices."
            )

    def train_dataloader(self) -> TrainingLoader:
        """The training stream; always the same object, so that its place is not lost when Lightning asks again."""
        if self._training is None:
            raise RuntimeError('Call setup("fit") before train_dataloader(); the Trainer does.')
        if self.trainer is not None and self.trainer.overfit_batches:
            raise ValueError(
                f"overfit_batches={self.trainer.overfit_batches} repeats the same batches, but every epoch has crops "
                "of its own here. Use a folder with a few pictures, random_scale=[1, 1] and horizontal_flip=false."
            )
        return self._training

    def initialization_dataloader(self) -> TrainingLoader:
        """A training stream of its own, for `Tokenizer.initialize`: reading it does not move the training stream."""
        training, _ = self._prepare()
        dataset = TrainingImages(
            training,
            resolution=self.resolution,
            random_scale=self.random_scale,
            horizontal_flip=self.horizontal_flip,
            repeats=self.repeats,
            seed=self.seed,
        )
        return TrainingLoader(
            dataset,
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
            collate=collate,
            finish=partial(without_failed, self.skipped),
        )

    def val_dataloader(self) -> EvaluationLoader:
        """The validation pictures, each once, ordered by name."""
        return self._evaluation(self._prepare()[1])

    def test_dataloader(self) -> EvaluationLoader:
        """The validation pictures again: pictures that were never trained on."""
        return self.val_dataloader()

    def predict_dataloader(self) -> EvaluationLoader:
        """All pictures under `predict_root` that are not yet predicted, each once, ordered by name."""
        files = [picture for picture in self._folder(self.predict_root).pictures if picture.name not in self._predicted]
        return self._evaluation(PictureStore(self.predict_root, files, shorter_side=self.resolution))

    def leave_out_predicted(self, names: Collection[str]) -> None:
        """Leaves pictures out of prediction, because their tokens are already written; the same names on every rank."""
        self._predicted = set(names)

    def _evaluation(self, store: PictureStore) -> EvaluationLoader:
        return EvaluationLoader(
            EvaluationImages(store, resolution=self.resolution),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate=collate,
            finish=partial(without_failed, self.skipped),
        )

    def state_dict(self) -> dict[str, Any]:
        """The place of the training stream.

        Lightning restores a loader's state only inside an unfinished epoch; a data module's always.
        """
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Puts the training stream where the checkpoint was written; without effect outside `fit`."""
        if self._training is not None and state_dict:
            self._training.load_state_dict(state_dict)


def without_failed(skipped: dict[str, str], batch: dict[str, Any]) -> dict[str, Any] | None:
    """Moves the files of a batch that cannot be decoded to `skipped`, warning of new ones; None if no image is left.

    A function of the record alone: a method of the data module would tie the loaders, with their worker processes, into
    a cycle (see `training_keys`).
    """
    for path, reason in batch.pop("failed").items():
        if path not in skipped:
            skipped[path] = reason
            warnings.warn(f"{path} is left out or replaced by the next picture: {reason}", stacklevel=2)
    return batch or None


def split(files: list[Picture], fraction: float, root: Path) -> tuple[list[Picture], list[Picture]]:
    """Divides pictures into training and validation by a hash of each one's content.

    Args:
        files: The pictures.
        fraction: Share that validates.
        root: Their folder, for the message.

    Raises:
        ValueError: With fewer than two different pictures.
    """
    contents = sorted({picture.content for picture in files})
    if len(contents) < 2:
        raise ValueError(
            f"{root} holds {len(contents)} different usable picture(s); a split into training and validation needs at "
            "least two. Add pictures, or give a folder of their own for validation as validation_root."
        )
    chosen = {content for content in contents if int(content, 16) < fraction * 2**64}
    if not chosen:
        chosen = {contents[0]}
    elif len(chosen) == len(contents):
        chosen.remove(contents[-1])
    training = [picture for picture in files if picture.content not in chosen]
    return training, [picture for picture in files if picture.content in chosen]
