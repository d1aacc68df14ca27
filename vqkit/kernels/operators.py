"""Registration of the operators: what tracers take whole, so that they see neither tiles nor global flags.

`torch.library.custom_op` does the same and loads torch's compiler, a second and a half of every import.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vqkit.runtime import transformed

_LIBRARY = torch.library.Library("vqkit", "FRAGMENT")
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers a function as `torch.ops.vqkit.<name>`, on every device and without a gradient.

    Args:
        name: of the operator.
        fake: gives empty tensors of the shapes and dtypes of the results, from the same arguments, of which the last
            may be left out.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vqkit::{name}", fake, lib=_LIBRARY)
        return function

    return register


def gradient(name: str, *wanted: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: makes a function the gradient of an operator, itself an operator `<name>_backward` that has none.

    The function takes the upstream gradients, then the arguments of the operator, and returns the gradients to those of
    them that are `wanted`, each of the shape and dtype of its argument.

    Args:
        name: of the operator.
        wanted: names of tensor arguments.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(function).parameters)
        places = [names.index(argument) for argument in wanted]

        def fake(*arguments: Any) -> Any:
            gradients = tuple(torch.empty_like(arguments[p], memory_format=torch.contiguous_format) for p in places)
            return gradients if len(gradients) > 1 else gradients[0]

        def keep(ctx, inputs: tuple, output: Any) -> None:  # type: ignore[no-untyped-def]
            ctx.save_for_backward(*(entry if isinstance(entry, Tensor) else None for entry in inputs))
            ctx.others = [None if isinstance(entry, Tensor) else entry for entry in inputs]

        def pull_back(ctx, *upstream: Tensor) -> tuple:  # type: ignore[no-untyped-def]
            pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
            inputs = [other if tensor is None else tensor for tensor, other in pairs]
            found = call(f"{name}_backward", *upstream, *inputs)
            result: list[Tensor | None] = [None] * len(inputs)
            for place, value in zip(places, found if len(places) > 1 else (found,), strict=True):
                result[place - len(upstream)] = value
            return tuple(result)

        def keep_nothing(ctx, inputs: tuple, output: Any) -> None:  # type: ignore[no-untyped-def]
            pass

        def refuse(*arguments: Any) -> None:
            raise RuntimeError(f"vqkit::{name} has no second derivative; detach its gradient.")

        operator(f"{name}_backward", fake)(function)
        torch.library.register_autograd(f"vqkit::{name}", pull_back, setup_context=keep, lib=_LIBRARY)
        torch.library.register_autograd(f"vqkit::{name}_backward", refuse, lib=_LIBRARY)
        batched(name)
        batched(f"{name}_backward")
        _FUNCTIONS[name] = _function(name, keep, pull_back)
        _FUNCTIONS[f"{name}_backward"] = _function(f"{name}_backward", keep_nothing, refuse)
        return function

    return register


def call(name: str, *arguments: Any) -> Any:
    """`torch.ops.vqkit.<name>`, under `torch.func.grad` and its kin too, which torch's own registration does not serve.

    Args:
        name: of an operator that has a gradient, or is one.
        arguments: of the operator.
    """
    if transformed():
        return _FUNCTIONS[name].apply(*arguments)
    return getattr(torch.ops.vqkit, name)(*arguments)


def _function(name: str, keep: Callable[..., None], pull_back: Callable[..., Any]) -> type[torch.autograd.Function]:
    """An operator in the form that `torch.func` takes; its parts are those of `torch.library.register_autograd`."""
    parts = {"forward": getattr(torch.ops.vqkit, name), "setup_context": keep, "backward": pull_back}
    namespace = {part: staticmethod(function) for part, function in parts.items()} | {"generate_vmap_rule": True}
    return type(name, (torch.autograd.Function,), namespace)


def batched(name: str, rule: Callable[..., Any] | None = None) -> None:
    """Gives an operator its rule for `torch.vmap`, as `torch.library.register_vmap` describes it.

    Args:
        name: of the operator.
        rule: None for a call for each entry of the batch.
    """
    rule = rule or partial(_one_by_one, getattr(torch.ops.vqkit, name))
    torch.library.register_vmap(f"vqkit::{name}", rule, lib=_LIBRARY)


def _one_by_one(operator: Callable[..., Any], info: Any, in_dims: tuple, *arguments: Any) -> tuple[Any, Any]:
    def entry(argument: Any, dim: Any, number: int) -> Any:
        if isinstance(argument, Tensor):
            return argument if dim is None else argument.select(dim, number)
        tensors = isinstance(argument, list | tuple) and dim is not None
        return [entry(*pair, number) for pair in zip(argument, dim, strict=True)] if tensors else argument

    pairs = list(zip(arguments, in_dims, strict=True))
    found = [operator(*(entry(*pair, number) for pair in pairs)) for number in range(info.batch_size)]
    if isinstance(found[0], Tensor):
        return torch.stack(found), 0
    return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])
