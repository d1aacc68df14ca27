"""Networks that are used and never trained."""

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from torch import Tensor, nn

Held = TypeVar("Held", bound=nn.Module)


class HeldModule(nn.Module, Generic[Held]):
    """Holds a module that is no module to whatever holds this one.

    Its weights are not in `parameters()` or `state_dict()`, hence not in the optimizer, in checkpoints or in what data
    parallelism sends around, and `train()` does not reach it. It follows to other devices; where it is a
    `FullPrecisionModule`, it stays in float32 where a model of 16 bits is trained.

    Args:
        held: put into eval mode, its parameters without gradients.

    Attributes:
        held: that module.
    """

    def __init__(self, held: Held) -> None:
        super().__init__()
        self._held = (held.requires_grad_(False).eval(),)  # in a tuple, where nn.Module does not look for modules

    @property
    def held(self) -> Held:
        """The module."""
        return self._held[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.held._apply(fn)
        return super()._apply(fn, recurse)
