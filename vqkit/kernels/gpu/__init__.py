"""The fused kernels for NVIDIA GPUs, in Triton: which tensors they take, and how they start.

Nothing needs them: where Triton or the GPU is missing, the torch engine gives the same. What the kernels know of a
device they ask here: a stand-in for a GPU replaces `DEVICES`, `device_refusal`, `architecture`, `multiprocessors`,
`is_verified` and `launch` (`tests/kernels/stand_ins.py`).
"""

import json
from contextlib import nullcontext
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

OLDEST = 80  # compute capability, times ten, of the first GPU with bfloat16 products
INTERPRETER = 0  # stands for the compute capability of Triton's interpreter
DEVICES: tuple[str, ...] = ("cuda",)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
VERIFIED = Path(__file__).with_name("verified.json")  # `make gpu` alone writes it


def refusal(*tensors: Tensor) -> str:
    """Why the kernels do not take these tensors, which are on one device; "" where they do."""
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            return f"the fused kernels take float32, float16 and bfloat16, not {tensor.dtype}"
    return device_refusal(tensors[0].device)


def device_refusal(device: torch.device) -> str:
    """Why the kernels do not run on a device; "" where they do."""
    if device.type not in DEVICES:
        return f"the fused kernels run on NVIDIA GPUs, not on {device.type}"
    if torch.version.cuda is None:
        return "this torch is not built for NVIDIA GPUs"
    if not _has_triton():
        return "Triton is not installed; `pip install triton` installs it"
    if architecture(device) < OLDEST:
        return f"sm_{architecture(device)} has no bfloat16 products, which begin with sm_{OLDEST}"
    return ""


def architecture(device: torch.device) -> int:
    """Compute capability times ten, such as 90; `INTERPRETER` in the interpreter."""
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
    return torch.cuda.get_device_properties(device).multi_processor_count


def describe(device: torch.device) -> str:
    """What kernels are verified for: "sm_90 with Triton 3.6.0"."""
    return f"sm_{architecture(device)} with Triton {_triton_version()}"


def is_verified(device: torch.device) -> bool:
    """Whether the tests of the kernels have passed on such a GPU with this version of Triton."""
    return (architecture(device), _triton_version()) in _verified()


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Starts a kernel for a grid (none where an axis is 0)."""
    if 0 not in grid:
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        # Triton starts a kernel on the current device, whatever device its tensors are on.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[grid](*arguments, **options)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _triton_version() -> str:
    return version("triton")


@cache
def _verified() -> frozenset[tuple[int, str]]:
    return frozenset((pair["capability"], pair["triton"]) for pair in json.loads(VERIFIED.read_text()))


@cache
def _capability(index: int) -> int:
    major, minor = torch.cuda.get_device_capability(index)
    return 10 * major + minor
