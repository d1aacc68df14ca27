"""A copy for inference, with every codebook stored as the plain table that it amounts to, and so every filter."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

from vqkit.backbones.weight_norm import WeightNormed
from vqkit.quantizers.base import BaseQuantizer
from vqkit.saving.config import Configured, to_config
from vqkit.sharding import refuse_sharded

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def bake(module: Module) -> Module:
    """Copy a module for inference: the same results, bit for bit, from stored tables and filters.

    Codes that are computed at every call (a projector as in "simvq" and "vqgan_lc", the bridge of "fvq") become a plain
    table, filters with weight norm those that they amount to, and what only training needs is left out: losses,
    maintenance and the rule for gradients of every `Quantizer`. The copy is in eval mode, shares no memory with the
    module, and can be saved, exported and compiled as any other. Its quantizers do not train: gradients pass straight
    through to what is before them, and no further.

    Args:
        module: a quantizer, a composite, or a `Tokenizer`; anything of which `to_config` can write the configuration.

    Returns:
        A module of the same class.

    Raises:
        ValueError: the configuration cannot be written, or a module of your own builds a quantizer with derived codes
            where the configuration does not reach it.

    Examples:
        >>> from vqkit import Quantizer
        >>> quantizer = Quantizer("simvq", dim=8, codebook_size=32)
        >>> bake(quantizer).codebook
        FrozenCodebook(codebook_size=32, dim=8, usage_decay=0.99)
    """
    if not (isinstance(module, Configured) and isinstance(module, nn.Module)):
        raise ValueError(
            f"bake got {type(module).__name__}: expected a module whose configuration can be written, such as a "
            "quantizer or a Tokenizer; of another module bake the quantizer, and put the copy in its place"
        )
    refuse_sharded(module, "bake", "save_pretrained it, and bake what from_pretrained gives")
    to_config(module)  # refuses what could not be saved
    # Tables come from the module's own codebooks: products with copied weights may round in another way.
    shared = {id(part.codebook): part.codebook for part in module.modules() if isinstance(part, BaseQuantizer)}
    baked = copy.deepcopy(module, dict(shared))
    strip(baked)
    for name, part in baked.named_modules():
        if isinstance(part, BaseQuantizer) and part.codebook is not None and id(part.codebook) in shared:
            if part.codebook.rows == "derived":
                path = f"{name}.codebook".lstrip(".")
                raise ValueError(
                    f"{path} is a {type(part.codebook).__name__} which {type(module).__name__} builds where its "
                    "configuration does not reach: take that quantizer as an argument, or bake it by itself"
                )
            part.codebook = copy.deepcopy(part.codebook)
    return baked.eval()


def strip(value: Any) -> None:
    """Strip every quantizer and backbone among the arguments that a configuration writes."""
    if isinstance(value, Configured):
        strip(value.recorded_arguments())
    if isinstance(value, WeightNormed):
        value.fold_weight_norm()
    if isinstance(value, BaseQuantizer):
        value.strip_training()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        strip(item)
