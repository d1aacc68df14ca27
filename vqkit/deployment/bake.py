"""A copy for inference, with every codebook stored as the plain table that it amounts to."""

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vqkit.methods import METHODS
from vqkit.parts.codebooks import Codebook, FrozenCodebook
from vqkit.parts.estimators import StraightThrough
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.runtime import autocast_disabled
from vqkit.saving.config import Configured, from_config, resolve_class, to_config, weights_follow
from vqkit.saving.pretrained import match_dtypes

_REPLACED = {"method", "codebook", "estimator", "maintenance"}

Module = TypeVar("Module", bound=nn.Module)


class CascadedTable(FrozenCodebook):
    """A stored table that is read, and another that is searched: what `bake` makes of a cascaded codebook.

    State:
        index_vectors: (K, D) float32 buffer, searched.
        And that of `FrozenCodebook`.
    """

    cascaded = True

    index_vectors: Tensor

    def build_vectors(self, generator: torch.Generator) -> None:
        """Zeros, as buffers; see `Codebook`."""
        super().build_vectors(generator)
        self.register_buffer("index_vectors", torch.zeros_like(self.vectors))

    def search_vectors(self, vectors: Tensor) -> Tensor:
        """The index vectors (K, D)."""
        return self.index_vectors

    @torch.no_grad()
    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        """Put k-means centres of `samples` (M, D) into both tables; see `Codebook`."""
        super().initialize(samples, vectors_per_step=vectors_per_step, seed=seed)
        self.index_vectors.copy_(self.vectors)


@torch.no_grad()
def bake(module: Module) -> Module:
    """Copy a module for inference: the same indices and vectors, bit for bit, from stored tables.

    Codes that are computed at every call (a projector as in "simvq" and "vqgan_lc", the bridge of "fvq") become a plain
    table, and what only training needs is left out: losses, maintenance and the rule for gradients of every
    `Quantizer`. The copy is in eval mode, shares no memory with the module, and can be saved, exported and compiled as
    any other. It does not train: gradients pass straight through to what is before it, and no further.

    Args:
        module: a quantizer, a composite, or a `Tokenizer`; anything of which `to_config` can write the configuration.

    Returns:
        A module of the same class.

    Raises:
        ValueError: the configuration cannot be written, or a module of your own builds a quantizer with derived codes
            where the configuration does not reach it.

    Example:
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
    config = to_config(module)
    allow = sorted({path.partition(".")[0] for path in _class_paths(config)})
    with weights_follow():
        copy = from_config(_rewritten(config, allow), allow=allow)
    state = module.state_dict()
    for name, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, Quantizer):
            baked = copy.get_submodule(name).codebook
            if isinstance(baked, FrozenCodebook):
                _store(state, f"{name}.codebook.".lstrip("."), part.codebook)
            elif part.codebook.rows == "derived":
                raise ValueError(
                    f"{name}.codebook is a {type(part.codebook).__name__} which {type(module).__name__} builds where "
                    "its configuration does not reach: take that quantizer as an argument, or bake it by itself"
                )
    match_dtypes(copy, state)
    copy.load_state_dict(state)
    device = next((value.device for value in state.values()), torch.device("cpu"))
    return copy.to(device).eval()


def _store(state: dict[str, Tensor], prefix: str, codebook: Codebook) -> None:
    """Put the state of a table in the place of the state of a codebook."""
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]
    with autocast_disabled(codebook.usage.device):
        state[f"{prefix}vectors"] = vectors = codebook()
    if codebook.cascaded:
        state[f"{prefix}index_vectors"] = codebook.search_vectors(vectors)
    state[f"{prefix}usage"] = codebook.usage
    state[f"{prefix}pending_counts"] = torch.zeros_like(codebook.usage)
    state[f"{prefix}_extra_state"] = codebook.get_extra_state() * torch.tensor([1, 1, 0])  # nothing is pending


def _rewritten(value: Any, allow: Sequence[str]) -> Any:
    """A configuration in which every `Quantizer` has tables and nothing for training."""
    if isinstance(value, list):
        return [_rewritten(item, allow) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: _rewritten(item, allow) for key, item in value.items()}
    mark = next((mark for mark in ("class_path", "factory") if mark in value), None)
    if mark is not None:
        built = resolve_class(value[mark], allow=allow)
        taken = inspect.signature(built).parameters.keys()
        arguments: dict[str, Any] = value.get("init_args", {})
        straight_through = {"class_path": _path(StraightThrough)}
        if issubclass(built, BaseQuantizer) and "losses" in taken:
            value["init_args"] = arguments = arguments | {"losses": []}
        if issubclass(built, Quantizer) and taken >= _REPLACED:
            method = arguments.get("method", *value.get("args", ["vq"])[:1])
            table = {"factory": _path(_table(method, arguments.get("codebook"), allow))}
            value["init_args"] = arguments | {"codebook": table, "estimator": straight_through, "maintenance": []}
        elif issubclass(built, BaseQuantizer) and arguments.get("estimator") is not None:
            value["init_args"] = arguments | {"estimator": straight_through}  # that of a sum, which may train codes
    return value


def _table(method: str, codebook: dict[str, Any] | None, allow: Sequence[str]) -> type[FrozenCodebook]:
    factory = METHODS[method]().codebook if codebook is None else resolve_class(codebook["factory"], allow=allow)
    return CascadedTable if getattr(factory, "cascaded", False) else FrozenCodebook


def _path(part: type) -> str:
    return f"{part.__module__}.{part.__name__}"


def _class_paths(value: Any) -> Iterator[str]:
    """Every class that a configuration names."""
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else ():
        yield from _class_paths(item)
    if isinstance(value, dict):
        yield from (value[mark] for mark in ("class_path", "factory") if mark in value)
