"""Originals beside their reconstructions."""

import itertools
from pathlib import Path
from typing import Any

import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from trainers.core.task import task_of


class Reconstructions(Callback):
    """After each validation: the first samples and what became of them, as files in the run folder and in W&B.

    Which files is the task's business (`TokenizerTask.write_examples`): a picture for images, sounds and a spectrogram
    for audio.

    Args:
        examples: the first samples of the validation split, at least 1; each rank but the first shows none.

    Raises:
        ValueError: `examples` is below 1.
    """

    def __init__(self, examples: int = 8) -> None:
        if examples < 1:
            raise ValueError(f"examples={examples}: expected at least 1")
        self.examples = examples
        self._originals: list[Tensor] = []
        self._reconstructions: list[Tensor] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._originals, self._reconstructions = [], []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first samples."""
        missing = self.examples - len(self._originals)
        if missing <= 0 or dataloader_idx or trainer.sanity_checking or not trainer.is_global_zero:
            return
        self._originals += [sample.cpu() for sample in outputs["inputs"][:missing]]
        self._reconstructions += [sample.cpu() for sample in outputs["reconstruction"][:missing]]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and show them."""
        if not self._originals or getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        files = task_of(pl_module).write_examples(folder, self._originals, self._reconstructions)
        self._originals, self._reconstructions = [], []
        for logger, path in itertools.product(trainer.loggers, files):
            if isinstance(logger, WandbLogger):
                shown = wandb.Audio(str(path)) if path.suffix == ".wav" else wandb.Image(str(path))
                name = path.relative_to(folder).with_suffix("").as_posix()
                logger.experiment.log({name: shown, "trainer/global_step": trainer.global_step})
