"""Parts of a tokenizer by their names, and those that stay as they are while the rest trains."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from vqkit import BaseQuantizer, Tokenizer
from vqkit.parts.losses import Penalty
from vqkit.quantizers.composite import CompositeQuantizer


def named_parts(tokenizer: Tokenizer, names: Sequence[str], *, argument: str) -> dict[str, nn.Module]:
    """Parts of a tokenizer by their dotted names, such as `decoder` or `decoder.layers.0`.

    Args:
        tokenizer: that has them.
        names: of modules in it, at any depth.
        argument: that asks, for the message.

    Raises:
        ValueError: there is no such part; the message names those that there are.
    """
    parts: dict[str, nn.Module] = {}
    for name in names:
        part, where = cast(nn.Module, tokenizer), "tokenizer"
        for step in name.split("."):
            inner = dict(part.named_children())
            if step not in inner:
                known = ", ".join(inner) or "none"
                raise ValueError(f"{argument}={list(names)}: {where} has no part {step!r}; its parts are {known}")
            part, where = inner[step], f"{where}.{step}"
        parts[name] = part
    return parts


def freeze_parts(tokenizer: Tokenizer, names: Sequence[str]) -> None:
    """Give parts no gradients; `rest_parts` does what else keeps them as they are, to the last bit.

    Args:
        tokenizer: that has them.
        names: see `named_parts`.

    Raises:
        ValueError: there is no such part, it moves with another one, or nothing is left to train.
    """
    for name, part in named_parts(tokenizer, names, argument="freeze").items():
        if (owner := _moves_with(tokenizer, name, part)) is not None:
            raise ValueError(f"freeze={list(names)}: {name} moves with {owner}; freeze {owner}, the whole of it")
        part.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in tokenizer.parameters()):
        sizes = {name: sum(map(Tensor.numel, part.parameters())) for name, part in tokenizer.named_children()}
        there = ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in sizes.items())
        raise ValueError(f"freeze={list(names)} leaves no parameters to train of {there}: name less")


def _moves_with(tokenizer: Tokenizer, name: str, part: nn.Module) -> str | None:
    """What else than an optimizer moves a part: the quantizer of single vectors that it belongs to, which folds
    statistics and restarts codes. The maps of a composite are its optimizer's alone.
    """
    if any(isinstance(inner, BaseQuantizer) for inner in part.modules()):
        return None
    owners = [name.rsplit(".", count)[0] for count in range(1, name.count(".") + 1)]
    quantizers = (owner for owner in owners if isinstance(tokenizer.get_submodule(owner), BaseQuantizer))
    owner = next(quantizers, None)  # the innermost comes first
    return None if owner is None or isinstance(tokenizer.get_submodule(owner), CompositeQuantizer) else owner


def rest_parts(tokenizer: Tokenizer, names: Sequence[str], *, training: bool) -> None:
    """Put frozen parts into eval mode: no dropout, no statistics of norms and codes, no restarts.

    Args:
        tokenizer: that has them.
        names: what is frozen.
        training: mode of the rest, which their penalties share: they have no state, but an entropy that is summed over
            ranks in training alone.
    """
    for part in named_parts(tokenizer, names, argument="freeze").values():
        part.eval()
        for inner in part.modules():
            if isinstance(inner, Penalty):
                inner.train(training)
