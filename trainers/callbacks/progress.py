"""One progress bar over the whole of training, with the numbers that matter."""

import sys
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

SHOWN = (
    "train/loss",
    "train/psnr",
    "train/mel",
    "codebook/usage",
    "validation/psnr",
    "validation/stoi",
    "validation/mel_distance",
)
"""What is shown of what is logged; without the first word, but for validation."""


class StepProgress(ProgressBar):
    """A bar over optimizer steps for fit, over batches for everything else.

    On a terminal it moves; in a log file it adds a line now and then. Its numbers are read from the device at every
    `trainer.log_every_n_steps`.

    Args:
        log_file_seconds: seconds between two lines in a log file.
    """

    def __init__(self, log_file_seconds: float = 30.0) -> None:
        super().__init__()
        self.log_file_seconds = log_file_seconds
        self.is_enabled = True
        self._bar: Any = None

    def enable(self) -> None:
        """Show bars."""
        self.is_enabled = True

    def disable(self) -> None:
        """Show none (Lightning does this on all ranks but the first)."""
        self.is_enabled = False

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar."""
        if self.is_enabled:
            tqdm.write(sep.join(map(str, args)), file=sys.stdout)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar, at the step from which training goes on."""
        total = trainer.estimated_stepping_batches
        self._open("train", int(total) if total != float("inf") else None, initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move by the optimizer steps taken."""
        if self._bar is not None and trainer.global_step > self._bar.n:
            if trainer.global_step % getattr(trainer, "log_every_n_steps", 1) == 0:
                self._bar.set_postfix_str(self._numbers(trainer), refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar with the last numbers."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(trainer), refresh=True)
        self._close()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar only for a validation of its own."""
        if trainer.state.fn == "validate":
            self._open("validate", _batches(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """Move by a batch."""
        if trainer.state.fn == "validate":
            self._advance()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close a bar of its own."""
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar."""
        self._open("test", _batches(trainer.num_test_batches))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a bar."""
        self._open("predict", _batches(trainer.num_predict_batches))

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Move by a batch."""
        self._advance()

    on_predict_batch_end = on_test_batch_end

    def on_test_end(self, *args: Any, **kwargs: Any) -> None:
        """Close the bar; after an error the terminal is clean for the message."""
        self._close()

    on_predict_end = on_exception = on_test_end

    def _numbers(self, trainer: Trainer) -> str:
        metrics = trainer.callback_metrics
        shown = {
            name.removeprefix("train/").removeprefix("codebook/"): metrics[name] for name in SHOWN if name in metrics
        }
        return ", ".join(f"{name} {float(value):.4g}" for name, value in shown.items())

    def _open(self, description: str, total: int | None, *, initial: int = 0) -> None:
        if self.is_enabled:
            terminal = sys.stderr.isatty()
            self._bar = tqdm(
                desc=description,
                total=total,
                initial=initial,
                dynamic_ncols=terminal,
                ncols=None if terminal else 120,
                mininterval=0.5 if terminal else self.log_file_seconds,
                miniters=1 if terminal else None,
                file=sys.stderr,
            )

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _batches(counts: int | float | list[int | float]) -> int | None:
    total = sum(counts) if isinstance(counts, list) else counts
    return None if total == float("inf") else int(total)
