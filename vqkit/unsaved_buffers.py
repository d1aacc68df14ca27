"""Buffers that no state holds: windows, filters, tables of positions, and counters since the start."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self

import torch
from torch import Tensor, nn


class UnsavedBuffers(nn.Module):
    """A module whose unsaved buffers are made anew when it leaves the meta device.

    A model that is too large for one device is built on meta, given memory by `to_empty`, and filled by
    `load_state_dict`. What is not in the state would hold whatever that memory held.
    """

    _makers: Mapping[str, Callable[[], Tensor]] = MappingProxyType({})

    def register_unsaved(self, name: str, make: Callable[[], Tensor]) -> None:
        """Register a buffer that `state_dict` leaves out.

        Args:
            name: of the buffer.
            make: gives its first value; a function of a module, or a `partial` of one, which can be pickled.
        """
        self.register_buffer(name, make(), persistent=False)
        self._makers = {**self._makers, name: make}

    @property
    def unsaved(self) -> list[str]:
        """Names of these buffers."""
        return list(self._makers)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        unset = [name for name in self._makers if self.get_buffer(name).is_meta]
        super()._apply(fn, recurse)
        for name in unset:
            if not (buffer := self.get_buffer(name)).is_meta:
                with torch.device("cpu"):
                    value = self._makers[name]()
                buffer.copy_(value)
        return self
