"""The base of estimators, losses, searches and maintenance policies."""

import inspect
from abc import ABC

from torch import nn

from vqkit.saving.config import Configured


class Part(Configured, nn.Module, ABC):
    """A module without state that keeps the arguments of its constructor as attributes of the same names."""

    def extra_repr(self) -> str:
        """The arguments, with the values that they have now."""
        names = inspect.signature(type(self).__init__).parameters
        return ", ".join(f"{name}={vars(self)[name]!r}" for name in names if name in vars(self))
