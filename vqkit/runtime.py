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


def uncompiled(function: Function) -> Function:
    """Decorator: torch.compile calls the function as it is, and does not trace it.

    `torch.compiler.disable` does the same and loads the compiler at once, which takes longer than all of vqkit; this
    form loads it with the first call.
    """
    return cast(Function, torch._disable_dynamo(function))


def keep_valid(vectors: Tensor, valid: Tensor) -> Tensor:
    """`vectors` (..., D) where `valid` (...), and 0 elsewhere.

    On a CPU the vectors themselves come back where all are valid: no copy, and none that autograd has to keep. On other
    devices to ask would mean to wait.
    """
    if valid.device.type in READ_WITHOUT_WAITING and not torch.compiler.is_compiling():
        try:
            if bool(valid.all()):
                return vectors
        except RuntimeError:  # transforms such as vmap hold no values
            pass
    return torch.where(valid.unsqueeze(-1), vectors, 0)
