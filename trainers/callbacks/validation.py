"""When training is interrupted by a validation."""

from typing import Any

from lightning import Callback, LightningModule, Trainer


class ValidationSchedule(Callback):
    """Validates after each epoch, but not more often than every so many steps, and always after the last step.

    A folder of few files has epochs of a few steps. What `trainer.val_check_interval` or
    `trainer.check_val_every_n_epoch` ask for comes first.

    Args:
        every_n_steps: optimizer steps from one validation to the next where epochs are shorter; at least 1, which
            validates after each epoch.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1 optimizer step")
        self.every_n_steps = every_n_steps
        self._validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count in steps where epochs are too short, and say so."""
        self._validated = False
        nothing_asked = trainer.check_val_every_n_epoch == 1 and trainer.val_check_interval == 1.0
        batches, epoch = self.every_n_steps * trainer.accumulate_grad_batches, trainer.num_training_batches
        if nothing_asked and trainer.limit_val_batches and epoch < batches:
            trainer.check_val_every_n_epoch, trainer.val_check_batch = None, batches
            pl_module.print(
                f"validation every {self.every_n_steps} steps and after the last, because an epoch has {epoch} "
                "batches; to change it: --validation.every_n_steps"
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Ask for a stop after the last step, which makes Lightning validate."""
        last_epoch = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.global_step == trainer.max_steps or (last_epoch and trainer.is_last_batch):
            trainer.should_stop = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there was one."""
        self._validated = self._validated or not trainer.sanity_checking

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say why there was none."""
        if not self._validated:
            reason = (
                f"trainer.check_val_every_n_epoch is {trainer.check_val_every_n_epoch}"
                if trainer.limit_val_batches
                else "trainer.limit_val_batches is 0"
            )
            pl_module.print(f"there was no validation, so there are no examples and no best.ckpt: {reason}")
