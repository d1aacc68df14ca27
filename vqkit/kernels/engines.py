"""Which engine runs a call. Every operator asks here, once per call; nothing else decides.

    torch     tiles and blocks of rows in plain torch: every device, every floating point dtype
    native    the compiled search for CPUs, where it was built
    triton    the fused kernels for NVIDIA GPUs

Without `impl` a CPU takes the compiled search where that takes the call, and a GPU the fused kernels where they take it
and may be trusted: where `gpu/verified.json` has the pair of compute capability and Triton version, or where the
environment variable VQKIT_FUSED is 1 and the kernels agree with the torch engine on a small problem. Everything else
runs in torch.
"""

import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vqkit.kernels import gpu

Impl = Literal["torch", "native", "triton"]

SWITCH = "VQKIT_FUSED"


class Choice(NamedTuple):
    """An engine, "torch", "native" or "triton", and why it runs the call."""

    engine: str
    reason: str


COMPILED = Choice("native", "the compiled search for this processor")
NOT_COMPILED = Choice(
    "torch",
    "the compiled search is not built, or does not take such inputs; `python -m vqkit.kernels.native` builds it",
)
ASKED = {engine: Choice(engine, f"asked for by impl={engine!r}") for engine in ("torch", "native", "triton")}


def fits() -> str:
    """The fused kernels have a form for the call."""
    return ""


def choose(
    family: str,
    tensors: tuple[Tensor, ...],
    impl: str | None,
    *,
    compiled: bool = False,
    unfit: Callable[[], str] = fits,
) -> Choice:
    """The engine for a call.

    Args:
        family: "nearest", "residual", "statistics" or "soft": what the check on first use compares.
        tensors: the inputs, on one device.
        impl: the engine that the caller asks for, or None.
        compiled: whether the compiled search takes the call.
        unfit: why the fused kernels do not take it, "" where they do. Asked only where a GPU could run it.

    Raises:
        ValueError: there is no engine `impl`, or it cannot run the call.
    """
    if impl is not None:
        return _asked(family, tensors, impl, compiled, unfit)
    if compiled:
        return COMPILED
    if tensors[0].device.type not in gpu.DEVICES:
        return NOT_COMPILED
    device = tensors[0].device
    refusal = gpu.refusal(*tensors) or unfit() or _distrust(family, device)
    if refusal:
        return Choice("torch", refusal)
    trusted = f"verified for {gpu.describe(device)}" if gpu.is_verified(device) else f"asked for by {SWITCH}=1, checked"
    return Choice("triton", trusted)


def _asked(family: str, tensors: tuple[Tensor, ...], impl: str, compiled: bool, unfit: Callable[[], str]) -> Choice:
    if impl not in ASKED:
        raise ValueError(f"impl is {impl!r}, expected 'torch', 'native', 'triton' or None; None takes the best.")
    refusal = ""
    if impl == "native" and not compiled:
        refusal = NOT_COMPILED.reason
    elif impl == "triton":
        device = tensors[0].device
        refusal = gpu.refusal(*tensors) or unfit() or ("" if gpu.is_verified(device) else differences(family, device))
    if refusal:
        raise ValueError(f"impl is {impl!r}, which cannot run this call: {refusal}. Pass None or 'torch'.")
    return ASKED[impl]


def _distrust(family: str, device: torch.device) -> str:
    """Why fused kernels that take a call are not to run it; "" where they are."""
    if gpu.is_verified(device):
        return ""
    if os.environ.get(SWITCH) != "1":
        return f"the fused kernels are not verified for {gpu.describe(device)}; set {SWITCH}=1 to use them"
    return differences(family, device)


@cache
def differences(family: str, device: torch.device) -> str:
    """What the fused kernels of a family give otherwise than the torch engine on a device, "" if nothing.

    Asked on first use there, with a warning where they differ; it waits for the device.
    """
    from vqkit.kernels.gpu import self_check  # Triton is optional, and slow to import

    try:
        found = self_check.CHECKS[family](device)
    except Exception as error:  # whatever goes wrong in the compiler, the call itself can be run
        found = f"{type(error).__name__}: {error}"
    if not found:
        return ""
    text = f"the fused kernels differ from the torch engine on {gpu.describe(device)}: {found}"
    warnings.warn(f"{text}; the torch engine is taken instead. Please report this.")
    return text
