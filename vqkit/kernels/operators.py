"""Registration of the operators: what tracers take whole, so that they see neither tiles nor global flags.

`torch.library.custom_op` does the same and loads torch's compiler, a second and a half of every import.
"""

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("vqkit", "FRAGMENT")


def operator(name: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers a function as `torch.ops.vqkit.<name>`, on every device and without a gradient.

    Args:
        name: of the operator.
        fake: gives empty tensors of the shapes and dtypes of the results, from the same arguments.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"vqkit::{name}", fake, lib=_LIBRARY)
        return function

    return register


def differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
    """Gives an operator its gradient, as `torch.library.register_autograd` describes it, and no second one.

    Args:
        name: of the operator; that of its gradient is `<name>_backward`.
        backward: from the context and the upstream gradients to those of the arguments.
        setup_context: what the context keeps of a call.
    """

    def refuse(*arguments: Any) -> None:
        raise RuntimeError(f"vqkit::{name} has no second derivative; detach its gradient.")

    torch.library.register_autograd(f"vqkit::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    torch.library.register_autograd(f"vqkit::{name}_backward", refuse, lib=_LIBRARY)


def batched(name: str, rule: Callable[..., Any]) -> None:
    """Gives an operator its rule for `torch.vmap`, as `torch.library.register_vmap` describes it."""
    torch.library.register_vmap(f"vqkit::{name}", rule, lib=_LIBRARY)
