"""The precision of numbers: the widest that a device has, and that of a codebook, whatever the model around it is."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

_LOW_PRECISION = (torch.float16, torch.bfloat16)

WITHOUT_FLOAT64 = frozenset({"mps"})
"""Types of devices none of which has float64."""


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, but float32 on devices that have none: Apple's GPUs, and those of Intel that say so of themselves."""
    if device.type in WITHOUT_FLOAT64:
        return torch.float32
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64


def widened(tensor: Tensor) -> Tensor:
    """The tensor in the widest dtype of its device."""
    return tensor.to(widest_dtype(tensor.device))


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another floating-point dtype.

    Values that are too large for float16, or for a floating-point dtype of 8 bits, become its largest number with their
    sign. Other dtypes hold all values of float32.
    """
    largest = torch.finfo(dtype).max
    if largest < torch.finfo(torch.bfloat16).max:  # which is that of float32, but for rounding
        tensor = tensor.clamp(-largest, largest)
    return tensor.to(dtype)


class FullPrecisionModule(nn.Module):
    """A module whose floating-point state ignores `.half()` and `.bfloat16()`; it follows `.double()` and device moves.

    Running statistics stall in low precision: with decay 0.99 a bfloat16 count stops moving once it exceeds about 128
    times its increment. A model that is cast as a whole, `model.bfloat16()`, must therefore not take its quantizer
    along.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in _LOW_PRECISION and tensor.dtype not in _LOW_PRECISION:
                return tensor.to(device=moved.device)
            return moved

        return super()._apply(keep_precision, recurse)
