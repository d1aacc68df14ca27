"""Discriminators of constant-Q transforms."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.audio.constant_q import ConstantQ
from trainers.audio.discriminators.layers import SubDiscriminators, normalized_conv2d
from trainers.core.discriminator import DiscriminatorOutput, hidden_layers
from vqkit.runtime import autocast_disabled
from vqkit.tokenizers.resampling import resample


class MultiScaleSubBandCQTDiscriminator(SubDiscriminators):
    """One sub-discriminator for each constant-Q transform, whose octaves are convolved separately before all are
    judged together. It resolves pitch at low frequencies and time at high ones: voices that sing, instruments.

    Source: Gu et al. 2023 (arXiv:2311.14957), sec. 2, and its code (Amphion): the waveform at twice its rate, so that
    nine octaves from 32.7 Hz fit at 24 kHz and above; real and imaginary parts as channels; for each octave a
    convolution of 3 x 9 (time x frequency); then the layers of the STFT discriminator of EnCodec: 3 x 9, three with
    dilations of 1, 2 and 4 in time and strides of 2 in frequency, 3 x 3, and one for the logits; 32 channels, leaky
    rectifiers of slope 0.1, weight norm.
    Differs: coefficients are of windows of Euclidean length 1 (see `ConstantQ`), 1.2 times smaller than nnAudio's.

    Args:
        sample_rate: Hz of the waveforms.
        in_channels: C of the waveforms.
        hop_lengths: samples from frame to frame at twice the rate; multiples of 2^(octaves - 1).
        bins_per_octave: for each hop.
        octaves: of all transforms; 8 at 16 kHz, where 9 would end above the waveform's rate.
        min_frequency: Hz.
        channels: of every layer behind the octaves' own; 32 is the published size.

    Raises:
        ValueError: an argument is out of its range (see `ConstantQ`).

    Examples:
        >>> import torch
        >>> judge = MultiScaleSubBandCQTDiscriminator(
        ...     8000, hop_lengths=[64], bins_per_octave=[12], octaves=3, min_frequency=500, channels=4
        ... )
        >>> len(judge(torch.randn(2, 1, 800))[0].features)
        5
    """

    def __init__(
        self,
        sample_rate: int,
        in_channels: int = 1,
        *,
        hop_lengths: Sequence[int] = (512, 256, 256),
        bins_per_octave: Sequence[int] = (24, 36, 48),
        octaves: int = 9,
        min_frequency: float = 32.703,
        channels: int = 32,
    ) -> None:
        if not hop_lengths or len(hop_lengths) != len(bins_per_octave):
            raise ValueError(
                f"hop_lengths={list(hop_lengths)} and bins_per_octave={list(bins_per_octave)}: expected one number of "
                "bins for each hop, and at least one hop"
            )
        transforms = (
            ConstantQ(
                2 * sample_rate,
                hop_length=hop_length,
                octaves=octaves,
                bins_per_octave=bins,
                min_frequency=min_frequency,
            )
            for hop_length, bins in zip(hop_lengths, bins_per_octave, strict=True)
        )
        members = (_CQTDiscriminator(transform, in_channels, channels) for transform in transforms)
        super().__init__(in_channels, channels, members)
        self.sample_rate = sample_rate

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
        with autocast_disabled(batch.device):
            batch = batch.to(torch.promote_types(batch.dtype, torch.float32))
            doubled = resample(batch, 1, 2)
        return [member(doubled) for member in self.members]


class _CQTDiscriminator(nn.Module):
    def __init__(self, transform: ConstantQ, in_channels: int, channels: int) -> None:
        super().__init__()
        planes = 2 * in_channels
        self.transform = transform
        self.octaves = nn.ModuleList(normalized_conv2d(planes, planes, (3, 9)) for _ in range(transform.octaves))
        strided = [
            normalized_conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(dilation, 1))
            for dilation in (1, 2, 4)
        ]
        first, last = normalized_conv2d(planes, channels, (3, 9)), normalized_conv2d(channels, channels, (3, 3))
        self.layers = nn.ModuleList([first, *strided, last])
        self.to_logits = normalized_conv2d(channels, 1, (3, 3))

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        with autocast_disabled(wave.device):
            spectrum = self.transform(wave.flatten(0, 1)).unflatten(0, (wave.shape[0], -1))
        planes = torch.cat([spectrum.real, spectrum.imag], dim=1).contiguous(memory_format=torch.channels_last)
        bands = planes.split(self.transform.bins_per_octave, dim=-1)
        joined = torch.cat([layer(band) for layer, band in zip(self.octaves, bands, strict=True)], dim=-1)
        features = hidden_layers(self.layers, joined, slope=0.1)
        return DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)
