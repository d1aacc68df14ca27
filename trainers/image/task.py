"""Training of image tokenizers."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import encode_png
from torchvision.utils import make_grid

from trainers.core.task import TokenizerTask
from trainers.image.fixed_crops import NativeCrop
from trainers.image.measures.measure import ImageMeasure
from trainers.image.metrics import BY_PIXELS, ImageMetrics, protocol, psnr, to_uint8_grid
from vqkit import Tiles, Tokenizer
from vqkit.backbones.protocol import properties_of
from vqkit.parts.compatibility import check_names
from vqkit.saving.files import write_whole


class ImageTokenizerTask(TokenizerTask):
    """Trains a tokenizer of images in [-1, 1], channel first (`channel_dim=1`), and measures what it does to images.

    Batches are dictionaries with `image` (B, C, H, W), in evaluation also a list of (C, H, W), and for prediction
    `name`, a list of file names. In evaluation `group` (B,) int64 may say which images belong together. Other arguments
    are those of `TokenizerTask`.

    Args:
        tokenizer: of images.
        validation_measures: what frozen networks say of the validation images, beside PSNR and SSIM.
        test_measures: the same of the test images.

    Raises:
        ValueError: the tokenizer has another range of values, or two measures of a split have one name.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        validation_measures: Sequence[ImageMeasure] = (),
        test_measures: Sequence[ImageMeasure] = (),
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        **arguments: Any,
    ) -> None:
        if tokenizer.value_range not in (None, (-1.0, 1.0)):
            raise ValueError(f"tokenizer.value_range={tokenizer.value_range}: expected [-1, 1], where the images lie")
        super().__init__(tokenizer, learning_rate=learning_rate, betas=betas, **arguments)
        self.measures = {"validation": list(validation_measures), "test": list(test_measures)}
        for measures in self.measures.values():
            check_names(measure.name for measure in measures)

    monitor = "validation/psnr"

    def setup(self, stage: str) -> None:
        """Refuse images that a discriminator cannot judge, before it is its turn, or that are no whole patches."""
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        self._check_patches(data)
        resolution = getattr(data, "resolution", None)
        if stage == "fit" and self.adversary is not None and resolution is not None:
            for discriminator in self.adversary.discriminators:
                shapes_alone = copy.deepcopy(discriminator).to("meta")
                dtype = next(shapes_alone.parameters()).dtype
                channels: Any = getattr(self.tokenizer.encoder, "in_channels", discriminator.in_channels)
                shapes_alone(torch.empty(2, channels, resolution, resolution, dtype=dtype, device="meta"))

    def _check_patches(self, data: Any) -> None:
        """Pictures and tiles of any size must be whole patches of the encoder, where it says how large these are."""
        own = properties_of(self.tokenizer.encoder)
        factor, size = own.downsampling_factor, own.image_size
        if size is not None and getattr(data, "resolution", size) != size:
            raise ValueError(f"data.resolution={data.resolution}: the encoder takes {size} x {size} pixels alone")
        for name in ("evaluation_crop", "prediction_crop"):
            crop = getattr(data, name, None)
            if size is not None and not getattr(crop, "square", True):
                raise ValueError(
                    f"data.{name}={crop!r}: the encoder takes {size} x {size} pixels alone, so expected a crop of one "
                    "size, such as trainers.image.CentreCrop"
                )
            if factor is not None and isinstance(crop, NativeCrop) and crop.multiple % factor:
                raise ValueError(f"data.{name}={crop!r}: expected a multiple of the encoder's factor, {factor}")
        if getattr(data, "tiles", None) is not None:
            data.tiles.factor(self.tokenizer)

    def inputs(self, batch: dict[str, Any]) -> Tensor:
        """The images (B, C, H, W)."""
        return batch["image"]

    def evaluation_inputs(self, batch: dict[str, Any]) -> Iterator[Tensor]:
        """The images; where their sizes differ, those that follow each other in one size."""
        images = batch["image"]
        if isinstance(images, Tensor):
            yield images
        else:
            for _, group in itertools.groupby(images, key=lambda image: image.shape):
                yield torch.stack(list(group))

    def measured_by(self, batch: dict[str, Any], own: slice) -> dict[str, Tensor]:
        """The groups, where there are any."""
        return {"groups": batch["group"][own]} if "group" in batch else {}

    def encode(self, inputs: Tensor) -> Tensor:
        """The indices of images of one size, tile by tile where the data says so."""
        tiles: Tiles | None = getattr(getattr(self.trainer, "datamodule", None), "tiles", None)
        return super().encode(inputs) if tiles is None else tiles.encode(self.tokenizer, inputs)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The common step, and what else is logged of the batch."""
        step = super().training_step(batch, batch_idx)
        if self.logs_this_step:
            with torch.no_grad():
                figures = self.training_figures(step["inputs"], step["reconstruction"])
            self.log_dict({f"train/{name}": figure for name, figure in figures.items()})
        return step

    def training_figures(self, inputs: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """What is logged of a training batch beside the terms: its PSNR."""
        return {"psnr": psnr(to_uint8_grid(inputs), to_uint8_grid(reconstruction)).mean()}

    # ------------------------------------------------------------------ measuring

    def new_metrics(self, split: str) -> ImageMetrics:
        """The image metrics, and the measures of the split."""
        quantizer = self.tokenizer.quantizer
        return ImageMetrics(quantizer.level_sizes, books=quantizer.level_books, measures=self.measures[split])

    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """How the figures were measured, and what was done to the images before."""
        data: Any = getattr(self.trainer, "datamodule", None)
        for key, name in (("preprocessing", "preprocessing"), ("files_sha256", "evaluation_hash")):
            absent = f"unknown: the data module has no {name}()"  # one of one's own need not have it
            circumstances[key] = getattr(data, name)() if hasattr(data, name) else absent
        halves = getattr(data, "grouping", None) or BY_PIXELS
        return protocol(dict(figures), measures=self.measures["test"], halves=halves, **circumstances)

    def write_examples(
        self, folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]
    ) -> list[Path]:
        """`reconstructions.png`: originals above, their reconstructions below; smaller ones beside white."""
        height, width = (max(image.shape[axis] for image in originals) for axis in (-2, -1))
        filled = [
            F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=1.0)
            for image in [*originals, *reconstructions]
        ]
        images = to_uint8_grid(torch.stack(filled)).to("cpu", torch.uint8)
        grid = make_grid(images, nrow=len(originals), padding=2, pad_value=255)
        path = folder / "reconstructions.png"
        write_whole(path, encode_png(grid).numpy().tobytes())
        return [path]
