"""Keep the numbers that a codebook lives on in full precision, whatever the model around it is moved to."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

_LOW_PRECISION = (torch.float16, torch.bfloat16)


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
