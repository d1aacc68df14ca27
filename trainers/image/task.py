"""Training of image tokenizers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import encode_png
from torchvision.utils import make_grid

from trainers.core.task import TokenizerTask
from trainers.image.metrics import ImageMetrics, protocol, psnr, to_uint8_grid
from trainers.image.objectives import AbsoluteError, SquaredError
from vqkit import Tokenizer
from vqkit.saving.files import write_whole


class ImageTokenizerTask(TokenizerTask):
    """Trains a tokenizer of images in [-1, 1] by L1 and L2, and measures what it does to images.

    Batches are dictionaries with `image` (B, C, H, W), and for prediction `name`, a list of file names.

    Args:
        tokenizer: encoder, quantizer (channel first: `channel_dim=1`) and decoder.
        l1: weight of the mean absolute error.
        l2: weight of the mean squared error.
        learning_rate: peak of the schedule.
        final_learning_rate_ratio: end of the cosine as a share of the peak, in [0, 1].
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of matrices and kernels; codebooks, biases and norms have none.
        betas: of AdamW.
        initialization_samples: vectors from which the quantizer is initialized before training; None lets it decide.
        seed: of the initialization.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        l1: float = 0.5,
        l2: float = 1.0,
        learning_rate: float = 1e-3,
        final_learning_rate_ratio: float = 0.05,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        initialization_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            objectives=[AbsoluteError(l1), SquaredError(l2)],
            learning_rate=learning_rate,
            final_learning_rate_ratio=final_learning_rate_ratio,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            betas=betas,
            initialization_samples=initialization_samples,
            seed=seed,
        )

    monitor = "validation/psnr"

    def inputs(self, batch: dict[str, Any]) -> Tensor:
        """The images (B, C, H, W)."""
        return batch["image"]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The common step, and the PSNR of the batch."""
        step = super().training_step(batch, batch_idx)
        with torch.no_grad():
            ratio = psnr(to_uint8_grid(step["inputs"]), to_uint8_grid(step["reconstruction"])).mean()
        self.log("psnr", ratio, prog_bar=True, logger=False)
        self.log("train/psnr", ratio)
        return step

    # ------------------------------------------------------------------ measuring

    def new_metrics(self, split: str) -> ImageMetrics:
        """The image metrics of either split."""
        return ImageMetrics(self.tokenizer.quantizer.codebook_sizes)

    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """How the figures were measured, and what was done to the images before."""
        size = self.trainer.datamodule.resolution
        preprocessing = f"centre square; shorter side resized to {size} px (bicubic, antialiased) where it differs"
        return protocol(dict(figures), preprocessing=preprocessing, **circumstances)

    def write_examples(
        self, folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]
    ) -> list[Path]:
        """`reconstructions.png`: originals above, their reconstructions below."""
        images = to_uint8_grid(torch.stack([*originals, *reconstructions])).to("cpu", torch.uint8)
        grid = make_grid(images, nrow=len(originals), padding=2, pad_value=255)
        path = folder / "reconstructions.png"
        write_whole(path, encode_png(grid).numpy().tobytes())
        return [path]
