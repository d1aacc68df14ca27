"""The fused kernels for NVIDIA GPUs, in Triton: which tensors they take, and how they start.

Nothing needs them: where Triton or the GPU is missing, the torch path gives the same. Two contexts stand in for a GPU:
`interpreted` runs the kernels on CPU tensors in Triton's interpreter, `compiled_for` compiles what a call would launch.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

OLDEST = 80  # compute capability, times ten, of the first GPU with bfloat16 products
INTERPRETER = 0  # stands for its compute capability
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_enabled = True
_stand_in: int | None = None  # compute capability that CPU tensors are taken for
_compiled: list[tuple[str, Any]] | None = None


def can_run(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: of single precision or less, on a GPU with bfloat16 products."""
    if not _enabled or not {tensor.dtype for tensor in tensors} <= {*DTYPES}:
        return False
    if not all(tensor.is_cuda for tensor in tensors):
        return _stand_in is not None
    return _has_triton() and torch.version.cuda is not None and architecture(tensors[0].device) >= OLDEST


def architecture(device: torch.device) -> int:
    """Compute capability times ten, such as 90; `INTERPRETER` in the interpreter."""
    if _stand_in is not None:
        return _stand_in
    return _capability(device.index if device.index is not None else torch.cuda.current_device())


def generation(device: torch.device) -> int:
    """The architecture whose tiles fit a device: `INTERPRETER`, 80, 90 or 100, the only ones that tables know.

    Consumer GPUs, that of 12.0 too, have the products of 80 and no more shared memory.
    """
    capability = architecture(device)
    if capability in (INTERPRETER, 90):
        return capability
    return 100 if 100 <= capability < 120 else 80


def multiprocessors(device: torch.device) -> int:
    """How many programs it takes to keep the device busy."""
    if _stand_in is not None:
        return 1 if _stand_in == INTERPRETER else 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Starts a kernel for a grid (none where an axis is 0); inside `compiled_for`, compiles it instead."""
    if _compiled is not None:
        _compiled.append((kernel.fn.__name__, kernel.warmup(*arguments, grid=grid, **options)))
    elif 0 not in grid:
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        # Triton starts a kernel on the current device, whatever device its tensors are on.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[grid](*arguments, **options)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor


@contextmanager
def disabled() -> Iterator[None]:
    """Without the kernels inside the block: for tests and benchmarks."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


@contextmanager
def interpreted() -> Iterator[None]:
    """CPU tensors go through the kernels, in Triton's interpreter, inside the block: for tests.

    Raises:
        RuntimeError: the variable TRITON_INTERPRET was not 1 when Triton was imported, so that there is no interpreter.
    """
    from triton import knobs  # Triton is optional, and slow to import

    if not knobs.runtime.interpret:
        raise RuntimeError("Triton's interpreter is off: set TRITON_INTERPRET=1 before Triton is imported")
    with _standing_in(INTERPRETER):
        yield


@contextmanager
def compiled_for(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Compiles what calls inside the block would launch, for a GPU that need not be here; results are not computed.

    Args:
        capability: compute capability times ten, such as 90.

    Yields:
        The name and the compiled kernel (`asm`, `metadata`) of each launch so far.
    """
    global _compiled
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    before, _compiled = _compiled, []
    try:
        driver.set_active(_NoDevice(GPUTarget("cuda", capability, 32)))
        with _standing_in(capability):
            yield _compiled
    finally:
        _compiled = before
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


@contextmanager
def _standing_in(capability: int) -> Iterator[None]:
    global _stand_in
    before, _stand_in = _stand_in, capability
    try:
        yield
    finally:
        _stand_in = before
