"""Modules that PyTorch's `fully_shard` has spread over ranks: what reads their weights, and what must not write them.

Only `forward` gathers such weights by itself. What reads them elsewhere does so here; all ranks have to call it.
"""

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Module = TypeVar("Module", bound=nn.Module)
Method = Callable[Concatenate[Module, Arguments], Result]


def is_sharded(module: nn.Module) -> bool:
    """Whether the weights of a module, or of one in it, are spread over ranks."""
    # Parts without weights may belong to several models, of which another one is sharded.
    return any("_is_fsdp_managed_module" in vars(part) for part in module.modules() if part._parameters)


def refuse_sharded(module: nn.Module, call: str, fix: str) -> None:
    """Refuse what would be lost with the gathered weights, or needs a module that is whole.

    Raises:
        ValueError: the weights are spread over ranks.
    """
    if is_sharded(module):
        raise ValueError(f"{call}: the weights of this {type(module).__name__} are spread over ranks; {fix}")


def own_class(cls: type) -> type:
    """A class, of the one that `fully_shard` derives from it and gives to its objects."""
    _, *bases = cls.__mro__
    return bases[1] if f"{bases[0].__module__}.{bases[0].__name__}" == "torch.distributed.fsdp.FSDPModule" else cls


def gathered(tensor: Tensor) -> Tensor:
    """A tensor that is whole, of one that may be spread over ranks."""
    return cast(Tensor, tensor.full_tensor()) if hasattr(tensor, "full_tensor") else tensor


def with_whole_weights(method: Method[Module, Arguments, Result]) -> Method[Module, Arguments, Result]:
    """Decorator for methods that read the weights of a module, and call no module in it that is sharded by itself."""

    @functools.wraps(method)
    def run(self: Module, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        if alone or torch.compiler.is_compiling() or not is_sharded(self):
            return method(self, *args, **kwargs)
        own = {f"module.{name}": value for name, value in self.named_parameters() if hasattr(value, "full_tensor")}
        whole = {name: gathered(value) for name, value in own.items()}
        call = functools.partial(method, self, *args, **kwargs)
        return cast(Result, torch.func.functional_call(_Holder(self), whole, (call,)))

    return run


class _Holder(nn.Module):
    """Calls something while `functional_call` has put other weights into a module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[[], Result]) -> Result:
        return call()


def as_forward(method: Method[Module, Arguments, Result]) -> Method[Module, Arguments, Result]:
    """Decorator for methods that call modules which may be sharded by themselves: gathers weights as `forward` does.

    Afterwards the weights are spread again, so that none of before an optimizer step are left for after it.
    """

    @functools.wraps(method)
    def run(self: Module, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling() or "_is_fsdp_managed_module" not in vars(self) or "_gathers" in vars(self):
            return method(self, *args, **kwargs)
        from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

        if not isinstance(self, FSDPModule):
            refuse_sharded(self, "encode and decode", "give it to fully_shard by itself, too")
        sharded = cast(Any, self)
        sharded._gathers = lambda *given, **named: method(self, *given, **named)
        register_fsdp_forward_method(self, "_gathers")
        try:
            return cast(Result, sharded._gathers(*args, **kwargs))
        finally:
            del sharded._gathers
            sharded.reshard()

    return run
