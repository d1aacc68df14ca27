"""Layers along time, (B, C, T), causal or centred, each of which knows what it looks at.

The two forms differ in nothing but where the zeros go (`padding`): all in front, or half of them. Every layer has
`reach(first, last)`, the inputs on which the outputs `first` to `last` depend; from those of its layers follows how far
a model looks (`backbones.conv1d`), without running it.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vqkit.backbones.streaming import StreamingLayer

Interval = tuple[int, int]
"""First and last index along time, both included; index 0 is the first of a recording, negative ones come before."""

Convolution = TypeVar("Convolution", nn.Conv1d, nn.ConvTranspose1d)

Activation = Callable[[int], nn.Module]
"""Builds an activation for a number of channels; it acts on every time step by itself."""


def padding(total: int, causal: bool, *, odd_zero_first: bool = True) -> tuple[int, int]:
    """How many of `total` zeros go in front and behind: all in front, or half of them.

    Args:
        total: zeros.
        causal: whether all go in front.
        odd_zero_first: where the odd one of an odd total goes: in front as in DAC and EnCodec, or behind.
    """
    behind = 0 if causal else (total + (not odd_zero_first)) // 2
    return total - behind, behind


class FilterLayer(StreamingLayer):
    """A layer around a convolution with weight norm, which a stream computes once and not for every chunk.

    Attributes:
        convolution: holds the parameters.
    """

    convolution: nn.Conv1d | nn.ConvTranspose1d

    def weight(self) -> Tensor:
        """The filters as they are applied."""
        if self.stream is None:
            return self.convolution.weight
        if self.stream.weight is None:
            self.stream.weight = self.convolution.weight
        return self.stream.weight


class Convolution1d(FilterLayer):
    """Strided or dilated convolution with weight norm: T samples become T / stride, for any T that the stride divides.

    Args:
        in_channels: width before.
        out_channels: width after.
        kernel_size: taps; with their dilation they span at least `stride` samples.
        stride: samples per output.
        dilation: samples between two taps.
        causal: whether output t ends at input (t + 1) stride - 1; otherwise it is centred on its stride.
        odd_zero_first: see `padding`.
        gain: scale of the first weights. At 1 the output has the variance of a white input; at 0 all is zero, and there
            is no weight norm, which has no direction to keep.

    Raises:
        ValueError: if the taps do not span a stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        causal: bool,
        odd_zero_first: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.causal = causal
        self.stride = stride
        self.dilation = dilation
        self.span = (kernel_size - 1) * dilation + 1
        if self.span < stride:
            raise ValueError(f"kernel_size={kernel_size} spans {self.span} samples: expected at least stride={stride}")
        self.before, self.after = padding(self.span - stride, causal, odd_zero_first=odd_zero_first)
        convolution = nn.Conv1d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation)
        self.convolution = started(convolution, in_channels * kernel_size, gain)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) to (B, out_channels, T / stride)."""
        x = self.preceded(x, self.before, after=self.after)
        return F.conv1d(x, self.weight(), self.convolution.bias, self.stride, dilation=self.dilation)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first * self.stride - self.before, last * self.stride - self.before + self.span - 1


class Deconvolution1d(FilterLayer):
    """Transposed convolution with weight norm, the mirror of `Convolution1d`: T samples become T stride.

    Weight norm is of each output channel, as in a convolution; PyTorch's own default takes the first axis, which is
    that of the inputs here.

    Args:
        in_channels: width before.
        out_channels: width after.
        kernel_size: taps, at least `stride`.
        stride: outputs per input.
        causal: whether input t begins to matter at output t stride; otherwise it is centred on it.
        odd_zero_first: as in `Convolution1d`.
        gain: as in `Convolution1d`.

    Differs: DAC drops (stride + 1) / 2 outputs at both ends where the stride is odd, so that its last one is missing;
    all others are equal.

    Raises:
        ValueError: if there are fewer taps than the stride.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        causal: bool,
        odd_zero_first: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if kernel_size < stride:
            raise ValueError(f"kernel_size={kernel_size}: expected at least stride={stride}, or outputs stay empty")
        self.causal = causal
        self.stride = stride
        self.kernel_size = kernel_size
        # Outputs of the full convolution that are dropped in front; centred, this is the transpose of `Convolution1d`.
        self.cut = 0 if causal else padding(kernel_size - stride, causal, odd_zero_first=odd_zero_first)[0]
        self.before = (kernel_size - 1 - self.cut) // stride
        convolution = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride=stride)
        self.convolution = started(convolution, in_channels * kernel_size / stride, gain, axis=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) to (B, out_channels, T stride)."""
        # A stream keeps inputs and not the tail of the outputs, which would have the bias twice.
        x_before = self.preceded(x, self.before)
        outputs = F.conv_transpose1d(x_before, self.weight(), self.convolution.bias, self.stride)
        return outputs.narrow(-1, self.cut + self.before * self.stride, x.shape[-1] * self.stride)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return -((self.kernel_size - 1 - self.cut - first) // self.stride), (last + self.cut) // self.stride


class TemporalSequence(nn.Sequential):
    """Layers one after the other; those without `reach` act on every time step by itself."""

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        for layer in reversed(self):
            reach = getattr(layer, "reach", None)
            if reach is not None:
                first, last = reach(first, last)
        return first, last


class ResidualUnit1d(nn.Module):
    """x + convolution of one tap(activation(dilated convolution(activation(x)))).

    Args:
        channels: width.
        kernel_size: taps of the dilated convolution.
        dilation: samples between its taps.
        compress: the inner width is `channels // compress`, at least 1.
        activation: builds one for a width.
        causal: as in `Convolution1d`.
        odd_zero_first: as in `Convolution1d`.
        gain: scale of the branch at the start.

    Source: SEANet (Tagliasacchi et al. 2020, arXiv:2009.02095).
    """

    def __init__(
        self,
        channels: int,
        *,
        kernel_size: int,
        dilation: int,
        compress: int,
        activation: Activation,
        causal: bool,
        odd_zero_first: bool,
        gain: float,
    ) -> None:
        super().__init__()
        inner = max(channels // compress, 1)
        self.branch = TemporalSequence(
            activation(channels),
            Convolution1d(
                channels, inner, kernel_size, dilation=dilation, causal=causal, odd_zero_first=odd_zero_first
            ),
            activation(inner),
            Convolution1d(inner, channels, 1, causal=causal, gain=gain),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) to the same."""
        return x + self.branch(x)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return self.branch.reach(first, last)


