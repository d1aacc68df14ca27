"""Numbers that change over the course of training, such as temperatures and loss weights."""

import math
from abc import ABC, abstractmethod
from typing import Any

from lightning import Callback, LightningModule, Trainer


class AttributeSchedule(Callback, ABC):
    """Sets a number somewhere in the task from `start` to `end` over `batches` training batches, and keeps it there.

    Derived classes say on which curve. The position is counted in training batches, which no number of optimizers
    changes and which a resumed run continues.

    Args:
        attribute: dotted path from the task, such as `tokenizer.quantizer.losses.0.weight`.
        start: value at batch `delay` and before.
        end: value from batch `delay + batches` on.
        batches: length of the change, at least 1.
        delay: batches before it.

    Raises:
        ValueError: at construction if a length is out of range, at the start of fit if there is no such number.
    """

    def __init__(self, attribute: str, start: float, end: float, *, batches: int, delay: int = 0) -> None:
        if batches < 1 or delay < 0:
            raise ValueError(f"batches={batches}, delay={delay}: expected at least 1 batch, and a delay of at least 0")
        self.attribute = attribute
        self.start = start
        self.end = end
        self.batches = batches
        self.delay = delay

    @property
    def state_key(self) -> str:
        """One state for each attribute."""
        return f"{type(self).__qualname__}[{self.attribute}]"

    @abstractmethod
    def rise(self, progress: float) -> float:
        """How far the value has come, 0 ... 1, at a share of the way in [0, 1]."""

    def value(self, batch: int) -> float:
        """The value at a training batch, counted from 0."""
        progress = min(1.0, max(0.0, (batch - self.delay) / self.batches))
        return self.start + (self.end - self.start) * self.rise(progress)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look the attribute up before it is needed."""
        owner, name = self._find(pl_module)
        number = getattr(owner, name)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"attribute={self.attribute!r} is {number!r}: expected a number")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the value for this batch."""
        owner, name = self._find(pl_module)
        value = self.value(trainer.fit_loop.total_batch_idx)
        setattr(owner, name, value)
        pl_module.log(f"schedule/{self.attribute}", value)

    def _find(self, pl_module: LightningModule) -> tuple[Any, str]:
        owner: Any = pl_module
        *path, name = self.attribute.split(".")
        for step in [*path, name]:
            if not hasattr(owner, step):
                numbers = [key for key, value in vars(owner).items() if isinstance(value, int | float)]
                raise ValueError(
                    f"attribute={self.attribute!r}: {type(owner).__name__} has no {step!r}; its numbers are "
                    f"{', '.join(sorted(key for key in numbers if not key.startswith('_'))) or 'none'}"
                )
            owner, parent = getattr(owner, step), owner
        return parent, name


class LinearSchedule(AttributeSchedule):
    """A straight line from start to end."""

    def rise(self, progress: float) -> float:
        """The progress itself."""
        return progress


class CosineSchedule(AttributeSchedule):
    """Half a cosine from start to end: flat at both, steepest in the middle."""

    def rise(self, progress: float) -> float:
        """(1 - cos(pi p)) / 2."""
        return (1 - math.cos(math.pi * progress)) / 2
