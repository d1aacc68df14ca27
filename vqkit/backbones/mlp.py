"""Encoder and decoder of plain vectors: fully connected layers, or none at all."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vqkit.backbones.activations import ReLU
from vqkit.backbones.sizes import check_positive
from vqkit.saving.config import Configured


class MLPEncoder(Configured, nn.Module):
    """Vectors (B, C) to latents (B, dim), by linear layers with an activation between them.

    Args:
        in_channels: C.
        dim: of the latents.
        widths: of the hidden layers, those next to the vectors first; none is one linear map.
        activation: builds the activation behind a hidden layer from its width; `ReLU`, `GELU` and others are in
            `vqkit.backbones.activations`.

    Source: the encoder of RQ-VAE in Rajput et al. 2023 (TIGER, arXiv:2305.05065), sec. 4: widths 512, 256 and 128,
    ReLU, 32 dimensions at the end.

    Raises:
        ValueError: a size is not positive; in `forward` if the vectors are of another shape.

    Examples:
        >>> MLPEncoder(in_channels=768, dim=32)(torch.randn(4, 768)).shape
        torch.Size([4, 32])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        dim: int = 32,
        widths: Sequence[int] = (512, 256, 128),
        activation: Callable[[int], nn.Module] = ReLU,
    ) -> None:
        super().__init__()
        self.layers = _layers([in_channels, *widths, dim], activation)
        self.in_channels = in_channels
        self.dim = dim

    def forward(self, vectors: Tensor) -> Tensor:
        """Latents (B, dim) of vectors (B, C)."""
        check_vectors(vectors, self.in_channels)
        return self.layers(vectors)


class MLPDecoder(Configured, nn.Module):
    """Latents (B, dim) to vectors (B, C), the mirror of `MLPEncoder`.

    Args:
        out_channels: C.
        dim: of the latents.
        widths: as the encoder has them, those next to the vectors first.
        activation: as the encoder has it.
    """

    def __init__(
        self,
        *,
        out_channels: int,
        dim: int = 32,
        widths: Sequence[int] = (512, 256, 128),
        activation: Callable[[int], nn.Module] = ReLU,
    ) -> None:
        super().__init__()
        self.layers = _layers([dim, *reversed(widths), out_channels], activation)
        self.out_channels = out_channels
        self.dim = dim
        self.output_layer = f"layers.{len(self.layers) - 1}"

    def forward(self, latents: Tensor) -> Tensor:
        """Vectors (B, C) of latents (B, dim)."""
        return self.layers(latents)


class Passthrough(Configured, nn.Module):
    """No encoder and no decoder: the quantizer sees the vectors themselves, as residual k-means does.

    Args:
        dim: of the vectors, or the channels of a series.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_positive(dim=dim)
        self.dim = self.in_channels = self.out_channels = dim

    def forward(self, vectors: Tensor) -> Tensor:
        """What it is given."""
        return vectors


def check_vectors(vectors: Tensor, channels: int) -> None:
    """Refuse what is no batch of vectors.

    Raises:
        ValueError: `vectors` is not (B, channels).
    """
    if vectors.ndim != 2 or vectors.shape[1] != channels:
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)}: expected (B, {channels}); series (B, {channels}, T) take the "
            "convolutions of vqkit.backbones.conv1d"
        )


def _layers(sizes: Sequence[int], activation: Callable[[int], nn.Module]) -> nn.Sequential:
    for size in sizes:
        check_positive(width=size)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), activation(after)]
    return nn.Sequential(*layers[:-1])
