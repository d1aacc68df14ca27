"""Inception-v3 of December 2015, on whose features FID, KID and Inception Score are published."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception

from trainers.image.networks.libraries import url_file
from trainers.image.networks.network import FrozenNetwork
from trainers.image.networks.resizing import BilinearResize, TensorFlowResize
from vqkit.saving.weights import HubWeights, Weights, load_state

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
"""The weights; torch-fidelity has the same under another name."""


class Inception2015(FrozenNetwork, ABC):
    """The Inception-v3 of the first FID; how images are fed to it says a derived class.

    `avgpool` gives the 2,048 features of FID and KID, `fc.unbiased` the logits without bias of Inception Score; the
    output is the logits with it.

    Source: Szegedy et al. 2015 (arXiv:1512.00567), as it was exported for Heusel et al. 2017 (FID, 1706.08500), with
    the names of pytorch-fid and torch-fidelity. torchvision's Inception-v3 has other pools, and other weights.

    Args:
        weights: where they come from; by default pytorch-fid's release, `pt_inception-2015-12-05-6726825d.pth`.
        layers: see `FrozenNetwork`.

    Attributes:
        feed: how images become as large as the network wants them.
        middle: of the pixels in [0, 1]: it becomes 0, and 0 becomes -1.

    Raises:
        ValueError: see `FrozenNetwork`.
    """

    feed: ClassVar[BilinearResize]
    middle: ClassVar[float]

    def __init__(self, *, weights: Weights | None = None, layers: Sequence[str] = ("avgpool",)) -> None:
        super().__init__(
            _built,
            weights=weights or HubWeights(),
            download=_published,
            layers=layers,
            resize=self.feed,
            normalization=((self.middle,) * 3, (self.middle,) * 3),
        )


class FidelityInception(Inception2015):
    """Fed as torch-fidelity and TensorFlow do: the resize of TensorFlow 1, then (x - 128) / 128 of pixels 0 to 255.

    UniTok measures by torch-fidelity, TiTok and its successors by their copy of it; ADM's evaluator, of LlamaGen and
    VAR, is TensorFlow's own. See `Inception2015`.
    """

    feed = TensorFlowResize(299)
    middle = 128 / 255


class PytorchFIDInception(Inception2015):
    """Fed as pytorch-fid does: bilinear without antialias, then 2 x - 1 of pixels in [0, 1].

    Open-MAGVIT2, SEED-Voken and WeTok measure by their copies of it. See `Inception2015`.
    """

    feed = BilinearResize(299, antialias=False)
    middle = 0.5


def _published(tag: str | None) -> Path:
    if tag is not None:
        raise ValueError(f"tag={tag!r} of Inception of 2015: it has one set of weights; leave the tag out")
    return url_file(URL, "Inception of 2015")


def _built(state: dict[str, Tensor] | None) -> nn.Module:
    blocks = [
        inception.BasicConv2d,
        _InceptionA,
        inception.InceptionB,
        _InceptionC,
        inception.InceptionD,
        _InceptionE,
        inception.InceptionAux,
    ]
    network = inception.Inception3(1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
    network.fc = _Head(2048, 1008)
    network.Mixed_7c.pool = nn.MaxPool2d(3, stride=1, padding=1)
    return network if state is None else load_state(network, state)


def _mean_pool() -> nn.AvgPool2d:
    """Means of what lies inside of the image."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


class _InceptionA(inception.InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean_pool()(x))]


class _InceptionC(inception.InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_mean_pool()(x))]


class _InceptionE(inception.InceptionE):
    """The last of them has another pool."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.pool: nn.Module = _mean_pool()

    def _forward(self, x: Tensor) -> list[Tensor]:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        wide = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        double_wide = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        pooled = self.branch_pool(self.pool(x))
        return [self.branch1x1(x), torch.cat(wide, 1), torch.cat(double_wide, 1), pooled]


class _Head(nn.Linear):
    """Logits, of which `unbiased` sees those without bias."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        self.unbiased = nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.unbiased(F.linear(features, self.weight)) + self.bias
