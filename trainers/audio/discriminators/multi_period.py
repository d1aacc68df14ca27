"""Discriminators of every p-th sample."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.audio.discriminators.layers import SubDiscriminators, normalized_conv2d
from trainers.core.discriminator import DiscriminatorOutput, hidden_layers


class MultiPeriodDiscriminator(SubDiscriminators):
    """One sub-discriminator for each period p: the waveform is folded to T/p rows of p samples, and convolved along
    the columns only, so that each sees every p-th sample. It is good at the periodic parts of sounds, such as voices.

    Source: Kong, Kim, Bae 2020 (HiFi-GAN, arXiv:2010.05646), sec. 2.3 and its code: five convolutions of 5 x 1, four of
    them with a stride of 3, of 32, 128, 512, 1024 and 1024 channels, leaky rectifiers of slope 0.1, weight norm.
    Differs: the last row is filled by zeros, not by reflection, so that clips shorter than a row go too; channels of
    stereo are judged together; features do not include the logits, as in DAC.

    Args:
        in_channels: C of the waveforms.
        periods: samples; primes overlap least.
        channels: of the first layer; the others have 4, 16, 32 and 32 times as many. 32 is the published size, of 8.2
            million parameters for each period.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> import torch
        >>> outputs = MultiPeriodDiscriminator(periods=[2, 3], channels=4)(torch.randn(2, 1, 500))
        >>> [output.logits.shape[0] for output in outputs]
        [2, 2]
    """

    def __init__(self, in_channels: int = 1, *, periods: Sequence[int] = (2, 3, 5, 7, 11), channels: int = 32) -> None:
        if not periods or min(periods) < 1:
            raise ValueError(f"periods={list(periods)}: expected at least one, of 1 sample or more")
        members = (_PeriodDiscriminator(in_channels, period, channels) for period in periods)
        super().__init__(in_channels, channels, members)


class _PeriodDiscriminator(nn.Module):
    def __init__(self, in_channels: int, period: int, channels: int) -> None:
        super().__init__()
        self.period = period
        widths = [in_channels, *(factor * channels for factor in (1, 4, 16, 32))]
        layers = [normalized_conv2d(*pair, (5, 1), stride=(3, 1)) for pair in pairwise(widths)]
        self.layers = nn.ModuleList([*layers, normalized_conv2d(widths[-1], widths[-1], (5, 1))])
        self.to_logits = normalized_conv2d(widths[-1], 1, (3, 1))

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        rows = F.pad(wave, (0, -wave.shape[-1] % self.period)).unflatten(-1, (-1, self.period))
        features = hidden_layers(self.layers, rows, slope=0.1)
        return DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)
