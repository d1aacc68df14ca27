"""Helpers of the tests of soft assignment: leaves of a graph, small blocks, and what an operation made."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.kernels import softmax_rows


def leaves(*tensors: Tensor, dtype: torch.dtype | None = None) -> list[Tensor]:
    return [tensor.detach().to(dtype or tensor.dtype, copy=True).requires_grad_() for tensor in tensors]


def few_rows(monkeypatch, rows: int) -> None:
    """Several blocks at every size."""
    monkeypatch.setattr(softmax_rows, "BLOCK", 1)
    monkeypatch.setattr(softmax_rows, "FEWEST_ROWS", rows)


class Watch(TorchDispatchMode):
    """Records the dtypes of matrix products and the bytes of the largest tensor that an operation made (no views)."""

    def __init__(self) -> None:
        super().__init__()
        self.products: set[torch.dtype] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "addmv_"):
            self.products.update(arg.dtype for arg in args if isinstance(arg, Tensor))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result
