"""How torch runs the code around a call: autocast, recomputation and its compiler."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar, cast

import torch
from torch import Tensor

READ_WITHOUT_WAITING = ("cpu",)
"""Devices whose values the host can read at no cost."""

Function = TypeVar("Function", bound=Callable)


def autocast_disabled(device: torch.device) -> AbstractContextManager[None]:
    """Context in which no operation on `device` is autocast: searches, losses and statistics run in what they are
    given.
    """
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


def recomputing() -> bool:
    """Whether this forward is a recomputation of activation checkpointing, which must not count a batch twice.

    Only a recomputation runs a forward inside a backward pass. Always False while tracing.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def transformed() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, jvp, ...) is at work. Always False while tracing."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def uncompiled(function: Function) -> Function:
    """Decorator: torch.compile calls the function as it is, and does not trace it.

    `torch.compiler.disable` does the same and loads the compiler at once, which takes longer than all of vqkit; this
    form loads it with the first call.
    """
    return cast(Function, torch._disable_dynamo(function))


def known(condition: Callable[[], Tensor], device: torch.device) -> bool:
    """Whether a condition () holds and the host can know it at no cost: always False on a GPU and while tracing.

    What has to be masked elsewhere can then be left as it is: no copy is made, and none that autograd has to keep.

    Args:
        condition: computes it, on `device`; not called where the answer is False anyway.
        device: where it is.
    """
    if device.type not in READ_WITHOUT_WAITING or torch.compiler.is_compiling():
        return False
    try:
        return bool(condition())
    except RuntimeError:  # transforms such as vmap hold no values
        return False
