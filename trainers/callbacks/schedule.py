"""Numbers that change with the training batches; `TokenizerTask.schedules` has them change with the optimizer steps."""

from abc import ABC
from typing import Any, ClassVar

from lightning import Callback, LightningModule, Trainer

from trainers.core.schedules import Cosine, Curve, Linear, numbers_at


class AttributeSchedule(Callback, ABC):
    """Sets a number somewhere in the task from `start` to `end` over `batches` training batches, and keeps it there.

    Derived classes say on which curve. The position is counted in training batches, which no number of optimizers
    changes and which a resumed run continues.

    Args:
        attribute: dotted path from the task, such as `tokenizer.quantizer.losses.0.weight`; see `numbers_at`.
        start: value at batch `delay` and before.
        end: value from batch `delay + batches` on.
        batches: length of the change, at least 1.
        delay: batches before it.

    Raises:
        ValueError: at construction if a length is out of range, at the start of fit if there is no such number.
    """

    curve: ClassVar[type[Curve]]

    def __init__(self, attribute: str, start: float, end: float, *, batches: int, delay: int = 0) -> None:
        self.attribute = attribute
        self.schedule = self.curve(end, start=start, steps=batches, delay=delay)

    @property
    def state_key(self) -> str:
        """One state for each attribute."""
        return f"{type(self).__qualname__}[{self.attribute}]"

    def value(self, batch: int) -> float:
        """The value at a training batch, counted from 0."""
        return self.schedule.value(batch, configured=self.schedule.end)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look the attribute up before it is needed."""
        self._numbers(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the value for this batch."""
        value = self.value(trainer.fit_loop.total_batch_idx)
        for owner, name in self._numbers(pl_module):
            setattr(owner, name, value)
        pl_module.log(f"schedule/{self.attribute}", value)

    def _numbers(self, pl_module: LightningModule) -> list[tuple[Any, str]]:
        return numbers_at(pl_module, self.attribute, argument=f"attribute={self.attribute!r}")


class LinearSchedule(AttributeSchedule):
    """A straight line from start to end."""

    curve = Linear


class CosineSchedule(AttributeSchedule):
    """Half a cosine from start to end: flat at both, steepest in the middle."""

    curve = Cosine
