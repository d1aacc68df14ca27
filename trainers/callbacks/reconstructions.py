"""Originals beside their reconstructions."""

from pathlib import Path
from typing import Any

import torch
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor
from torchvision.io import encode_png
from torchvision.utils import make_grid

from trainers.metrics import to_uint8_grid


class Reconstructions(Callback):
    """After each validation: originals above their reconstructions, to `reconstructions.png` and to W&B.

    Args:
        images: columns; the first images of the first validation batch, at least 1.

    Raises:
        ValueError: `images` is below 1.
    """

    def __init__(self, images: int = 8) -> None:
        if images < 1:
            raise ValueError(f"images={images}: expected at least 1")
        self.images = images

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first batch."""
        if batch_idx or dataloader_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        grid = comparison(outputs["inputs"][: self.images], outputs["reconstruction"][: self.images])
        if not trainer.fast_dev_run:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "reconstructions.png").write_bytes(encode_png(grid).numpy().tobytes())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                image = wandb.Image(grid.permute(1, 2, 0).numpy(), caption="above: originals; below: reconstructions")
                logger.experiment.log({"reconstructions": image, "trainer/global_step": trainer.global_step})


def comparison(originals: Tensor, reconstructions: Tensor) -> Tensor:
    """Two rows of images, originals above.

    Args:
        originals: (B, C, H, W) in [-1, 1].
        reconstructions: like `originals`.

    Returns:
        (C, ..., ...) uint8 on the CPU.
    """
    images = to_uint8_grid(torch.cat([originals, reconstructions])).to("cpu", torch.uint8)
    return make_grid(images, nrow=len(originals), padding=2, pad_value=255)
