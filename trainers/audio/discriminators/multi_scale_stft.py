"""Discriminators of complex spectra at several window lengths."""

from collections.abc import Sequence

from torch import Tensor, nn

from trainers.audio.discriminators.layers import ComplexPlanes, SubDiscriminators, normalized_conv2d
from trainers.core.discriminator import DiscriminatorOutput, hidden_layers


class MultiScaleSTFTDiscriminator(SubDiscriminators):
    """One sub-discriminator for each window length, with real and imaginary parts as the channels of a map.

    Source: Défossez et al. 2022 (EnCodec, arXiv:2210.13438), sec. 3.4 and fig. 2: a convolution of 3 x 9 (time x
    frequency), three with dilations of 1, 2 and 4 in time and strides of 2 in frequency, one of 3 x 3, and one for the
    logits; 32 channels, leaky rectifiers of slope 0.2, weight norm; hops of a quarter window.
    Differs: the first convolution has weight norm too, which EnCodec's code leaves out.

    Args:
        in_channels: C of the waveforms.
        window_lengths: samples.
        channels: of every layer; 32 is the published size.

    Raises:
        ValueError: an argument is out of its range.

    Examples:
        >>> import torch
        >>> outputs = MultiScaleSTFTDiscriminator(2, window_lengths=[256, 128], channels=4)(torch.randn(3, 2, 800))
        >>> [output.logits.shape[0] for output in outputs]
        [3, 3]
    """

    def __init__(
        self,
        in_channels: int = 1,
        *,
        window_lengths: Sequence[int] = (2048, 1024, 512, 256, 128),
        channels: int = 32,
    ) -> None:
        if not window_lengths:
            raise ValueError("window_lengths is empty: name at least one window, in samples")
        members = (_STFTDiscriminator(in_channels, length, channels) for length in window_lengths)
        super().__init__(in_channels, channels, members)


class _STFTDiscriminator(nn.Module):
    def __init__(self, in_channels: int, window_length: int, channels: int) -> None:
        super().__init__()
        self.spectrum = ComplexPlanes(window_length)
        first = normalized_conv2d(2 * in_channels, channels, (3, 9))
        strided = [
            normalized_conv2d(channels, channels, (3, 9), stride=(1, 2), dilation=(dilation, 1))
            for dilation in (1, 2, 4)
        ]
        self.layers = nn.ModuleList([first, *strided, normalized_conv2d(channels, channels, (3, 3))])
        self.to_logits = normalized_conv2d(channels, 1, (3, 3))

    def forward(self, wave: Tensor) -> DiscriminatorOutput:
        features = hidden_layers(self.layers, self.spectrum(wave), slope=0.2)
        return DiscriminatorOutput(self.to_logits(features[-1]).flatten(1), features)
