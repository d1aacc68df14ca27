"""The shift-tolerant AlexNet and VGG-16 of ST-LPIPS, whose weights a package ships."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.image.networks.network import FrozenNetwork
from vqkit.saving.weights import PackagedWeights, Weights, load_state, no_download

SLICES = ("slice1", "slice2", "slice3", "slice4", "slice5")
"""Their ends are the layers that are compared."""


class ShiftTolerantNetwork(FrozenNetwork, ABC):
    """A network whose strides of 2 are blurred: a shift of the image by a pixel hardly moves its features.

    Source: Ghildyal, Liu 2022 (ST-LPIPS, arXiv:2207.13686); the blur is that of Zhang 2019 (1904.11486).

    Args:
        weights: where they come from; by default the package stlpips-pytorch.
        layers: see `FrozenNetwork`; by default the five that ST-LPIPS compares.

    Attributes:
        published_name: of the network in the package.

    Raises:
        ValueError: see `FrozenNetwork`.
    """

    published_name: ClassVar[str]

    def __init__(self, *, weights: Weights | None = None, layers: Sequence[str] = SLICES) -> None:
        super().__init__(self._built, weights=weights or self.published(), download=no_download, layers=layers)

    @classmethod
    def published(cls) -> Weights:
        """Those of the package, network and heads of the distance in one file."""
        file = f"weights/vST0.0/{cls.published_name}_shift_tolerant.pth"
        return PackagedWeights("stlpips_pytorch", file, distribution="stlpips-pytorch")

    @classmethod
    @abstractmethod
    def slices(cls) -> list[list[nn.Module]]:
        """The modules up to each of the five ends."""

    @classmethod
    def _built(cls, state: dict[str, Tensor] | None) -> nn.Module:
        network = _sliced(cls.slices())
        if state is None:
            return network
        # The file has the heads of the distance beside the network.
        own = {name.removeprefix("net."): value for name, value in state.items() if name.startswith("net.")}
        return load_state(network, own)


class ShiftTolerantAlexNet(ShiftTolerantNetwork):
    """AlexNet; see `ShiftTolerantNetwork`."""

    published_name = "alex"

    @classmethod
    def slices(cls) -> list[list[nn.Module]]:
        """Five convolutions."""
        return [
            [nn.Conv2d(3, 64, 11, padding=2), _Blur(64), nn.ReLU()],
            [nn.MaxPool2d(3, 1), _Blur(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            [nn.MaxPool2d(3, 1), _Blur(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ]


class ShiftTolerantVGG16(ShiftTolerantNetwork):
    """VGG-16, whose pools take every position, and a blur drops every other one; see `ShiftTolerantNetwork`."""

    published_name = "vgg"

    @classmethod
    def slices(cls) -> list[list[nn.Module]]:
        """Thirteen convolutions."""
        slices: list[list[nn.Module]] = []
        channels = 3
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            parts: list[nn.Module] = [nn.MaxPool2d(2, 1), _Blur(channels)] if slices else []
            for _ in range(count):
                parts += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            slices.append(parts)
        return slices


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
