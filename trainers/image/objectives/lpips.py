"""LPIPS, and its shift-tolerant form."""

from typing import ClassVar

import torch
from torch import Tensor

from trainers.image.networks.libraries import TorchvisionNetwork
from trainers.image.networks.network import FrozenNetwork
from trainers.image.networks.shift_tolerant import ShiftTolerantAlexNet, ShiftTolerantNetwork, ShiftTolerantVGG16
from trainers.image.objectives.features import NetworkObjective, unit
from vqkit.saving.files import named
from vqkit.saving.weights import HubWeights, PackagedWeights, Weights, no_download, read_state, sha256_of


class LPIPS(NetworkObjective):
    """Learned perceptual distance: squared differences of normalized features, weighted by channel.

    sum over layers l of  mean over positions of  sum over channels c of  w_lc (f_lc - f'_lc)^2,  with f of length 1 at
    every position and w what was fitted to people's judgements.

    Source: Zhang et al. 2018 (arXiv:1801.03924), eq. 1. Values are those of the package lpips 0.1.4 (version 0.1).

    Args:
        network: its layers are compared.
        heads: file with w, named as in lpips (`lin0.model.1.weight`, ...), one entry for each of the layers.
        weight: factor of the term in the total.
        name: under which the term is logged.

    Attributes:
        heads_file: the file with w.

    Raises:
        ValueError: the heads cannot be had, or are others than the network's layers.
    """

    def __init__(self, network: FrozenNetwork, heads: Weights, *, weight: float = 1.0, name: str = "lpips") -> None:
        super().__init__(network, weight=weight, name=name)
        self.heads_file = heads.find(no_download)
        if self.heads_file is None:
            raise ValueError(
                "heads: expected a file with weights that were fitted to judgements; there are none at random"
            )
        state = read_state(self.heads_file)
        with named(self.heads_file):
            names = [f"lin{number}.model.1.weight" for number in range(sum(key.startswith("lin") for key in state))]
            if len(names) != len(network.layers) or not all(name in state for name in names):
                raise ValueError(f"has heads for {len(names)} layers: expected {len(network.layers)}, {network.layers}")
        for number, key in enumerate(names):
            self.register_buffer(f"head{number}", state[key].reshape(-1, 1, 1), persistent=False)

    @property
    def heads_sha256(self) -> str:
        """Of the file with w, in hexadecimal."""
        assert self.heads_file is not None
        return sha256_of(self.heads_file)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        return self.of_each(reference, reconstruction).mean()

    def of_each(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The distance (B,) of every image in float32, of images (B, C, H, W) in [-1, 1]."""
        distances = []
        for number, (expected, found) in enumerate(self.features(reference, reconstruction)):
            difference = (unit(found) - unit(expected)).square()
            distances.append((difference * self.get_buffer(f"head{number}")).sum(1).mean((1, 2)))
        return torch.stack(distances).sum(0)


class TorchvisionLPIPS(LPIPS):
    """LPIPS by a network of torchvision, with heads that are published for it.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
        backbone: weights of the network; by default torchvision downloads them.
        heads: by default those of the package lpips, of which torchmetrics has a copy.

    Attributes:
        architecture: name of the network in torchvision.
        compared_layers: numbers of those of its `features` that are compared.
        published_name: of the network in lpips.

    Raises:
        ValueError: see `LPIPS` and `FrozenNetwork`.
    """

    architecture: ClassVar[str]
    compared_layers: ClassVar[tuple[int, ...]]
    published_name: ClassVar[str]

    def __init__(
        self, *, weight: float = 1.0, name: str = "lpips", backbone: Weights | None = None, heads: Weights | None = None
    ) -> None:
        layers = [f"features.{number}" for number in self.compared_layers]
        network = TorchvisionNetwork(self.architecture, weights=backbone or HubWeights("IMAGENET1K_V1"), layers=layers)
        published = PackagedWeights("torchmetrics", f"functional/image/lpips_models/{self.published_name}.pth")
        super().__init__(network, heads or published, weight=weight, name=name)


class AlexNetLPIPS(TorchvisionLPIPS):
    """LPIPS by AlexNet, which papers report as a measure; for training they take VGG-16."""

    architecture, published_name = "alexnet", "alex"
    compared_layers = (1, 4, 7, 9, 11)


class VGG16LPIPS(TorchvisionLPIPS):
    """LPIPS by VGG-16: the perceptual loss of VQGAN (Esser et al. 2021, arXiv:2012.09841) and its successors."""

    architecture, published_name = "vgg16", "vgg"
    compared_layers = (3, 8, 15, 22, 29)


class STLPIPS(LPIPS):
    """ST-LPIPS: LPIPS by a shift-tolerant network, which hardly minds a shift by a pixel.

    Source: Ghildyal, Liu 2022 (arXiv:2207.13686). Values are those of the package stlpips-pytorch 0.0.2.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
        weights: of network and heads, one file; by default that of the package stlpips-pytorch.

    Attributes:
        kind: class of the network.

    Raises:
        ValueError: see `LPIPS` and `FrozenNetwork`.
    """

    kind: ClassVar[type[ShiftTolerantNetwork]]

    def __init__(self, *, weight: float = 1.0, name: str = "st_lpips", weights: Weights | None = None) -> None:
        super().__init__(self.kind(weights=weights), weights or self.kind.published(), weight=weight, name=name)


class AlexNetSTLPIPS(STLPIPS):
    """ST-LPIPS by `ShiftTolerantAlexNet`."""

    kind = ShiftTolerantAlexNet


class VGG16STLPIPS(STLPIPS):
    """ST-LPIPS by `ShiftTolerantVGG16`."""

    kind = ShiftTolerantVGG16
