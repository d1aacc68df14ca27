"""Numbers as functions of the optimizer step: learning rates, weights of losses, temperatures, dropout."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from torch import nn

LOOKED_AT = 1000
"""Steps of a training, evenly spread, at which a schedule is checked before the first."""
ENDLESS = 2**40
"""Steps of a training without an end, where that is done."""

Range = tuple[str, Callable[[float], bool]]
"""Which numbers are allowed: in words, and whether one of them is."""

AT_LEAST_0: Range = ("a number of at least 0", lambda number: 0 <= number < math.inf)
PROBABILITY: Range = ("a probability in [0, 1]", lambda number: 0 <= number <= 1)
BELOW_1: Range = ("a number in [0, 1)", lambda number: 0 <= number < 1)
RANGES: dict[str, Range] = {
    "p": PROBABILITY,
    "dropout": PROBABILITY,
    "probability": PROBABILITY,
    "decay": BELOW_1,
    "usage_decay": BELOW_1,
    "threshold": BELOW_1,
    "keep": ("a probability above 0 and below 1", lambda number: 0 < number < 1),
    "temperature": ("a number above 0", lambda number: 0 < number < math.inf),
}
"""Of numbers by the attribute that has them; others stay at 0 or above where they are configured so."""


class Schedule(ABC):
    """A number at each optimizer step.

    It has no state: a run that is resumed at a step has the number of that step, whatever was trained before.

    Attributes:
        needs_end: whether it depends on the last step of the training.
    """

    needs_end = False

    @abstractmethod
    def value(self, step: int, *, configured: float, first: int = 0, last: float = math.inf) -> float:
        """The number at an optimizer step.

        Args:
            step: counted from 0.
            configured: the number that the configuration gives.
            first: step behind the warm-up, at which a curve begins.
            last: steps of the whole training.
        """

    def check(self, allowed: Range, *, configured: float, first: int = 0, last: float, argument: str) -> None:
        """Refuse numbers that are not allowed, and a training without an end where the number depends on it.

        Args:
            allowed: which numbers are; looked at are `LOOKED_AT` steps, so that a schedule of one's own may still have
                others between them.
            configured: see `value`.
            first: likewise.
            last: likewise.
            argument: that gives the schedule, for the message.

        Raises:
            ValueError: a number is not allowed, with its step; or `last` is infinite.
        """
        if self.needs_end and not math.isfinite(last):
            raise ValueError(
                f"a {type(self).__name__} schedule without steps needs an end: set trainer.max_steps or "
                "trainer.max_epochs, or its steps"
            )
        words, is_allowed = allowed
        end = int(min(last, ENDLESS))
        for step in [*range(0, end, max(1, end // LOOKED_AT)), max(0, end - 1)]:
            if not is_allowed(number := self.value(step, configured=configured, first=first, last=last)):
                raise ValueError(
                    f"{argument}: {type(self).__name__} gives {number:.4g} at optimizer step {step}, from "
                    f"{configured:g}: expected {words}; change the schedule, or where it begins"
                )


class Constant(Schedule):
    """The number that is configured: as a learning rate behind its warm-up that of LlamaGen.

    Source: Sun et al. 2024 ([arXiv:2406.06525](https://arxiv.org/abs/2406.06525)), whose tokenizers train at 1e-4.
    """

    def value(self, step: int, *, configured: float, first: int = 0, last: float = math.inf) -> float:
        """`configured`."""
        return configured


class Curve(Schedule):
    """From one number to another, and on with that one.

    Args:
        end: the last number.
        start: the first one; None is the one that is configured.
        steps: optimizer steps of the change, at least 1; None is until the training ends.
        delay: optimizer steps before it.

    Raises:
        ValueError: `steps` or `delay` is out of its range.
    """

    def __init__(self, end: float, *, start: float | None = None, steps: int | None = None, delay: int = 0) -> None:
        if (steps is not None and steps < 1) or delay < 0:
            raise ValueError(
                f"steps={steps}, delay={delay}: expected at least 1 step or null, and a delay of 0 or more"
            )
        self.end = end
        self.start = start
        self.steps = steps
        self.delay = delay
        self.needs_end = steps is None

    @abstractmethod
    def rise(self, progress: float) -> float:
        """How far the number has come, 0 ... 1, at a share of the way in [0, 1]."""

    def value(self, step: int, *, configured: float, first: int = 0, last: float = math.inf) -> float:
        """On the curve, which begins behind warm-up and delay, whichever is later."""
        begin = max(first, self.delay)
        length = last - begin if self.steps is None else self.steps
        progress = min(1.0, max(0.0, (step - begin) / max(1, length)))
        start = configured if self.start is None else self.start
        return start + (self.end - start) * self.rise(progress)


class Linear(Curve):
    """A straight line; RobustTok's share of perturbed tokens is one with a delay.

    Source: Qiu et al. 2025 ([arXiv:2503.08354](https://arxiv.org/abs/2503.08354)), whose share falls to a half.
    """

    def rise(self, progress: float) -> float:
        """The progress itself."""
        return progress


class Cosine(Curve):
    """Half a cosine: flat at both ends, steepest in the middle.

    Source: Loshchilov and Hutter 2016 ([arXiv:1608.03983](https://arxiv.org/abs/1608.03983)), eq. 5, one period.
    TiTok's learning rate falls on it to 1e-5 ([arXiv:2406.07550](https://arxiv.org/abs/2406.07550)).
    """

    def rise(self, progress: float) -> float:
        """(1 - cos(pi p)) / 2."""
        return (1 - math.cos(math.pi * progress)) / 2


class StepDrops(Schedule):
    """Multiplied by `factor` at each of some steps: a staircase.

    Source: Open-MAGVIT2, Luo et al. 2024 ([arXiv:2409.04410](https://arxiv.org/abs/2409.04410)), drops to a tenth after
    200 and 250 of 270 epochs. Differs: the steps are those of the optimizer, epochs times steps in an epoch.

    Args:
        at: optimizer steps, rising and at least 0; warm-up does not shift them.
        factor: of each drop, positive.

    Raises:
        ValueError: `at` is empty or does not rise, or `factor` is not positive.
    """

    unit = "optimizer steps that rise, such as [200000, 250000]"

    def __init__(self, at: Sequence[int], *, factor: float = 0.1) -> None:
        if not at or list(at) != sorted(set(at)) or at[0] < 0:
            raise ValueError(f"at={list(at)}: expected {self.unit}")
        if not factor > 0:
            raise ValueError(f"factor={factor}: expected a positive number, such as 0.1")
        self.at = at
        self.factor = factor

    def value(self, step: int, *, configured: float, first: int = 0, last: float = math.inf) -> float:
        """What is configured times factor^n, with n drops up to this step."""
        return float(configured * self.factor ** sum(step >= drop for drop in self.at))


class EpochDrops(StepDrops):
    """The same after epochs of a training whose number of epochs is known, whatever the number of steps in one.

    Source: Open-MAGVIT2 as in `StepDrops`; IBQ, Shi et al. 2024 ([arXiv:2412.02692](https://arxiv.org/abs/2412.02692)),
    drops to a tenth after 250 and 300 of 330 epochs.

    Args:
        at: epochs, rising, at least 0 and below `epochs`; warm-up does not shift them.
        epochs: of the whole training, as `trainer.max_epochs`; one that ends by steps has these epochs in equal shares.
        factor: of each drop, positive.

    Raises:
        ValueError: an argument is out of its range.
    """

    needs_end = True
    unit = "epochs that rise, such as [200, 250]"

    def __init__(self, at: Sequence[int], *, epochs: int, factor: float = 0.1) -> None:
        super().__init__(at, factor=factor)
        if at[-1] >= epochs:
            raise ValueError(
                f"epochs={epochs}: expected those of the whole training, more than the last of at={list(at)}"
            )
        self.epochs = epochs

    def value(self, step: int, *, configured: float, first: int = 0, last: float = math.inf) -> float:
        """What is configured times factor^n, with n drops up to this step."""
        return float(configured * self.factor ** sum(step * self.epochs >= drop * last for drop in self.at))


class EntropyAnnealing(Schedule):
    """A weight that begins several times as large: Open-MAGVIT2's annealing of the entropy penalty.

    Source: Luo et al. 2024 ([arXiv:2409.04410](https://arxiv.org/abs/2409.04410)), `codebook_enlarge_ratio` and
    `codebook_enlarge_steps` of the published training: weight * (1 + ratio * max(0, 1 - step / steps)).

    Args:
        ratio: how many times the weight is added at step 0, at least 0.
        steps: optimizer steps until nothing is added, at least 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, *, ratio: float = 3.0, steps: int = 2000) -> None:
        if not ratio >= 0 or steps < 1:
            raise ValueError(f"ratio={ratio}, steps={steps}: expected a ratio of at least 0, and at least 1 step")
        self.ratio = ratio
        self.steps = steps

    def value(self, step: int, *, configured: float, first: int = 0, last: float = math.inf) -> float:
        """What is configured times 1 + ratio * max(0, 1 - step / steps)."""
        return configured * (1 + self.ratio * max(0.0, 1 - step / self.steps))


class ScheduledNumbers:
    """The numbers that a dotted name means, each of which follows a schedule from what is configured for it.

    Args:
        schedule: of all of them.
        root: at which the name begins: a module, any object, or a mapping.
        name: such as `quantizer.losses.entropy.weight`: attributes, and items of lists by number or by their own
            `name`. `*` is everything at its place that has the rest, so `quantizer.stages.*.losses.commitment.weight`
            is one number in each stage, and `encoder.layers.*.branch.*.p` the probability of each dropout there.
        argument: that asks, for the message.

    Raises:
        ValueError: there is no such number; the message names those that there are.
    """

    def __init__(self, schedule: Schedule, root: object, name: str, *, argument: str) -> None:
        *path, last = name.split(".")
        owners = [root]
        done: list[str] = []
        for step in path:
            found = [item for owner in owners for item in _items(owner, step)]
            if not found:
                raise ValueError(f"{argument}: {_there_is(owners, done, step)}")
            owners = found
            done.append(step)
        held = [(owner, getattr(owner, "__dict__", {}).get(last)) for owner in owners]
        self._numbers = [(owner, last, number) for owner, number in held if _is_number(number)]
        if not self._numbers:
            raise ValueError(f"{argument}: {_there_is(owners, done, last)}")
        self.schedule = schedule
        self.argument = argument

    def check(self, *, last: float) -> None:
        """Refuse numbers that their owners cannot use, before they get them; see `Schedule.check`."""
        for _, attribute, configured in self._numbers:
            allowed = RANGES.get(attribute, AT_LEAST_0 if configured >= 0 else ("a finite number", math.isfinite))
            self.schedule.check(allowed, configured=configured, last=last, argument=self.argument)

    def set(self, step: int, *, last: float = math.inf) -> float:
        """Set each to its value at a step (see `Schedule.value`), and return that of the first."""
        for owner, attribute, configured in self._numbers:
            setattr(owner, attribute, self.schedule.value(step, configured=configured, last=last))
        owner, attribute, _ = self._numbers[0]
        return float(getattr(owner, attribute))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _inside(owner: Any) -> dict[str, Any]:
    """What is in an object, by the steps of a name that lead there."""
    if isinstance(owner, Mapping):
        return dict(owner)
    if isinstance(owner, list | tuple):
        return {str(number): item for number, item in enumerate(owner)}
    parts = dict(owner.named_children()) if isinstance(owner, nn.Module) else {}
    return parts | {name: value for name, value in getattr(owner, "__dict__", {}).items() if not name.startswith("_")}


def _items(owner: Any, step: str) -> list[Any]:
    inside = _inside(owner)
    if step == "*":
        return list(inside.values())
    return [inside[step]] if step in inside else [item for item in inside.values() if _own_name(item) == step]


def _own_name(item: Any) -> Any:
    return getattr(item, "name", None)


def _there_is(owners: Iterable[Any], where: list[str], step: str) -> str:
    """In words that a step leads nowhere, and the numbers to which others lead."""
    names = dict.fromkeys(name for owner in owners for name in _names(owner, ".".join(where), set()))
    return f"{'.'.join(where) or 'the task'} has no {step!r}; the numbers there are {', '.join(names) or 'none'}"


def _names(owner: Any, where: str, seen: set[int]) -> Iterator[str]:
    """The names of all numbers that are no counts, with `*` for the items of lists that have no name of their own."""
    seen.add(id(owner))
    for step, item in _inside(owner).items():
        full = ".".join(filter(None, (where, (_own_name(item) or "*") if step.isdigit() else step)))
        if isinstance(item, float) and hasattr(owner, "__dict__"):
            yield full
        elif id(item) not in seen and not isinstance(item, type):
            yield from _names(item, full, seen)
