"""How torch runs the code around a call, and what kind of tensor it is given."""

import contextlib
import os
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

READ_WITHOUT_WAITING = ("cpu",)
"""Devices whose values the host can read at no cost."""

Function = TypeVar("Function", bound=Callable)


def autocast_disabled(device: torch.device) -> AbstractContextManager[None]:
    """Context in which no operation on `device` is autocast: searches, losses and statistics run in what they are
    given.
    """
    # What is traced may run under autocast later; elsewhere there is nothing to leave where none is on.
    if device.type == "meta" or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(device.type)):
        return nullcontext()
    return torch.autocast(device_type=device.type, enabled=False)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Context in which a module is in eval mode; behind it, each part of it is in the mode that it had."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def recomputing() -> bool:
    """Whether this forward is a recomputation of activation checkpointing, which must not count a batch twice.

    Only a recomputation runs a forward inside a backward pass. Always False while tracing.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def inside_autograd_function() -> bool:
    """Whether this forward runs in that of an autograd function, as under `checkpoint(use_reentrant=True)`: without
    gradients, and with them once more in the backward, where it does not count.

    There torch switches forward-mode derivatives off, too, which `torch.no_grad()` leaves on. Always False while
    tracing.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return False
    return not torch._C._is_fwd_grad_enabled()


def transformed() -> bool:
    """Whether a transform of `torch.func` (grad, vmap, jvp, ...) is at work. Always False while tracing."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line that called the library: the first outside of it and of torch, whose decorators and
    `Module.__call__` lie in between.
    """
    packages = (str(Path(module).parent) + os.sep for module in (__file__, torch.__file__))
    inside = (*packages, contextlib.__file__)
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def uncompiled(function: Function) -> Function:
    """Decorator: torch.compile calls the function as it is, and does not trace it.

    `torch.compiler.disable` does the same and loads the compiler at once, which takes longer than all of vqkit; this
    form loads it with the first call.
    """
    return cast(Function, torch._disable_dynamo(function))


class ForwardNumbers:
    """Numbers of training forwards, which a recomputation finds again, also where others ran in between.

    It gets the number of that forward among the last 64 whose vectors had nearly the same sums, of equal ones that of
    the last. The host reads none.
    """

    def __init__(self) -> None:
        self._seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=64)

    @uncompiled  # Python numbers, on which a compiler would specialise anew at every step
    def find(self, vectors: Tensor, number: int) -> Tensor:
        """() int64: `number`, or in a recomputation that of the forward which it repeats.

        Args:
            vectors: what the forward was given.
            number: of this forward, where it repeats none.
        """
        flat = vectors.detach().flatten()
        pieces = max(min(len(flat), 64), 1)
        sums = flat[: len(flat) // pieces * pieces].view(pieces, -1).sum(1).nan_to_num()
        own = torch.full((), number, device=sums.device)
        if not recomputing():
            self._seen.append((own, sums))
        like = (sums.shape, sums.device)
        seen = [(known, other) for known, other in reversed(self._seen) if (other.shape, other.device) == like]
        if not recomputing() or not seen:
            return own
        distances = torch.stack([other - sums for _, other in seen]).abs().sum(1)
        return torch.stack([known for known, _ in seen]).index_select(0, distances.argmin()).squeeze(0)


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


def fits_squares(vectors: Tensor) -> Tensor:
    """() bool, whether the sum of all squares is finite, and with it each number and each squared length of a vector.

    What is not may still be finite, and so many or large that the sum alone overflows.
    """
    numbers = vectors.detach()
    if not numbers.is_contiguous():
        return torch.linalg.vector_norm(numbers) < torch.inf
    flat = numbers.view(-1)
    return torch.dot(flat, flat) < torch.inf  # on all threads, unlike the norm


def check_plain(name: str, tensor: Tensor, device: torch.device | None = None) -> None:
    """Refuse what is no tensor, or one that does not hold its numbers one by one; looks at nothing while tracing.

    Args:
        name: what the caller calls it.
        tensor: whatever a user gave.
        device: where it has to be; None for anywhere.

    Raises:
        ValueError: not a tensor; sparse, nested, distributed, with names, or elsewhere.
    """
    if torch.compiler.is_compiling():
        return
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {kind}: expected a torch.Tensor; use torch.as_tensor({name})")
    if tensor.is_nested:
        raise ValueError(f"{name} is nested: expected one size for all; use {name}.to_padded_tensor(0.0), and a mask")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has the layout {tensor.layout}: expected torch.strided; use {name}.to_dense()")
    if hasattr(tensor, "to_local"):
        raise ValueError(f"{name} is a {kind}, a part on each rank: expected a torch.Tensor; use {name}.to_local()")
    if tensor.has_names():
        raise ValueError(f"{name} has the names {tensor.names}: expected none; use {name}.rename(None)")
    if device is not None and tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}: expected {device}, where the module is; use {name}.to({str(device)!r})"
        )
