"""A discriminator whose features are those of a frozen, pretrained transformer."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from trainers.core.discriminator import Discriminator, DiscriminatorOutput
from trainers.image.discriminators.normalization import GroupNorm, Normalization
from trainers.image.networks.network import FrozenNetwork


class ProjectedDiscriminator(Discriminator):
    """Heads of two convolutions on the tokens of a frozen transformer, such as DINO; one head for each of its layers.

    Each patch is a token with the class token added. A head convolves the sequence of patches, which closes to a ring:
    with a kernel of 1, then within a residual block with one of `kernel_size`, both with a norm and a leaky rectifier
    of slope 0.2, then to one logit for each patch; all kernels have spectral norm. Only the heads are trained. A power
    iteration of the spectral norm runs in each call in training, as published: it follows the kernels, not the images.

    Source: Sauer et al. 2023 (StyleGAN-T, arXiv:2301.09515), sec. 3.2, in the form of the code of VAR
    (Tian et al. 2024, 2404.02905) and UniTok (Ma et al. 2025, 2502.20321): DINO-S/16 with 224 x 224 pixels, behind
    blocks 2, 5, 8, 11, `DiffAugment` before.
    Differs: images are resized as `network` says, theirs are cropped to 224 pixels half of the time where they are
        larger. Theirs have a fifth head on the tokens before the first block: here it needs a layer that gives them.
        Their batch norm takes 8 images at a time, `BatchNorm` takes all of a call.

    Args:
        network: gives tokens (B, 1 + P, C) at its `layers`, the class token first.
        in_channels: C of the images, 3 or 1.
        kernel_size: odd, of the residual block's convolution along the patches.
        norm: None is `GroupNorm(32)`, UniTok's.

    Raises:
        ValueError: `network` names no layers or gives something else than tokens, or `kernel_size` is even or below 1.
    """

    axes = ("height", "width")

    def __init__(
        self,
        network: FrozenNetwork,
        *,
        in_channels: int = 3,
        kernel_size: int = 9,
        norm: Normalization | None = None,
    ) -> None:
        super().__init__(in_channels)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, such as 9")
        if not network.layers:
            raise ValueError("network names no layers: expected those that give tokens, such as blocks.2 and blocks.5")
        self.network = network
        side = network.resize.resolution if network.resize else 224
        with torch.no_grad():
            outputs = network(torch.zeros(1, in_channels, side, side))
        for name, tokens in zip(network.layers, outputs, strict=True):
            if tokens.ndim != 3 or tokens.shape[1] < 2:
                raise ValueError(
                    f"layer {name!r} of the network gives {tuple(tokens.shape)}: expected tokens (B, 1 + patches, C), "
                    "those of a transformer"
                )
        norm = norm or GroupNorm()
        self.heads = nn.ModuleList(_Head(tokens.shape[2], kernel_size, norm) for tokens in outputs)

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
        return [head(tokens) for head, tokens in zip(self.heads, self.network(batch), strict=True)]


class _Head(nn.Module):
    def __init__(self, channels: int, kernel_size: int, norm: Normalization) -> None:
        super().__init__()
        self.first = nn.Sequential(_ring_convolution(channels, channels, 1), norm.layer(channels))
        self.second = nn.Sequential(_ring_convolution(channels, channels, kernel_size), norm.layer(channels))
        self.to_logits = _ring_convolution(channels, 1, 1)

    def forward(self, tokens: Tensor) -> DiscriminatorOutput:
        x = (tokens[:, 1:] + tokens[:, :1]).mT.unsqueeze(2)  # (B, C, 1, P)
        first = F.leaky_relu(self.first(x), 0.2)
        second = (F.leaky_relu(self.second(first), 0.2) + first) / math.sqrt(2)
        return DiscriminatorOutput(self.to_logits(second).flatten(1), [first, second])


def _ring_convolution(in_channels: int, out_channels: int, kernel_size: int) -> nn.Module:
    padding = (0, kernel_size // 2)
    convolution = nn.Conv2d(in_channels, out_channels, (1, kernel_size), padding=padding, padding_mode="circular")
    return spectral_norm(convolution, n_power_iterations=1)
