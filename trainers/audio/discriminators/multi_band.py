"""Discriminators of complex spectra that treat bands of frequencies separately."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from trainers.audio.discriminators.layers import ComplexPlanes, SubDiscriminators, normalized_conv2d
from trainers.core.discriminator import DiscriminatorOutput, hidden_layers


class MultiBandSTFTDiscriminator(SubDiscriminators):
    """One sub-discriminator for each window length; each convolves bands of its complex spectrum separately, so that
    high frequencies are not judged by what is learned of low ones, and judges the bands together.

    Source: Kumar et al. 2023 (DAC, arXiv:2306.06546), sec. 3.3 and its code: for each band a convolution of 3 x 9 (time
    x frequency), three with strides of 2 in frequency and one of 3 x 3; one over all bands for the logits; 32 channels,
    leaky rectifiers of slope 0.1, weight norm; hops of a quarter window.
    Differs: spectra are divided by the Euclidean length of the window (EnCodec), so that logits start at the same size
    for all windows; the ends are not reflected. DAC's code takes the mean and the peak out of each waveform before:
    we do not, since its reconstruction then may have any level, and the noise of a silent one is judged at full scale.

    Args:
        in_channels: C of the waveforms.
        window_lengths: samples.
        bands: edges as shares of half the sample rate, rising from 0 to 1.
        channels: of every layer; 32 is the published size.

    Raises:
        ValueError: an argument is out of its range, or a band has no frequency of the shortest window.

    Examples:
        >>> import torch
        >>> outputs = MultiBandSTFTDiscriminator(window_lengths=[128], channels=4)(torch.randn(2, 1, 800))
        >>> len(outputs), len(outputs[0].features)
        (1, 25)
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        window_lengths: Sequence[int] = (2048, 1024, 512),
        bands: Sequence[float] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0),
        channels: int = 32,
    ) -> None:
        if not window_lengths:
            raise ValueError("window_lengths is empty: name at least one window, in samples")
        if len(bands) < 2 or (bands[0], bands[-1]) != (0, 1):
            raise ValueError(f"bands={list(bands)}: expected rising edges from 0 to 1, such as [0, 0.25, 0.5, 1]")
        members = (_BandDiscriminator(in_channels, length, bands, channels) for length in window_lengths)
        super().__init__(in_channels, channels, members)


class _BandDiscriminator(nn.Module):
    def __init__(self, in_channels: int, window_length: int, bands: Sequence[float], channels: int) -> None:
        super().__init__()
        self.spectrum = ComplexPlanes(window_length)
        edges = [int(edge * self.spectrum.bins) for edge in bands]
        self.widths = [end - start for start, end in pairwise(edges)]
        if min(self.widths) < 1:
            raise ValueError(
                f"bands={list(bands)} have {self.widths} frequencies of window_length={window_length}: expected at "
                "least 1 in each; join bands or lengthen the window"
            )
        self.stacks = nn.ModuleList(_band_layers(in_channels, channels) for _ in self.widths)
        self.to_logits = normalized_conv2d(channels, 1, (3, 3))

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        parts = self.spectrum(wave).split(self.widths, dim=-1)
        stacks = [hidden_layers(layers, part, slope=0.1) for layers, part in zip(self.stacks, parts, strict=True)]
        judged = torch.cat([features[-1] for features in stacks], dim=-1)
        return DiscriminatorOutput(
            self.to_logits(judged).flatten(1), [feature for stack in stacks for feature in stack]
        )


def _band_layers(in_channels: int, channels: int) -> nn.ModuleList:
    strided = [normalized_conv2d(channels, channels, (3, 9), stride=(1, 2)) for _ in range(3)]
    first, last = normalized_conv2d(2 * in_channels, channels, (3, 9)), normalized_conv2d(channels, channels, (3, 3))
    return nn.ModuleList([first, *strided, last])