class ToPatches1d(nn.Module):
    """(B, C, T) to (B, C p, T / p): p successive samples become channels.

    Args:
        patch_size: p.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C p, T / p)."""
        return rearrange(x, "b c (t p) -> b (c p) t", p=self.patch_size)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first * self.patch_size, (last + 1) * self.patch_size - 1


class FromPatches1d(nn.Module):
    """(B, C p, T) to (B, C, T p), the inverse of `ToPatches1d`.

    Args:
        patch_size: p.
    """

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C p, T) to (B, C, T p)."""
        return rearrange(x, "b (c p) t -> b c (t p)", p=self.patch_size)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first // self.patch_size, last // self.patch_size


def started(convolution: Convolution, fan_in: float, gain: float, *, axis: int = 0) -> Convolution:
    """First weights, and weight norm over all axes but that of the output channels.

    Weights are normal with standard deviation gain / sqrt(fan_in) and biases 0, so that white noise keeps its variance.
    Weight norm separates the length of a filter from its direction: with Snake, whose slope and curvature grow with its
    input, training at the learning rates of audio codecs (1e-4, GAN losses) depends on it (Salimans, Kingma 2016,
    arXiv:1602.07868).

    Args:
        convolution: with `weight` and `bias`.
        fan_in: products per output.
        gain: 0 gives zeros, without weight norm, which would divide 0 by 0.
        axis: of the output channels.
    """
    nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    nn.init.normal_(convolution.weight, std=gain / math.sqrt(fan_in))
    return weight_norm(convolution, dim=axis) if gain else convolution
