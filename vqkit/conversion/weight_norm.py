"""Convolutions of published sound models, with weight norm under either of its names in torch, or folded.

Weight norm writes a filter v g / |v|, with g trained beside v (Salimans, Kingma 2016,
https://arxiv.org/abs/1602.07868). In published models |v| is over all axes but the first. That is the axis of the
outputs of a convolution and, since torch stores them the other way round, of the inputs of a transposed one; ours have
a g for each output in both. So the parameters of convolutions are taken over as they are, with the scale of v, on which
the steps of further training depend; those of transposed ones are made of the filters that g and v give.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from vqkit.backbones.temporal import FilterLayer
from vqkit.backbones.weight_norm import PlainFilters
from vqkit.conversion.family import Entry, joined
from vqkit.conversion.source import Source

NAMES = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""Of g and v: by `torch.nn.utils.weight_norm`, and by its successor in `parametrizations`."""
PUBLISHED_AXIS = 0
"""Which has a g for each of its places."""


def filter_entries(source: Source, target: str, layer: nn.Module, name: str) -> Iterator[Entry]:
    """What weight and bias of a layer are taken from.

    Args:
        source: the weights.
        target: name of the layer in the tokenizer's state.
        layer: a convolution of `vqkit.backbones.temporal` or of torch, with weight norm of its outputs or without; or a
            linear map, which is published as a convolution of one tap.
        name: of the published layer, without ".weight" and so on.

    Yields:
        One or two entries for the weight, and one for the bias if the layer has one. A filter of length 0, folded or
        because its g or v is 0, has g = 0 and a v of ones, so that nothing is divided by 0.
    """
    if isinstance(layer, FilterLayer):
        target, layer = f"{target}.convolution", layer.convolution
    assert isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Linear)
    if is_parametrized(layer, "weight"):
        norm: Any = layer.get_submodule("parametrizations.weight")
        g, v = (f"{target}.{part}" for part in NAMES[1])
        yield from _normed(source, g, v, tuple(norm.original1.shape), norm[0].dim, name)
    else:
        shape = tuple(layer.weight.shape)
        shape = (*shape, 1) if isinstance(layer, nn.Linear) else shape
        yield Entry(f"{target}.weight", _sources(source, name, shape), folded)
    if layer.bias is not None:
        yield Entry(f"{target}.bias", {f"{name}.bias": tuple(layer.bias.shape)})


def normalization_of(source: Source, part: str) -> type[PlainFilters] | None:
    """The `normalization` of the encoder or decoder of this name: None, which is weight norm, if a layer in it has a g.

    Trained further, a model whose file holds filters alone is one without weight norm.
    """
    normed = any(name.startswith(f"{part}.") and name.endswith(tuple(g for g, _ in NAMES)) for name in source.state)
    return None if normed else PlainFilters


def filter_shape(source: Source, name: str) -> tuple[int, ...]:
    """The shape of a published layer's filters, (outputs, inputs, taps) of a convolution.

    Raises:
        ValueError: there are none, or they have another number of axes.
    """
    names = [f"{name}.{v}" for _, v in NAMES]
    return source.shape(next((v for v in names if v in source), f"{name}.weight"), 3)


def folded(*parts: Tensor) -> Tensor:
    """The filters of a published layer: its weight, or v g / |v| of (g, v), where 0 / 0 is 0."""
    if len(parts) == 1:
        return parts[0]
    g, v = (part.double() for part in parts)
    length = _length(v, PUBLISHED_AXIS)
    return (v * torch.where(length > 0, g / length, 0)).float()


def _normed(source: Source, g: str, v: str, shape: tuple[int, ...], axis: int, name: str) -> Iterator[Entry]:
    """Length and direction of the filters of a layer that has a length for each place of `axis`."""
    sources = _sources(source, name, shape)
    if len(sources) == 2 and axis == PUBLISHED_AXIS:
        yield Entry(g, sources, lambda g, v: torch.where(_length(v, axis) > 0, g, 0))
        yield Entry(v, dict(list(sources.items())[1:]), _direction(axis, joined))
    else:
        yield Entry(g, sources, lambda *parts: _length(folded(*parts).double(), axis).float())
        yield Entry(v, sources, _direction(axis, folded))


def _direction(axis: int, filters: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`filters`, and ones in place of those that are 0 and have no direction."""

    def combine(*parts: Tensor) -> Tensor:
        made = filters(*parts)
        return torch.where(_length(made, axis) > 0, made, 1)

    return combine


def _length(filters: Tensor, axis: int) -> Tensor:
    return torch.linalg.vector_norm(filters, dim=[d for d in range(filters.ndim) if d != axis], keepdim=True)


def _sources(source: Source, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of g and v, or of the folded weight where the file has no g of this layer."""
    for g, v in NAMES:
        if f"{name}.{g}" in source:
            return {f"{name}.{g}": (shape[0], *(1,) * (len(shape) - 1)), f"{name}.{v}": shape}
    return {f"{name}.weight": shape}
