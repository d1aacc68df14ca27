"""Encoder and decoder of SNAC: the layers of DAC with depthwise convolutions, attention in windows, and noise.

Source: Siuzdak et al. 2024 (SNAC, arXiv:2410.14411), sec. 3, with the sizes of the released code; what they share with
DAC is Kumar et al. 2023 (arXiv:2306.06546).
Differs: residual branches start scaled down with their number, so that the variance does not grow with depth; weight
norm of output channels in transposed convolutions too; the decoder adds noise in training, and later where it is asked
to (`noise1d`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from vqkit.backbones.activations import SignedSnake, Tanh
from vqkit.backbones.block_attention import BlockAttention1d
from vqkit.backbones.noise1d import NoiseInjection1d
from vqkit.backbones.protocol import check_waves, check_whole_frames
from vqkit.backbones.residual1d import ResidualUnit1d
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.temporal import (
    Activation,
    Convolution1d,
    Deconvolution1d,
    Interval,
    Normalization,
    TemporalSequence,
)
from vqkit.backbones.weight_norm import WeightNormed

TAPS = 7
"""Of all depthwise convolutions, and of those next to the audio."""
DILATIONS = (1, 3, 9)
"""Of the residual units of a level."""


class DepthwiseBackbone(WeightNormed, nn.Module):
    """What encoder and decoder have in common.

    Attributes are those of `vqkit.backbones.protocol.BackboneProperties`; there are several
    `frames_per_window` with attention alone.
    """

    channel_dim = 1
    causal = False
    fills_windows = True

    def __init__(self, dim: int, strides: Sequence[int], window_frames: int | None) -> None:
        super().__init__()
        check_positive(dim=dim)
        if any(stride < 1 for stride in strides):
            raise ValueError(f"strides={strides!r}: expected positive numbers, those next to the audio first")
        self.dim = dim
        self.downsampling_factor = math.prod(strides)
        self.frames_per_window = window_frames or 1
        self._window_frames = window_frames

    def _attention(self, width: int) -> list[nn.Module]:
        if self._window_frames is None:
            return []
        return [BlockAttention1d(width, window_frames=self._window_frames)]


class DepthwiseEncoder1d(DepthwiseBackbone):
    """Audio (B, C, T) to latents (B, dim, T / f), f the product of the strides; the width doubles with each.

    The defaults are SNAC at 24 kHz. At 32 and 44.1 kHz it has 64 channels, strides (2, 3, 8, 8) and windows of 32.

    Args:
        in_channels: C.
        channels: width at the sample rate; the latents have `dim` = channels * 2^len(strides).
        strides: of the downsampling convolutions, those next to the audio first.
        window_frames: frames that attend to each other before the last convolution; None: no attention.
        activation: builds an activation for a width; it may not mix time steps.
        normalization: None for weight norm, or `PlainFilters`.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if T is not a positive multiple of f.

    Examples:
        >>> DepthwiseEncoder1d(channels=4, strides=(2, 5))(torch.randn(1, 1, 400)).shape
        torch.Size([1, 16, 40])
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        channels: int = 48,
        strides: Sequence[int] = (2, 4, 8, 8),
        window_frames: int | None = None,
        activation: Activation = SignedSnake,
        normalization: Normalization | None = None,
    ) -> None:
        check_positive(in_channels=in_channels, channels=channels)
        super().__init__(channels * 2 ** len(strides), strides, window_frames)
        self.in_channels = in_channels
        convolution = partial(Convolution1d, causal=False, normalization=normalization)
        units = _residual_units(len(strides), activation, convolution)
        layers: list[nn.Module] = [convolution(in_channels, channels, TAPS)]
        for level, stride in enumerate(strides):
            width = channels * 2**level
            layers += [*units(width), activation(width), convolution(width, 2 * width, 2 * stride, stride=stride)]
        layers += self._attention(self.dim)
        layers += [convolution(self.dim, self.dim, TAPS, groups=self.dim)]
        self.layers = TemporalSequence(*layers)
        first, last = _reach(self.layers, 0)
        self.context = -first, last - (self.downsampling_factor - 1)

    def forward(self, waves: Tensor) -> Tensor:
        """Latents (B, dim, T / f) of audio (B, C, T) in [-1, 1]."""
        check_waves(waves, self.in_channels)
        check_whole_frames(waves, self.downsampling_factor)
        return self.layers(waves)


