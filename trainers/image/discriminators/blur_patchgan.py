"""A discriminator of patches that blurs before each stride."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.core.discriminator import Discriminator, DiscriminatorOutput, hidden_layers
from trainers.image.discriminators.blur import BlurPool
from trainers.image.discriminators.normalization import GroupNorm, Normalization


class BlurPatchGAN(Discriminator):
    """Convolutions and blurred strides that judge overlapping patches, without a batch norm.

    Source: Weber et al. 2024 (MaskBit, arXiv:2409.16211) in its code, from which 1d-tokenizer (TiTok) and Open-MAGVIT2
    have it: a convolution of 5 x 5; `num_stages` of 3 x 3 with `BlurPool`, a group norm and a rectifier, of 1, 2, 4 ...
    times the channels; a maximum over areas; logits from a convolution of 1 x 1 and one of 5 x 5. Leaky rectifiers of
    slope 0.1.

    Args:
        in_channels: C of the images.
        num_stages: strides of 2, at least 1.
        channels: of the first layers; 128 as published.
        norm: None is `GroupNorm(32)`, as published.
        pooled_side: side of the map of logits, whatever the images' size (TiTok: 16); None leaves it at that of the
            last stage (Open-MAGVIT2).

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> import torch
        >>> (output,) = BlurPatchGAN(channels=32, pooled_side=None)(torch.zeros(2, 3, 64, 48))
        >>> output.logits.shape, len(output.features)
        (torch.Size([2, 48]), 5)
    """

    axes = ("height", "width")

    def __init__(
        self,
        in_channels: int = 3,
        *,
        num_stages: int = 3,
        channels: int = 128,
        norm: Normalization | None = None,
        pooled_side: int | None = 16,
    ) -> None:
        super().__init__(in_channels)
        for name, value in {"num_stages": num_stages, "channels": channels, "pooled_side": pooled_side}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: expected at least 1")
        norm = norm or GroupNorm()
        widths = [channels, *(channels * 2**number for number in range(num_stages))]
        self.layers = nn.ModuleList([nn.Conv2d(in_channels, channels, 5, padding="same")])
        for before, width in pairwise(widths):
            convolution = nn.Conv2d(before, width, 3, padding="same")
            self.layers.append(nn.Sequential(convolution, BlurPool(), norm.layer(width)))
        self.pool = nn.Identity() if pooled_side is None else nn.AdaptiveMaxPool2d(pooled_side)
        self.mix = nn.Conv2d(widths[-1], widths[-1], 1)
        self.to_logits = nn.Conv2d(widths[-1], 1, 5, padding="same")

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
        features = hidden_layers(self.layers, batch, slope=0.1)
        features.append(F.leaky_relu(self.mix(self.pool(features[-1])), 0.1))
        return [DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)]
