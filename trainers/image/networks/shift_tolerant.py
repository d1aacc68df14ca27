"""The shift-tolerant AlexNet and VGG-16 of ST-LPIPS, whose weights a package ships."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.image.networks.network import FrozenNetwork
from trainers.image.networks.weights import PackagedWeights, Weights, load_state, no_download

SLICES = ("slice1", "slice2", "slice3", "slice4", "slice5")
"""Their ends are the layers that are compared."""


def shift_tolerant_weights(name: str) -> Weights:
    """Those of the package stlpips-pytorch, network and heads in one file; `name` is alex or vgg."""
    return PackagedWeights(
        "stlpips_pytorch", f"weights/vST0.0/{name}_shift_tolerant.pth", distribution="stlpips-pytorch"
    )


class ShiftTolerantAlexNet(FrozenNetwork):
    """AlexNet with blurred strides of 2 in place of strides: a shift of the image by a pixel hardly moves its features.

    Source: Ghildyal, Liu 2022 (ST-LPIPS, arXiv:2207.13686); the blur is that of Zhang 2019 (1904.11486).

    Args:
        weights: where they come from; by default the package stlpips-pytorch.
        layers: see `FrozenNetwork`; by default the five that ST-LPIPS compares.

    Raises:
        ValueError: see `FrozenNetwork`.
    """

    def __init__(self, *, weights: Weights | None = None, layers: Sequence[str] = SLICES) -> None:
        super().__init__(
            lambda state: _filled(_alexnet(), state),
            weights=weights or shift_tolerant_weights("alex"),
            download=no_download,
            layers=layers,
        )


class ShiftTolerantVGG16(FrozenNetwork):
    """VGG-16 in the same way: its pools take every position, and a blur drops every other one.

    Source: as `ShiftTolerantAlexNet`.

    Args:
        weights: where they come from; by default the package stlpips-pytorch.
        layers: see `FrozenNetwork`; by default the five that ST-LPIPS compares.

    Raises:
        ValueError: see `FrozenNetwork`.
    """

    def __init__(self, *, weights: Weights | None = None, layers: Sequence[str] = SLICES) -> None:
        super().__init__(
            lambda state: _filled(_vgg16(), state),
            weights=weights or shift_tolerant_weights("vgg"),
            download=no_download,
            layers=layers,
        )


def _filled(network: nn.Module, state: dict[str, Tensor] | None) -> nn.Module:
    if state is None:
        return network
    # The file has the heads of the distance beside the network.
    own = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
    return load_state(network, own)


def _alexnet() -> nn.Sequential:
    return _sliced(
        [
            [nn.Conv2d(3, 64, 11, padding=2), _Blur(64), nn.ReLU()],
            [nn.MaxPool2d(3, 1), _Blur(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            [nn.MaxPool2d(3, 1), _Blur(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ]
    )


def _vgg16() -> nn.Sequential:
    slices: list[list[nn.Module]] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        parts: list[nn.Module] = [nn.MaxPool2d(2, 1), _Blur(channels)] if slices else []
        for _ in range(count):
            parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        slices.append(parts)
    return _sliced(slices)


def _sliced(slices: Sequence[Sequence[nn.Module]]) -> nn.Sequential:
    """Slices whose parts are numbered through, as in the published weights."""
    network, number = nn.Sequential(), 0
    for name, parts in zip(SLICES, slices, strict=True):
        inner = nn.Sequential()
        for part in parts:
            inner.add_module(str(number), part)
            number += 1
        network.add_module(name, inner)
    return network


class _Blur(nn.Module):
    """A blur of three taps with a stride of 2, on an image that is reflected by two pixels at each side."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filt", torch.outer(taps, taps).expand(channels, 1, 3, 3).clone())

    def forward(self, features: Tensor) -> Tensor:
        padded = F.pad(features, (2, 2, 2, 2), mode="reflect")
        return F.conv2d(padded, self.get_buffer("filt"), stride=2, groups=features.shape[1])
