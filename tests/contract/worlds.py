"""Conditions under which the contract holds too: a device without float64, and a model in bfloat16."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.contract.cases import Case
from tests.few import few
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


@contextmanager
def in_bfloat16() -> Iterator[None]:
    """As in a training with `precision=bf16-true`: inputs of bfloat16, which is the default dtype, too."""
    before = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Case.example, "__kwdefaults__", {"seed": 0, "dtype": torch.bfloat16})
        torch.set_default_dtype(torch.bfloat16)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


WORLDS = {
    "plain": (nullcontext, {}),
    "without float64": (
        without_float64,
        {
            "test_casting_the_model_leaves_the_quantizer_in_full_precision": "asks for float64",
            "test_forward_mode_derivatives": "torch has none under a dispatch mode",
        },
    ),
    "bfloat16": (in_bfloat16, {}),
}
"""Name -> the context, and why single tests do not run in it."""


@pytest.fixture(autouse=True, params=few(WORLDS.keys(), "plain"))
def world(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs each test of a module that imports it in all of `WORLDS`."""
    context, exempt = WORLDS[request.param]
    if reason := exempt.get(request.node.originalname):
        pytest.skip(reason)
    with context():
        yield
