"""The end of a recording in DAC, whose transposed convolutions of odd stride give a sample less than they could.

They drop (stride + 1) / 2 outputs at both ends, where one less behind would keep T stride of them. All layers behind
see the shorter signal, so that the last few hundred samples depend on it. At 16 and 24 kHz, of strides 8, 5, 4, 2, the
last 8 samples of the whole are missing.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class DropLast1d(nn.Module):
    """(B, C, T) to (B, C, T - 1), without the last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T - 1)."""
        return x[..., :-1]


class FillLast1d(nn.Module):
    """(B, C, T) to (B, C, T + count), with zeros behind.

    Args:
        count: of zeros.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C, T + count)."""
        return F.pad(x, (0, self.count))

    def extra_repr(self) -> str:
        """How many."""
        return f"{self.count}"


def missing_at_end(strides: Sequence[int]) -> int:
    """Samples that are missing at the end of the whole, of these strides in the order of execution."""
    missing = 0
    for stride in strides:
        missing = missing * stride + stride % 2
    return missing
