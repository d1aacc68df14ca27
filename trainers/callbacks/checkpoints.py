"""The files that a run leaves: `last.ckpt` to resume from, `best.ckpt` by validation, and the tokenizer for use."""

import time
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from trainers.core.checkpoints import is_of_run, save_tokenizer, source_of
from trainers.core.ranks import Ranks
from trainers.core.task import task_of
from vqkit.saving.config import to_config
from vqkit.saving.files import NotWritten, write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints whole, or not at all, on every file system.

    Lightning writes into `$TMPDIR`, and copies from there where the run folder is on another file system; what ends the
    process meanwhile leaves half a file in the place of the last whole one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write; errors name the file."""
        content = BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getbuffer())


class RunCheckpoint(ModelCheckpoint):
    """A checkpoint in the run folder, under one name.

    Args:
        folder: of the checkpoints; None is `checkpoints` in the trainer's `default_root_dir`.
        arguments: of Lightning's `ModelCheckpoint`.
    """

    def __init__(self, folder: str | None, **arguments: Any) -> None:
        super().__init__(dirpath=folder, enable_version_counter=False, **arguments)
        self._goes_on = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the folder, and see to it that files are whole."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # a plugin of one's own stays
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        self.dirpath = self.dirpath or str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find out whether this run goes on, or another one begins with its weights."""
        self._goes_on = is_of_run(checkpoint, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was best, under the path that a moved run folder has now; from another run, nothing."""
        path = str(Path(str(self.dirpath)) / f"{self.filename}{self.FILE_EXTENSION}")
        if self._goes_on and Path(path).is_file():
            now = {name: path for name, value in state_dict.items() if name.endswith("model_path") and value}
            best = dict(zip([path], state_dict["best_k_models"].values(), strict=False))  # none without a monitor
            super().load_state_dict({**state_dict, **now, "dirpath": self.dirpath, "best_k_models": best})


class LastCheckpoint(RunCheckpoint):
    """Writes `last.ckpt`: now and then, before a validation within training, and at every end that can be foreseen.

    It is always the state behind an optimizer step, never within an accumulation, so that a run that goes on from it
    equals one that was not stopped. A run that is to stop (`trainer.max_time`, early stopping) stops behind a step too.
    After an error between two steps (a file that cannot be read, a callback) it is written in a run of one process;
    within a step the codes have moved on already, and what was written before stays.

    Args:
        folder: see `RunCheckpoint`.
        every_n_steps: optimizer steps between writes; at least 1. A run that is killed loses at most that many.
        every_n_minutes: of training between writes, above 0, by the clock of whichever rank is ahead.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, folder: str | None = None, *, every_n_steps: int = 250, every_n_minutes: float = 5.0) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1 optimizer step")
        if not every_n_minutes > 0:
            raise ValueError(f"every_n_minutes={every_n_minutes}: expected a time above 0, such as 5")
        super().__init__(folder, filename="last", every_n_train_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self._step = self._validated_step = 0
        self._between_steps = False
        self._to_stop = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write nothing before the first step: a run cannot be resumed exactly from within an accumulation."""
        self._last_global_step_saved = self._step = trainer.global_step
        self._between_steps = self._to_stop = False
        self._ranks = Ranks()
        self._last_time_checked = time.monotonic()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """From here on the state is that of no step."""
        self._between_steps = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write behind an optimizer step, if it is time, or the run is to stop."""
        self._between_steps = trainer.global_step > self._step
        self._stop_between_steps(trainer)
        if not self._between_steps:
            return
        self._step = trainer.global_step
        seconds = time.monotonic() - (self._last_time_checked or 0.0)
        late = self._ranks.any(seconds >= 60 * self.every_n_minutes)
        if late or trainer.should_stop or self._step % self.every_n_steps == 0:
            self.write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write before a validation within training: it may take long, and averaged weights take the model's place."""
        if self._between_steps:
            self.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What looks at figures may end training here."""
        if not trainer.sanity_checking:
            self._validated_step = trainer.global_step
            self._stop_between_steps(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write at the end of training; again where an epoch or a validation ended: its count, the best figure."""
        steps_done = 0 < trainer.max_steps <= trainer.global_step
        epochs_done = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if steps_done or epochs_done or trainer.should_stop:
            if epochs_done or self._validated_step == trainer.global_step:
                self._last_global_step_saved = 0
            self.write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep the steps that were made; other ranks know of nothing, and would wait for ever."""
        if self._between_steps and trainer.world_size == 1 and not isinstance(exception, NotWritten):
            with suppress(OSError):  # the reason is the other error
                self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write now, unless this step is written already; all ranks call it, between two steps."""
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))
            self._last_time_checked = time.monotonic()

    @property
    def last_written(self) -> Path | None:
        """The file of this run, or the one that it went on from."""
        path = Path(self.dirpath or "", "last.ckpt")
        return path if self._last_global_step_saved and path.is_file() else None

    def _stop_between_steps(self, trainer: Trainer) -> None:
        """Put off a stop that comes within an accumulation."""
        self._to_stop |= trainer.should_stop
        trainer.should_stop = self._to_stop and self._between_steps


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
            weights = source_of(kept[0].best_model_path if kept else None, trainer.global_step, task.run_id)
            save_tokenizer(task.tokenizer, self.folder_in(trainer.default_root_dir), weights)
