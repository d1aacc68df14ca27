"""Discriminators of the waveform at several rates."""

from itertools import pairwise
from math import gcd

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.audio.discriminators.layers import SubDiscriminators, normalized_conv1d
from trainers.core.discriminator import DiscriminatorOutput, hidden_layers


class MultiScaleDiscriminator(SubDiscriminators):
    """One sub-discriminator for each scale: of the waveform, of the means of its neighbours at half of the rate, and so
    on. Each convolves along time only, with long filters in groups of channels.

    Source: Kumar et al. 2019 (MelGAN, arXiv:1910.06711), sec. 2.3, with the layers of Kong, Kim, Bae 2020 (HiFi-GAN,
    arXiv:2010.05646) and its code: convolutions of 15, 41, 41, 41, 41, 41 and 5 taps with strides of 1, 2, 2, 4, 4, 1
    and 1, in groups of 1, 4, 16, 16, 16, 16 and 1, of 128, 128, 256, 512, 1024, 1024 and 1024 channels, leaky
    rectifiers of slope 0.1; means of 4 samples every 2.
    Differs: the first scale has weight norm as the others; HiFi-GAN's spectral norm keeps a vector that moves at each
    call, of which there are three in a step. Features do not include the logits; stereo channels are judged together.

    Args:
        in_channels: C of the waveforms.
        scales: how many; each has half of the rate of the one before.
        channels: of the first layer; the others have 1, 2, 4, 8, 8 and 8 times as many. 128 is the published size, of
            9.9 million parameters for each scale.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> import torch
        >>> outputs = MultiScaleDiscriminator(scales=2, channels=4)(torch.randn(2, 1, 500))
        >>> [output.logits.shape[0] for output in outputs]
        [2, 2]
    """

    def __init__(self, in_channels: int = 1, *, scales: int = 3, channels: int = 128) -> None:
        if scales < 1:
            raise ValueError(f"scales={scales}: expected at least 1")
        super().__init__(in_channels, channels, (_ScaleDiscriminator(in_channels, channels) for _ in range(scales)))

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
        outputs = []
        for number, member in enumerate(self.members):
            if number:
                batch = F.avg_pool1d(batch, 4, stride=2, padding=2)
            outputs.append(member(batch))
        return outputs


class _ScaleDiscriminator(nn.Module):
    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        widths = [factor * channels for factor in (1, 1, 2, 4, 8, 8)]
        strides, groups = (2, 2, 4, 4, 1), (4, 16, 16, 16, 16)
        layers = [normalized_conv1d(in_channels, channels, 15)]
        for pair, stride, group in zip(pairwise(widths), strides, groups, strict=True):
            layers.append(normalized_conv1d(*pair, 41, stride=stride, groups=gcd(group, pair[0])))
        self.layers = nn.ModuleList([*layers, normalized_conv1d(widths[-1], widths[-1], 5)])
        self.to_logits = normalized_conv1d(widths[-1], 1, 3)

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        features = hidden_layers(self.layers, wave, slope=0.1)
        return DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)
