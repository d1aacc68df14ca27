"""Convolutional encoder and decoder for audio, of the SEANet family: SoundStream, EnCodec, DAC and Mimi.

Residual units of dilated convolutions, strided convolutions of twice the stride between them while the width doubles,
and the mirror image of it. Everything is padded and keeps its length: T samples are T / f frames and back.

Source: Tagliasacchi et al. 2020 (arXiv:2009.02095) and Zeghidour et al. 2021 (SoundStream, arXiv:2107.03312), section
III; EnCodec (Defossez et al. 2022, arXiv:2210.13438), section 3.1; DAC (Kumar et al. 2023, arXiv:2306.06546).
What EnCodec's released models have and those of DAC and Mimi have not are options that are off: mirrored samples at the
ends (`padding_mode`), a convolution on the skip of a residual unit (`convolved_skip`), an LSTM in the place of Mimi's
transformer (`encodec.SkipLSTM`), and a norm behind every convolution (`normalization`, at 48 kHz).
Differs: residual branches start scaled down with their number, so that the variance does not grow with depth; weight
norm of output channels in transposed convolutions too; two additions, `patch_size` and `linear_path`, make small models
quick to train.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vqkit.backbones.activations import Snake
from vqkit.backbones.edges import PaddingMode
from vqkit.backbones.mdct import blocked_basis, lapped_basis
from vqkit.backbones.protocol import check_causal, check_waves, check_whole_frames
from vqkit.backbones.residual1d import ResidualUnit1d
from vqkit.backbones.sizes import LARGEST_SIZE, check_positive
from vqkit.backbones.tails import DropLast1d, FillLast1d, missing_at_end
from vqkit.backbones.temporal import (
    Convolution1d,
    Deconvolution1d,
    FromPatches1d,
    Interval,
    Normalization,
    TemporalSequence,
    ToPatches1d,
)
from vqkit.backbones.weight_norm import PlainFilters, WeightNormed

Layer = TypeVar("Layer", Convolution1d, Deconvolution1d)


class ConvEncoder1d(WeightNormed, nn.Module):
    """Audio (B, C, T) to latents (B, dim, T / f), with f = patch_size * the product of the strides.

    A causal encoder's frame j is final with sample (j + 1) f - 1: its algorithmic latency is one frame, f samples. It
    runs chunk by chunk in `vqkit.backbones.streaming.streaming`.

    Args:
        in_channels: C: 1 mono, 2 stereo.
        dim: channels of the latents; the quantizer's `dim`.
        channels: width at the sample rate (of patches, with `patch_size`); it doubles with each stride.
        max_channels: where doubling stops; None: nowhere.
        strides: of the downsampling convolutions, those next to the audio first; any numbers.
        dilations: of the residual units before each stride; (1, 3, 9) is DAC, (1,) EnCodec.
        kernel_size: taps of the first convolution.
        residual_kernel_size: taps of the residual units: 7 DAC, 3 EnCodec.
        latent_kernel_size: taps of the last convolution: 3 DAC, 7 EnCodec.
        compress: the inner width of a residual unit is that much smaller: 1 DAC, 2 EnCodec.
        activation: builds an activation for a width; one that mixes time steps has `reach`, as `AntiAliased` does.
        transformer: builds a module (B, width, frames) -> the same, between the last stride and the last convolution,
            a transformer or an LSTM; None: none.
        patch_size: p; p successive samples are first made p channels. 1 is the published models.
        causal: whether convolutions look back only; a transformer must then be causal too.
        linear_path: add a linear projection of each frame and its surroundings to the latents, and start the last
            convolution at zero. Training then starts from a transform that keeps the lowest frequencies, `lapped_basis`
            or, if causal, `blocked_basis`, instead of from noise. Give the decoder the same.
        odd_zero_first: whether the odd one of an odd number of zeros, which odd strides need, goes in front, as in DAC
            and EnCodec. Tokenizers of vqkit 0.1 had it behind. Give the decoder the same.
        padding_mode: what convolutions see beyond the ends of a recording: zeros, as in DAC and Mimi, the mirrored
            recording, as in EnCodec, or its first and last sample. Mirrored, the first frames depend on samples as far
            behind them as the others look back, and a stream begins with `first_frames` at once. Without zeros, T may
            be any number, if the model has no patches and no linear path: the last stride of each layer is filled up.
        convolved_skip: whether the skip of a residual unit is a convolution of one tap, as in EnCodec's released
            models; otherwise it is the identity.
        normalization: builds a norm of the outputs of each convolution, such as `encodec.TimeGroupNorm`, in the place
            of weight norm; `PlainFilters` for neither; None: weight norm.

    Attributes are those of `vqkit.backbones.protocol.BackboneProperties`; `context` is None, too, if the
    transformer does not tell (it has no `reach`).

    Raises:
        ValueError: if a size is not positive or does not fit, or parts do not fit together; in `forward` if T is not a
            positive multiple of f, unless it fills frames and no stream is open.

    Examples:
        >>> encoder = ConvEncoder1d(dim=16, channels=8, strides=(2, 5), patch_size=4)
        >>> encoder(torch.randn(1, 1, 400)).shape
        torch.Size([1, 16, 10])
    """

    channel_dim = 1

    def __init__(
        self,
        *,
        in_channels: int = 1,
        dim: int,
        channels: int = 64,
        max_channels: int | None = None,
        strides: Sequence[int] = (2, 4, 8, 8),
        dilations: Sequence[int] = (1, 3, 9),
        kernel_size: int = 7,
        residual_kernel_size: int = 7,
        latent_kernel_size: int = 3,
        compress: int = 1,
        activation: Callable[[int], nn.Module] = Snake,
        transformer: Callable[[int], nn.Module] | None = None,
        patch_size: int = 1,
        causal: bool = False,
        linear_path: bool = False,
        odd_zero_first: bool = True,
        padding_mode: PaddingMode = "zeros",
        convolved_skip: bool = False,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, dim=dim, kernel_size=kernel_size, latent_kernel_size=latent_kernel_size)
        widths = _widths(channels, max_channels, strides, patch_size)
        sides: dict[str, Any] = {"causal": causal, "odd_zero_first": odd_zero_first}
        shared = sides | {"padding_mode": padding_mode, "normalization": normalization}
        convolution: Callable[..., Convolution1d] = partial(Convolution1d, **shared)
        unit = partial(ResidualUnit1d, activation=activation, convolution=convolution, convolved_skip=convolved_skip)
        units = _residual_units(unit, len(strides), dilations, residual_kernel_size, compress)
        self.in_channels = in_channels
        self.dim = dim
        self.downsampling_factor = hop = patch_size * math.prod(strides)
        self.causal = causal
        self.fills_frames = padding_mode != "zeros" and patch_size == 1 and not linear_path
        layers: list[nn.Module] = [ToPatches1d(patch_size)] if patch_size > 1 else []
        layers.append(convolution(in_channels * patch_size, widths[0], kernel_size))
        for stride, width, wider in zip(strides, widths, widths[1:], strict=False):
            layers += [*units(width), activation(width)]
            layers.append(convolution(width, wider, 2 * stride, stride=stride))
        bottleneck = _bottleneck(transformer, widths[-1], causal)
        layers += bottleneck
        gain = _last_gain(linear_path, normalization)
        layers += [activation(widths[-1])]
        layers += [convolution(widths[-1], dim, latent_kernel_size, gain=gain)]
        self.layers = TemporalSequence(*layers)
        _check_activations(self.layers, causal)
        self.linear = _linear_path(Convolution1d, in_channels, dim, hop, sides) if linear_path else None
        self.first_frames = _first_frames(self.layers, self.downsampling_factor)
        reach = _reach(self.layers, self.linear, bottleneck, 0)
        last = self.downsampling_factor - 1
        self.context = None if reach is None else _with_mirrored((-reach[0], reach[1] - last), padding_mode)

    def forward(self, waves: Tensor) -> Tensor:
        """Latents (B, dim, T / f) of audio (B, C, T) in [-1, 1]."""
        check_waves(waves, self.in_channels)
        if not self.fills_frames or self.layers[0].stream is not None:
            check_whole_frames(waves, self.downsampling_factor)
        latents = self.layers(waves)
        return latents if self.linear is None else latents + self.linear(waves)


class ConvDecoder1d(WeightNormed, nn.Module):
    """Latents (B, dim, frames) to audio (B, C, frames * f), the mirror of `ConvEncoder1d`.

    Arguments and attributes are those of the encoder, in its order (`strides` next to the audio first) and seen from
    the audio: `kernel_size` is of the last convolution, `latent_kernel_size` of the first, behind which the transformer
    stands. What differs:

    Args:
        out_channels: C: 1 mono, 2 stereo.
        channels: width at the sample rate; DAC has 96 here, and 1536 = 16 * 96 at the latents.
        causal: whether a frame changes its own samples and later ones only; a transformer must then be causal too.
        output_activation: builds what the sum is passed through, such as `Tanh` in DAC. None, as in EnCodec and Mimi: a
            hyperbolic tangent bends loud recordings, which the linear path reconstructs as they are, and its gradient
            vanishes where they clip.
        drops_odd_last: whether a transposed convolution of odd stride drops its last sample, as in DAC at 16 and 24
            kHz. What is missing at the end of the sound, 8 samples there, is filled with zeros.

    Raises:
        ValueError: if a size is not positive or does not fit, or a causal decoder is to drop samples.
    """

    channel_dim = 1

    def __init__(
        self,
        *,
        out_channels: int = 1,
        dim: int,
        channels: int = 96,
        max_channels: int | None = None,
        strides: Sequence[int] = (2, 4, 8, 8),
        dilations: Sequence[int] = (1, 3, 9),
        kernel_size: int = 7,
        residual_kernel_size: int = 7,
        latent_kernel_size: int = 7,
        compress: int = 1,
        activation: Callable[[int], nn.Module] = Snake,
        transformer: Callable[[int], nn.Module] | None = None,
        patch_size: int = 1,
        causal: bool = False,
        linear_path: bool = False,
        output_activation: Callable[[int], nn.Module] | None = None,
        drops_odd_last: bool = False,
        odd_zero_first: bool = True,
        padding_mode: PaddingMode = "zeros",
        convolved_skip: bool = False,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__()
        check_positive(
            out_channels=out_channels, dim=dim, kernel_size=kernel_size, latent_kernel_size=latent_kernel_size
        )
        if drops_odd_last and causal:
            raise ValueError("drops_odd_last=True with causal=True: expected one, since a stream has no end to drop at")
        widths = _widths(channels, max_channels, strides, patch_size)
        sides: dict[str, Any] = {"causal": causal, "odd_zero_first": odd_zero_first}
        shared = sides | {"padding_mode": padding_mode, "normalization": normalization}
        convolution: Callable[..., Convolution1d] = partial(Convolution1d, **shared)
        deconvolution: Callable[..., Deconvolution1d] = partial(Deconvolution1d, **sides, normalization=normalization)
        unit = partial(ResidualUnit1d, activation=activation, convolution=convolution, convolved_skip=convolved_skip)
        units = _residual_units(unit, len(strides), dilations, residual_kernel_size, compress)
        self.out_channels = out_channels
        self.dim = dim
        self.downsampling_factor = hop = patch_size * math.prod(strides)
        self.causal = causal
        layers: list[nn.Module] = [convolution(dim, widths[-1], latent_kernel_size)]
        bottleneck = _bottleneck(transformer, widths[-1], causal)
        layers += bottleneck
        for level in reversed(range(len(strides))):
            width, stride = widths[level], strides[level]
            layers.append(activation(widths[level + 1]))
            layers.append(deconvolution(widths[level + 1], width, 2 * stride, stride=stride))
            layers += [DropLast1d()] if drops_odd_last and stride % 2 else []
            layers += units(width)
        gain = _last_gain(linear_path, normalization)
        layers += [activation(widths[0])]
        layers += [convolution(widths[0], out_channels * patch_size, kernel_size, gain=gain)]
        self.output_layer = f"layers.{len(layers) - 1}"
        layers += [FromPatches1d(patch_size)] if patch_size > 1 else []
        missing = missing_at_end(strides[::-1]) * patch_size if drops_odd_last else 0
        layers += [FillLast1d(missing)] if missing else []
        self.layers = TemporalSequence(*layers)
        _check_activations(self.layers, causal)
        self.linear = _linear_path(Deconvolution1d, dim, out_channels, hop, sides) if linear_path else None
        self.output_activation = output_activation(out_channels) if output_activation else nn.Identity()
        self.first_frames = _first_frames(self.layers, 1)
        reach = _reach(self.layers, self.linear, bottleneck, self.downsampling_factor - 1)
        self.context = None if reach is None else _with_mirrored((-reach[0], reach[1]), padding_mode)

    def forward(self, latents: Tensor) -> Tensor:
        """Audio (B, C, frames * f), about in [-1, 1] and not clipped, of latents (B, dim, frames)."""
        if latents.ndim != 3 or latents.shape[1] != self.dim or not latents.shape[-1]:
            raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {self.dim}, frames), frames > 0")
        waves = self.layers(latents)
        return self.output_activation(waves if self.linear is None else waves + self.linear(latents))


def _residual_units(
    unit: Callable[..., ResidualUnit1d], levels: int, dilations: Sequence[int], kernel_size: int, compress: int
) -> Callable[[int], list[nn.Module]]:
    """Builds the residual units of a level from its width."""
    check_positive(residual_kernel_size=kernel_size, compress=compress)
    if not all(1 <= dilation <= LARGEST_SIZE for dilation in dilations):
        raise ValueError(f"dilations={dilations!r}: expected positive numbers, such as (1, 3, 9)")
    # (1 + 1 / n)^n < e: n branches together do not triple the variance.
    gain = 1 / math.sqrt(max(levels * len(dilations), 1))
    unit = partial(unit, kernel_size=kernel_size, compress=compress, gain=gain)
    return lambda width: [unit(width, dilation=dilation) for dilation in dilations]


def _last_gain(linear_path: bool, normalization: Normalization | None) -> float:
    """Scale of the last convolution at the start."""
    if linear_path and normalization is not None and not isinstance(normalization(1), PlainFilters):
        raise ValueError(
            "linear_path=True starts the last convolution at zero, which a normalization behind it undoes: leave one of"
            " them out"
        )
    return 0.0 if linear_path else 1.0


def _widths(channels: int, max_channels: int | None, strides: Sequence[int], patch_size: int) -> list[int]:
    """Width at the audio and after each stride."""
    check_positive(channels=channels, patch_size=patch_size)
    if any(stride < 1 for stride in strides):
        raise ValueError(f"strides={strides!r}: expected positive numbers, those next to the audio first")
    if max_channels is not None and max_channels < channels:
        raise ValueError(f"max_channels={max_channels} is below channels={channels}: raise it, or lower channels")
    widths = [channels * 2**level for level in range(len(strides) + 1)]
    return widths if max_channels is None else [min(width, max_channels) for width in widths]


def _bottleneck(transformer: Callable[[int], nn.Module] | None, width: int, causal: bool) -> list[nn.Module]:
    if transformer is None:
        return []
    module = transformer(width)
    check_causal(causal, module)
    return [module]


def _check_activations(layers: TemporalSequence, causal: bool) -> None:
    ahead = [module for module in layers.modules() if getattr(module, "causal", True) is False]
    if causal and ahead:
        raise ValueError(
            f"causal=True with {type(ahead[0]).__name__}, which looks ahead: take an activation that acts on every time"
            " step by itself, or causal=False"
        )


def _reach(
    layers: TemporalSequence, linear: Convolution1d | Deconvolution1d | None, bottleneck: list[nn.Module], last: int
) -> Interval | None:
    """Inputs on which the outputs 0 to `last` depend; None without bound, or if the bottleneck does not tell."""
    if not all(hasattr(module, "reach") for module in bottleneck):
        return None
    reaches = [part.reach(0, last) for part in (layers, linear) if part is not None]
    known = [reach for reach in reaches if reach is not None]
    return (min(first for first, _ in known), max(end for _, end in known)) if len(known) == len(reaches) else None


def _with_mirrored(context: Interval, padding_mode: PaddingMode) -> Interval:
    """The context of frames at the ends too: what lies before the first is a mirror image of what comes after it."""
    return (max(context), max(context)) if padding_mode == "reflect" else context


def _first_frames(layers: TemporalSequence, rate: int) -> int:
    """Frames that each layer can mirror the beginning of; `rate` time steps of the first layer's input make one."""
    frames = 1
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, Convolution1d) and part.padding_mode == "reflect":
                frames = max(frames, part.before // rate + 1)
        if isinstance(layer, Convolution1d):
            rate //= layer.stride
        elif isinstance(layer, Deconvolution1d):
            rate *= layer.stride
        elif isinstance(layer, ToPatches1d):
            rate //= layer.patch_size
    return frames


def _linear_path(
    kind: type[Layer], in_channels: int, out_channels: int, hop_length: int, sides: dict[str, Any]
) -> Layer:
    """A window of two hops. A causal one starts with one alone: the second in an analysis, the first in a synthesis."""
    layer = kind(in_channels, out_channels, 2 * hop_length, stride=hop_length, gain=0.0, **sides)
    weight = layer.convolution.weight
    dim, channels, _ = weight.shape
    with torch.no_grad():
        if sides["causal"]:
            half = weight[..., hop_length:] if kind is Convolution1d else weight[..., :hop_length]
            half.copy_(blocked_basis(dim, channels, hop_length))
        else:
            weight.copy_(lapped_basis(dim, channels, hop_length))
    return layer
