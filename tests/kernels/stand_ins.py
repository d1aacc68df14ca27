"""What stands in for a GPU, and what takes an engine away: they replace what `vqkit.kernels.gpu` and
`vqkit.kernels.native` say of the machine."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from vqkit.kernels import engines, gpu, native


@contextmanager
def without(engine: Any) -> Iterator[None]:
    """Inside the block the `native` or the `gpu` module takes no call."""
    if engine is native:
        with patch.object(native, "can_search", lambda x, codes, k: False):
            yield
    else:
        with patch.object(gpu, "refusal", lambda *tensors: "taken away"):
            yield


@contextmanager
def only(variant: str) -> Iterator[None]:
    """The compiled search takes this one of `native.variants` inside the block."""
    if variant not in native.variants():
        raise ValueError(f"variant={variant!r}: expected one of {native.variants()}")
    search = torch.ops.vqkit_native.search
    with (
        patch.object(torch.ops.vqkit_native, "search", lambda *arguments: search(*arguments[:-1], variant)),
        patch.object(native, "variant", lambda: variant),
    ):
        yield


@contextmanager
def standing_in(capability: int, *, verified: bool = True) -> Iterator[None]:
    """CPU tensors are taken for those of a GPU of this compute capability, times ten; no compiled search."""
    with ExitStack() as stack:
        stack.enter_context(without(native))
        stack.enter_context(patch.object(gpu, "DEVICES", (*gpu.DEVICES, "cpu")))
        stack.enter_context(patch.object(gpu, "device_refusal", lambda device: ""))
        stack.enter_context(patch.object(gpu, "architecture", lambda device: capability))
        multiprocessors = 1 if capability == gpu.INTERPRETER else 132
        stack.enter_context(patch.object(gpu, "multiprocessors", lambda device: multiprocessors))
        stack.enter_context(patch.object(gpu, "is_verified", lambda device: verified))
        engines.differences.cache_clear()
        stack.callback(engines.differences.cache_clear)
        yield


@contextmanager
def interpreted(*, verified: bool = True) -> Iterator[None]:
    """CPU tensors go through the fused kernels, in Triton's interpreter, inside the block.

    Raises:
        RuntimeError: the variable TRITON_INTERPRET was not 1 when Triton was imported, so that there is no interpreter.
    """
    from triton import knobs

    if not knobs.runtime.interpret:
        raise RuntimeError("Triton's interpreter is off: set TRITON_INTERPRET=1 before Triton is imported")
    # NumPy, which runs the interpreter, would warn of infinities that the kernels count on.
    with standing_in(gpu.INTERPRETER, verified=verified), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        yield


@contextmanager
def compiled_for(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Compiles what calls inside the block would launch, for a GPU that need not be here; results are not computed.

    Args:
        capability: compute capability times ten, such as 90.

    Yields:
        The name and the compiled kernel (`asm`, `metadata`) of each launch so far.
    """
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    compiled: list[tuple[str, Any]] = []

    def compile_it(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        compiled.append((kernel.fn.__name__, kernel.warmup(*arguments, grid=grid, **options)))

    driver.set_active(_NoDevice(GPUTarget("cuda", capability, 32)))
    try:
        with standing_in(capability), patch.object(gpu, "launch", compile_it):
            yield compiled
    finally:
        if torch.cuda.is_available():
            driver.reset_active()


class _NoDevice:
    """What Triton asks a driver when it compiles."""

    def __init__(self, target: Any) -> None:
        self._target = target

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return self._target.arch  # a number of its own for each: Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0
