"""Convolutions with weight norm under both names, and without, as layers of ours with the same filters."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vqkit.backbones.temporal import Convolution1d, Deconvolution1d
from vqkit.conversion.source import Source
from vqkit.conversion.weight_norm import filter_entries

ROUNDING = 3e-7
"""g and v of ours are rounded to float32 once more, 2^-24 each of numbers up to 2."""


def old(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


NAMINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_g": old,
    "parametrizations": nn.utils.parametrizations.weight_norm,
    "folded": lambda layer: layer,
}
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "convolution": (lambda: nn.Conv1d(3, 4, 5), lambda: Convolution1d(3, 4, 5, causal=True)),
    "transposed": (
        lambda: nn.ConvTranspose1d(3, 4, 6, stride=3),
        lambda: Deconvolution1d(3, 4, 6, stride=3, causal=True),
    ),
    "without weight norm": (lambda: nn.Conv1d(3, 4, 5), lambda: nn.Conv1d(3, 4, 5)),
    "grouped": (lambda: nn.Conv1d(4, 4, 5, groups=4, bias=False), lambda: nn.Conv1d(4, 4, 5, groups=4, bias=False)),
    "linear": (lambda: nn.Conv1d(3, 4, 1), lambda: nn.Linear(3, 4)),
}


def released(layer: Callable[[], nn.Module], naming: str) -> nn.Module:
    torch.manual_seed(0)
    made = NAMINGS[naming](layer())
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.2, 2.0)  # so that g is not |v|
    return made


def read(state: dict[str, Tensor], layer: nn.Module) -> dict[str, Tensor]:
    source = Source(Path("none"), {f"their.{name}": value for name, value in state.items()}, {}, None)
    entries = list(filter_entries(source, "our", layer, "their"))
    assert {name for entry in entries for name in entry.sources} == source.state.keys()
    for _, sources, _ in entries:
        assert all(tuple(source.state[name].shape) == shape for name, shape in sources.items())
    found = {entry.target: entry.combine(*(source.state[name] for name in entry.sources)) for entry in entries}
    shapes = {f"our.{name}": value.shape for name, value in layer.state_dict().items()}
    assert found.keys() == shapes.keys()
    return {name.removeprefix("our."): value.reshape(shapes[name]) for name, value in found.items()}


def filters(layer: nn.Module) -> Tensor:
    """As they are applied, in float64."""
    inner = layer if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d | nn.Linear) else layer.convolution
    for hook in inner._forward_pre_hooks.values():  # by which the older form sets its weight
        hook(inner, ())
    return inner.weight.detach()


@pytest.mark.parametrize("naming", NAMINGS)
@pytest.mark.parametrize("kind", LAYERS)
def test_filters_are_those_of_torch(kind: str, naming: str) -> None:
    theirs, ours = released(LAYERS[kind][0], naming), LAYERS[kind][1]()
    ours.load_state_dict(read(theirs.state_dict(), ours))
    expected = filters(theirs.double())
    torch.testing.assert_close(filters(ours.double()).reshape(expected.shape), expected, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("naming", ["weight_g", "parametrizations"])
def test_parameters_of_convolutions_are_taken_over_as_they_are(naming: str) -> None:
    theirs, ours = released(LAYERS["convolution"][0], naming), LAYERS["convolution"][1]()
    with torch.no_grad():
        next(value for name, value in theirs.named_parameters() if value.shape == (4, 1, 1)).neg_()
    state = read(theirs.state_dict(), ours)
    for found, expected in zip(sorted(state.items()), sorted(theirs.state_dict().items()), strict=True):
        assert torch.equal(found[1], expected[1]), (found[0], expected[0])


@pytest.mark.parametrize("kind", ["convolution", "transposed", "without weight norm", "linear"])
@pytest.mark.parametrize("zeroed", ["g", "v", "folded"])
def test_filters_of_length_0_stay_finite(kind: str, zeroed: str) -> None:
    theirs, ours = released(LAYERS[kind][0], "folded" if zeroed == "folded" else "weight_g"), LAYERS[kind][1]()
    state = {name: value.clone() for name, value in theirs.state_dict().items()}
    axis = 1 if kind == "transposed" and zeroed == "folded" else 0
    name = "weight" if zeroed == "folded" else f"weight_{zeroed}"
    state[name].select(axis, 1).zero_()
    ours.load_state_dict(read(state, ours))
    found = filters(ours.double())
    assert found.isfinite().all()
    assert not found.select(axis, 1).any() and found.select(axis, 0).any()
    output = ours(torch.randn(1, 3 if kind == "linear" else 7, 3).double().mT)
    output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in ours.parameters())
