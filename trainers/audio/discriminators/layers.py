"""Layers of discriminators."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vqkit.runtime import autocast_disabled


def normalized_conv2d(
    in_channels: int,
    out_channels: int,
    kernel_size: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
) -> nn.Conv2d:
    """A convolution with weight normalization; without strides the map keeps its size.

    Source: Salimans, Kingma 2016 (arXiv:1602.07868).
    """
    padding = ((kernel_size[0] - 1) * dilation[0] // 2, (kernel_size[1] - 1) * dilation[1] // 2)
    return weight_norm(nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation))


def hidden_layers(layers: Iterable[nn.Module], x: Tensor, *, slope: float) -> list[Tensor]:
    """The outputs of layers one after another, each behind a leaky rectifier."""
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    return features


class ComplexSpectrum(nn.Module):
    """Complex spectra as maps: real parts of all channels, then imaginary parts.

    Hann windows without padding, divided by the window's Euclidean length, so that noise of a given level gives
    coefficients of that level at any window length. A clip shorter than the window is padded by zeros at its right.

    Args:
        window_length: samples of window and transform.
        hop_length: samples from window to window.

    Attributes:
        bins: number of frequencies.

    Raises:
        ValueError: a length is out of its range.
    """

    window: Tensor

    def __init__(self, window_length: int, hop_length: int) -> None:
        super().__init__()
        if window_length < 4 or not 0 < hop_length <= window_length:
            raise ValueError(
                f"window_length={window_length}, hop_length={hop_length}: expected at least 4 samples, and a hop of 1 "
                "to window_length samples"
            )
        self.hop_length = hop_length
        self.bins = window_length // 2 + 1
        self.register_buffer("window", torch.hann_window(window_length), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        """(B, C, T) -> (B, 2C, frames, bins), float32: torch has no transform of bfloat16."""
        batch, length = wave.shape[0], len(self.window)
        with autocast_disabled(wave.device):
            wave = F.pad(wave.float(), (0, max(0, length - wave.shape[-1])))
            window = self.window.float()
            spectrum = torch.stft(
                wave.flatten(0, 1), length, self.hop_length, window=window, center=False, return_complex=True
            )
            spectrum = spectrum.mT.unflatten(0, (batch, -1)) / window.norm()
            planes = torch.cat([spectrum.real, spectrum.imag], dim=1)
            # Convolutions keep this layout; with few channels they take a fifth to a third less time in it on a CPU.
            return planes.contiguous(memory_format=torch.channels_last)
