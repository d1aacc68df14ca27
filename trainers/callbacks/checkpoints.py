"""The files that a run leaves: `last.ckpt` to resume from, `best.ckpt` by validation, and the tokenizer for use."""

import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from trainers.core.checkpoints import save_tokenizer
from trainers.core.task import task_of
from vqkit.saving.config import to_config


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint in the run folder, under one name.

    Args:
        folder: of the checkpoints; None is `checkpoints` in the trainer's `default_root_dir`.
        arguments: of Lightning's `ModelCheckpoint`.
    """

    def __init__(self, folder: str | None, **arguments: Any) -> None:
        super().__init__(dirpath=folder, enable_version_counter=False, **arguments)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder."""
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was best, under the path that a moved run folder has now; in another run's folder, nothing."""
        path = str(Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}")
        if Path(path).is_file():
            now = {name: path for name, value in state_dict.items() if name.endswith("model_path") and value}
            best = dict(zip([path], state_dict["best_k_models"].values(), strict=False))  # none without a monitor
            super().load_state_dict({**state_dict, **now, "dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(RunCheckpoint):
    """Writes `last.ckpt` every so many optimizer steps and at the end; a write replaces the file whole, or not at all.

    Args:
        folder: see `RunCheckpoint`.
        every_n_steps: optimizer steps between writes; at least 1. A run that is killed loses at most that many.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, folder: str | None = None, *, every_n_steps: int = 250) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1 optimizer step")
        super().__init__(folder, filename="last", every_n_train_steps=every_n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write nothing before the first step: a run cannot be resumed exactly from within an accumulation."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write at the end of training too."""
        steps_done = 0 < trainer.max_steps <= trainer.global_step
        epochs_done = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if (steps_done or epochs_done or trainer.should_stop) and not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))


class BestCheckpoint(RunCheckpoint):
    """Writes `best.ckpt` after every validation that was better than all before.

    Args:
        folder: see `RunCheckpoint`.
        monitor: what is compared, such as `validation/psnr`; more is better. None is the task's choice: PSNR for
            images, STOI for audio. Validations during pre-training without quantization are no candidates.
    """

    def __init__(self, folder: str | None = None, *, monitor: str | None = None) -> None:
        super().__init__(folder, filename="best", monitor=monitor, mode="max", save_on_train_epoch_end=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the task what to compare, unless it was said."""
        self.monitor = self.monitor or task_of(pl_module).monitor
        super().setup(trainer, pl_module, stage)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare, unless there are no codes yet, or nothing was measured."""
        if task_of(pl_module).pretraining:
            return
        if self.monitor not in trainer.callback_metrics:
            rank_zero_warn(
                f"{self.monitor} has no figure (every sample was left out: too short or silent), so best.ckpt is not "
                "written: set best_checkpoint.monitor to another figure of validation"
            )
            return
        super().on_validation_end(trainer, pl_module)


class SaveTokenizer(Callback):
    """Saves the tokenizer at the end of training, without trainer or pickle: `vqkit.Tokenizer.from_pretrained(folder)`.

    These are the weights of `last.ckpt`, averaged ones with `WeightEMA`; `weights.json` beside them says of which run,
    step and checkpoint. A fit that makes no step saves nothing.

    Args:
        folder: None is `tokenizer` in the trainer's `default_root_dir`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self._trained = False

    def folder_in(self, root: str | Path) -> Path:
        """Where the tokenizer is saved by a trainer with this `default_root_dir`."""
        return Path(self.folder or Path(root) / "tokenizer")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find out before training whether the tokenizer can be saved."""
        if stage == "fit":
            to_config(task_of(pl_module).tokenizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there was training, after which alone `WeightEMA` hands over its average."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save."""
        if self._trained and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            task = task_of(pl_module)
            kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
            checkpoint = os.path.relpath(kept[0].best_model_path) if kept else None
            weights = {"checkpoint": checkpoint, "step": trainer.global_step, "run": task.run_id}
            save_tokenizer(task.tokenizer, self.folder_in(trainer.default_root_dir), weights)
