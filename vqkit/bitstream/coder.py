"""What a coder is: the indices of a packet as bytes, and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

LARGEST_SIZE = 2**20
"""Codes that a coder takes; indices of more are coded in groups of bits."""


@dataclass(frozen=True)
class Context:
    """What is known of a packet before it is read.

    Attributes:
        size: K, codes to choose from, 2 ... 2^20.
        coarser: levels of the same sample that come before, coarse first, each its whole grid, int64, and its K. Grids
            may have other shapes.
        start: first row, on axis 0 of the level, that the packet holds.
        whole: shape of the whole level.
        order: (K,) int64, the rank of each code where neighbours are alike; None where it is not known.
    """

    size: int
    coarser: tuple[tuple[Tensor, int], ...] = ()
    start: int = 0
    whole: tuple[int, ...] = ()
    order: Tensor | None = None


class Coder(ABC):
    """Indices to bytes and back: what it writes depends on the indices and their context only.

    Class attributes:
        number: in the file, for good: 0 ... 255.
        name: for people and `pack(coder=...)`.
        reads_context: whether the coarser levels have to be there when it decodes.
    """

    number: ClassVar[int]
    name: ClassVar[str]
    reads_context: ClassVar[bool] = True

    @abstractmethod
    def encode(self, values: Tensor, context: Context) -> bytes | None:
        """The indices as bytes; None where the coder does not take such ones.

        Args:
            values: int64 in 0 ... size - 1 on the CPU, at least one, of any shape: (T,), (H, W), (T, H, W).
            context: of them.
        """

    @abstractmethod
    def decode(self, data: bytes, shape: tuple[int, ...], context: Context) -> Tensor:
        """What `encode` was given, int64. Time and memory are bounded by `shape` and `data`, whatever the bytes are.

        Raises:
            ValueError: these are not the bytes of such indices.
        """
