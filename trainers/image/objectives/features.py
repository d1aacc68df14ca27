"""Distances of images as a frozen network sees them."""

from collections.abc import Iterator

import torch
from torch import Tensor

from trainers.image.networks.network import FrozenNetwork
from trainers.image.objectives.objective import ImageObjective


class NetworkObjective(ImageObjective):
    """A distance of the features of a network.

    A step costs one forward of the network for the originals, and one forward and backward for the reconstructions.

    Args:
        network: its layers are compared; see `FrozenNetwork`.
        weight: see `Objective`.
        name: see `Objective`.

    Raises:
        ValueError: see `Objective`.
    """

    def __init__(self, network: FrozenNetwork, *, weight: float, name: str) -> None:
        super().__init__(weight=weight, name=name)
        self.network = network

    def features(self, reference: Tensor, reconstruction: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of both images, (B, ...) layer by layer; without gradient for the reference."""
        with torch.no_grad():
            expected = self.network(reference)
        return zip(expected, self.network(reconstruction), strict=True)


class FeatureDistance(NetworkObjective):
    """E |f - f'|^exponent of the features of a network, averaged over its layers.

    Source: the feature reconstruction loss of Johnson, Alahi, Fei-Fei 2016 (arXiv:1603.08155), eq. 2, with exponent 2.
    The logits of a classifier in place of features are those of Yu et al. 2024 (TiTok, 2406.07550): `convnext_small` of
    torchvision without layers, `BilinearResize(224)`, weight 0.1. Normalized features are those of Zhang et al. 2018
    (LPIPS, 1801.03924).

    Args:
        network: its layers are compared, or its output where it has none.
        weight: factor of the term in the total.
        name: under which the term is logged.
        exponent: 1 for the absolute difference, 2 for the squared one; at least 1.
        normalized: whether each position is scaled to length 1 along the channels first.
        channel_dim: axis of the channels in the features; -1 for tokens (B, N, C) of a transformer.

    Raises:
        ValueError: `exponent` is below 1.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        *,
        weight: float = 1.0,
        name: str = "features",
        exponent: float = 2.0,
        normalized: bool = False,
        channel_dim: int = 1,
    ) -> None:
        super().__init__(network, weight=weight, name=name)
        if not exponent >= 1:
            raise ValueError(f"exponent={exponent}: expected a number of at least 1, such as 2")
        self.exponent = exponent
        self.normalized = normalized
        self.channel_dim = channel_dim

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        distances = []
        for expected, found in self.features(reference, reconstruction):
            if self.normalized:
                expected, found = unit(expected, self.channel_dim), unit(found, self.channel_dim)
            distances.append((found - expected).abs().pow(self.exponent).mean())
        return torch.stack(distances).mean()


class GramDistance(NetworkObjective):
    """Squared distance of the Gram matrices of features, in which textures are compared wherever they are.

    |G - G'|^2 in the Frobenius norm, G = F F^T / (C P) of the features F (C, P) at P positions; averaged over layers.

    Source: Gatys, Ecker, Bethge 2015 (arXiv:1508.06576), in the form of Johnson, Alahi, Fei-Fei 2016 (1603.08155), eq.
    3 and 4.
    Differs: they sum over the layers, we take the mean.

    Args:
        network: its layers are compared; they need positions, so no logits.
        weight: factor of the term in the total.
        name: under which the term is logged.
        channel_dim: axis of the channels in the features; -1 for tokens (B, N, C) of a transformer.

    Raises:
        ValueError: in `forward` if the features have no positions.
    """

    def __init__(
        self, network: FrozenNetwork, *, weight: float = 1.0, name: str = "gram", channel_dim: int = 1
    ) -> None:
        super().__init__(network, weight=weight, name=name)
        self.channel_dim = channel_dim

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        pairs = self.features(reference, reconstruction)
        distances = [
            (self._gram(found) - self._gram(expected)).square().sum((1, 2)).mean() for expected, found in pairs
        ]
        return torch.stack(distances).mean()

    def _gram(self, features: Tensor) -> Tensor:
        if features.ndim < 3:
            raise ValueError(
                f"features of {self.name!r} have shape {tuple(features.shape)}: expected (batch, channels, positions); "
                "name layers of the network before its pooling"
            )
        flat = features.movedim(self.channel_dim, 1).flatten(2)
        return flat @ flat.mT / flat[0].numel()


def unit(features: Tensor, dim: int = 1) -> Tensor:
    """Features of length 1 along an axis, nearly: where they are 0, they stay so, and their gradient is finite."""
    return features / (torch.linalg.vector_norm(features, dim=dim, keepdim=True) + 1e-10)
