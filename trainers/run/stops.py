"""Signals: a run that is asked to end saves what it has first, and says how to go on."""

import os
import signal
from types import FrameType
from typing import Any, Self, TypeVar

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from trainers.callbacks import LastCheckpoint, TokenWriter
from trainers.core.ranks import Ranks

Kind = TypeVar("Kind", bound=Callback)
SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)]


class Stopped(SystemExit):
    """A signal ended the command.

    Args:
        number: of the signal; the status of the process is 128 more, as shells have it.
        how_to_go_on: for a person.
    """

    def __init__(self, number: int, how_to_go_on: str) -> None:
        super().__init__()
        self.code: int = 128 + number
        self.line = f"stopped by {signal.Signals(number).name} {how_to_go_on}"


class StopAtSignal(Callback):
    """Ends the command at SIGTERM, SIGINT (Ctrl-C) and SIGHUP, and at once at the second of them.

    Training ends behind the optimizer step that is being made, on all ranks behind the same one, with that step in
    `last.ckpt`. `predict` ends with a shard of the samples that are encoded. Everything else ends where it is: files
    are whole or not there. A signal that was ignored when the process started (nohup) stays ignored.

    It is a context too, in which signals are handled before there is a trainer.

    Lightning's handler of SIGTERM is replaced: it ends fit within an accumulation, with status 0.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._process = os.getpid()
        self._received = 0
        self._waiting = False
        self._step = 0
        self._trainer: Trainer | None = None

    def __enter__(self) -> Self:
        found = {number: signal.getsignal(number) for number in SIGNALS}
        self._before = {number: handler for number, handler in found.items() if handler is not signal.SIG_IGN}
        self._handle_signals()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle_signals(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:
            if number == signal.SIGTERM:  # one that it has started, and ends
                os._exit(128 + number)
            return
        if self._received:
            os._exit(128 + number)
        self._received = number
        if not self._waiting:
            raise Stopped(number, self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        trainer = self._trainer
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return "before it was done: the same command starts again"
        for callback in _callbacks(trainer, LastCheckpoint):
            if path := callback.last_written:
                words = "to go on: the same command with --ckpt_path"
                return f"at step {trainer.global_step}; {words} {os.path.relpath(path)}"
        return f"at step {trainer.global_step}; it wrote no checkpoint: the same command starts again"

    # ------------------------------------------------------------------ where it waits, and where it ends

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """From here on there is a trainer to ask."""
        self._trainer = trainer

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lightning has set its handlers just before."""
        self._handle_signals()

    on_test_start = on_sanity_check_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for an optimizer step."""
        self._handle_signals()
        self._waiting, self._step, self._ranks = True, trainer.global_step, Ranks()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End behind an optimizer step, if a rank was asked to."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self._ranks.any(bool(self._received)):
            self._received = self._received or signal.SIGTERM
            for callback in _callbacks(trainer, LastCheckpoint):
                callback.write(trainer)
            raise Stopped(self._received, self._how_to_go_on())

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step before is written: one process may end at once, where ranks must go on until they meet again."""
        self._handle_signals()
        self._waiting = trainer.state.fn == TrainerFn.FITTING and trainer.world_size > 1
        if self._received and not self._waiting:
            raise Stopped(self._received, self._how_to_go_on())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training goes on."""
        self._waiting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End if a signal came behind the last step; what follows writes files, each whole."""
        self._waiting = False
        if self._ranks.any(bool(self._received)):
            self._received = self._received or signal.SIGTERM
            raise Stopped(self._received, self._how_to_go_on())

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on a signal waits for a shard."""
        self._handle_signals()
        self._waiting = True

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any) -> None:
        """End with a shard of what is encoded."""
        if self._received:
            for callback in _callbacks(trainer, TokenWriter):
                callback.on_predict_end(trainer, pl_module)
            raise Stopped(self._received, "with its shard written; to go on: the same command")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """No step follows; the ranks that this process has started end too."""
        self._waiting = False
        if isinstance(exception, Stopped) and trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGTERM)


def _callbacks(trainer: Any, kind: type[Kind]) -> list[Kind]:
    return [callback for callback in trainer.callbacks if isinstance(callback, kind)]
