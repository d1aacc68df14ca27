"""Conditions under which the contract holds too: a device without float64, and a model in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit import precision
from vqkit.kernels import native


class NoFloat64(TorchDispatchMode):
    """Refuses every tensor of float64, also those made inside of this library's operators."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function.namespace == "vqkit":
            below = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
            with self:
                return function.redispatch(below, *args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        for entry in result if isinstance(result, tuple | list) else [result]:
            if isinstance(entry, torch.Tensor) and entry.dtype == torch.float64:
                raise TypeError(f"{function} made a tensor of float64, and the device has none")
        return result


@contextmanager
def without_float64() -> Iterator[None]:
    """The processor as a device without float64, and without the compiled search, which has no such devices."""
    with pytest.MonkeyPatch.context() as patch, NoFloat64():
        patch.setattr(precision, "WITHOUT_FLOAT64", {"cpu"})
        patch.setattr(native, "can_search", lambda *_: False)
        yield
