"""Originals beside their reconstructions."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from trainers.callbacks.tracking import medium
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
        self._names: list[str] = []

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation."""
        self._originals, self._reconstructions, self._names = [], [], []

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
        self._names += outputs["names"][:missing]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write and show them."""
        if not self._originals or getattr(trainer, "fast_dev_run", False):
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        files = task_of(pl_module).write_examples(folder, self._originals, self._reconstructions)
        shown = {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}
        media = {name: medium(path, self._caption(path)) for name, path in shown.items()}
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.log({**media, "trainer/global_step": trainer.global_step})
        self._originals, self._reconstructions = [], []

    def _caption(self, path: Path) -> str:
        """The name of a sound's recording; of a picture, which shows pairs, all names."""
        number, _, kind = path.stem.partition("_")
        if number.isdecimal():
            return f"{self._names[int(number)]}, {kind}"
        return "originals above, reconstructions below: " + ", ".join(self._names)
