"""What memory tests look at: the largest tensor of a block of code, inside custom operators too."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.kernels import bit_patterns
from vqkit.kernels.torch_search.search import nearest_indices

INSIDE: dict[Any, Callable[..., Any]] = {
    torch.ops.vqkit.nearest.default: nearest_indices,
    torch.ops.vqkit.pattern_sums.default: bit_patterns._forward,
    torch.ops.vqkit.pattern_sums_backward.default: bit_patterns._backward,
}
"""What the operators run, which a mode would see whole."""


class LargestTensor(TorchDispatchMode):
    """Records the most bytes that one tensor took."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in INSIDE:
            with self:
                return INSIDE[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result