class DepthwiseDecoder1d(DepthwiseBackbone):
    """Latents (B, dim, frames) to audio (B, C, frames * f) in [-1, 1]; the width halves with each stride.

    The defaults are SNAC at 24 kHz. At 32 and 44.1 kHz it has 96 channels, strides (2, 3, 8, 8) and windows of 32.

    Args:
        out_channels: C.
        dim: channels of the latents.
        channels: width at the sample rate; the latents are first made channels * 2^len(strides) wide.
        strides: of the upsampling convolutions, those next to the audio first.
        window_frames: frames that attend to each other behind the first convolutions; None: no attention.
        injects_noise: whether each level has a `NoiseInjection1d` behind its transposed convolution.
        activation: builds an activation for a width; it may not mix time steps.
        normalization: None for weight norm, or `PlainFilters`.

    Raises:
        ValueError: if a size is not positive or does not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int = 1,
        dim: int = 768,
        channels: int = 64,
        strides: Sequence[int] = (2, 4, 8, 8),
        window_frames: int | None = None,
        injects_noise: bool = True,
        activation: Activation = SignedSnake,
        normalization: Normalization | None = None,
    ) -> None:
        check_positive(out_channels=out_channels, channels=channels)
        super().__init__(dim, strides, window_frames)
        self.out_channels = out_channels
        convolution = partial(Convolution1d, causal=False, normalization=normalization)
        deconvolution = partial(Deconvolution1d, causal=False, normalization=normalization)
        units = _residual_units(len(strides), activation, convolution)
        widest = channels * 2 ** len(strides)
        layers: list[nn.Module] = [convolution(dim, dim, TAPS, groups=dim), convolution(dim, widest, 1)]
        layers += self._attention(widest)
        for level in reversed(range(len(strides))):
            width, stride = channels * 2**level, strides[level]
            layers.append(activation(2 * width))
            layers.append(deconvolution(2 * width, width, 2 * stride, stride=stride))
            layers += [NoiseInjection1d(width)] * injects_noise
            layers += units(width)
        layers += [activation(channels), convolution(channels, out_channels, TAPS)]
        self.output_layer = f"layers.{len(layers) - 1}"
        layers += [Tanh(out_channels)]
        self.layers = TemporalSequence(*layers)
        first, last = _reach(self.layers, self.downsampling_factor - 1)
        self.context = -first, last

    def forward(self, latents: Tensor) -> Tensor:
        """Audio (B, C, frames * f) of latents (B, dim, frames)."""
        if latents.ndim != 3 or latents.shape[1] != self.dim or not latents.shape[-1]:
            raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {self.dim}, frames), frames > 0")
        return self.layers(latents)


def _reach(layers: TemporalSequence, last: int) -> Interval:
    """Inputs on which the outputs 0 to `last` depend; no layer here is without bound."""
    reached = layers.reach(0, last)
    assert reached is not None
    return reached


def _residual_units(
    levels: int, activation: Activation, convolution: Callable[..., Convolution1d]
) -> Callable[[int], Iterator[ResidualUnit1d]]:
    """Builds the residual units of a level from its width; their branches start scaled down, as in `conv1d`."""
    gain = 1 / math.sqrt(max(levels * len(DILATIONS), 1))
    unit = partial(
        ResidualUnit1d,
        kernel_size=TAPS,
        compress=1,
        activation=activation,
        convolution=partial(_depthwise, convolution),
    )
    return lambda width: (unit(width, dilation=dilation, convolved_skip=False, gain=gain) for dilation in DILATIONS)


def _depthwise(
    convolution: Callable[..., Convolution1d], in_channels: int, out_channels: int, kernel_size: int, **options: Any
) -> Convolution1d:
    """A convolution of each channel by itself, or of one tap of all channels."""
    groups = 1 if kernel_size == 1 else in_channels
    return convolution(in_channels, out_channels, kernel_size, groups=groups, **options)
