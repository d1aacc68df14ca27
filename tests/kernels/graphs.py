"""Helpers of the tests of kernels: leaves of a graph, small blocks, traced modules, and what an operation made."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

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


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Float32 products are lowered, as `torch.set_float32_matmul_precision` says, inside the block."""
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        yield
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def with_threads(numbers: Sequence[int], call: Callable[[], object]) -> list:
    """What a call gives with each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for number in numbers:
            torch.set_num_threads(number)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results


class Function(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor):  # type: ignore[no-untyped-def]
        return self.function(*arguments)


def traced(function: Callable, arguments: tuple[Tensor, ...], rows: Sequence[int]) -> tuple[Callable, Callable]:
    """A function compiled and exported, for any first size of the arguments in these places."""
    torch._dynamo.reset()
    size = torch.export.Dim("rows")
    shapes = (tuple({0: size} if place in rows else None for place in range(len(arguments))),)
    exported = torch.export.export(Function(function), arguments, dynamic_shapes=shapes)
    return torch.compile(function, fullgraph=True, backend="aot_eager"), exported.module()


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
