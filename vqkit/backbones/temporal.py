"""Layers along time, (B, C, T), causal or centred, each of which knows what it looks at.

The two forms differ in nothing but where the padding goes (`padding`): all in front, or half of it; what it holds is in
`edges`. Every layer has `reach(first, last)`, the inputs on which the outputs `first` to `last` depend, or None where
that is without bound; from those of its layers follows how far a model looks (`backbones.conv1d`), without running it.
"""

import math
from collections.abc import Callable
from typing import TypeVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vqkit.backbones.edges import PADDING_MODES, PaddingMode
from vqkit.backbones.protocol import properties_of
from vqkit.backbones.streaming import StreamingLayer

Interval = tuple[int, int]
"""First and last index along time, both included; index 0 is the first of a recording, negative ones come before."""

Convolution = TypeVar("Convolution", nn.Conv1d, nn.ConvTranspose1d)

Activation = Callable[[int], nn.Module]
"""Builds an activation for a number of channels; it acts on every time step by itself."""

Normalization = Callable[[int], nn.Module]
"""Builds a norm of a number of channels; its `causal` is False and its `reach` None where it goes over time."""


def padding(total: int, causal: bool, *, odd_zero_first: bool = True) -> tuple[int, int]:
    """How many of `total` zeros go in front and behind: all in front, or half of them.

    Args:
        total: zeros.
        causal: whether all go in front.
        odd_zero_first: where the odd one of an odd total goes: in front as in DAC and EnCodec, or behind.
    """
    behind = 0 if causal else (total + (not odd_zero_first)) // 2
    return total - behind, behind


def reach_of(layer: nn.Module, first: int, last: int) -> Interval | None:
    """The layer's `reach`; one that has none acts on every time step by itself."""
    reach = getattr(layer, "reach", None)
    return (first, last) if reach is None else reach(first, last)


class FilterLayer(StreamingLayer):
    """A layer around a convolution with weight norm, which a stream computes once and not for every chunk.

    Attributes:
        convolution: holds the parameters.
        normalization: what its outputs pass; an identity with weight norm.
    """

    convolution: nn.Conv1d | nn.ConvTranspose1d
    normalization: nn.Module

    def weight(self) -> Tensor:
        """The filters as they are applied."""
        if self.stream is None:
            return self.convolution.weight
        if self.stream.weight is None:
            self.stream.weight = self.convolution.weight
        return self.stream.weight

    def _build_normalization(self, normalization: Normalization | None, channels: int) -> None:
        self.normalization = nn.Identity() if normalization is None else normalization(channels)
        if self.causal and properties_of(self.normalization).causal is False:
            raise ValueError(
                f"causal=True with normalization={type(self.normalization).__name__}, which sees later samples: build"
                " the model with causal=False, or leave normalization out, which is weight norm"
            )


class Convolution1d(FilterLayer):
    """Strided or dilated convolution with weight norm: T samples become T / stride, for any T that the stride divides.

    Where padding is not of zeros, other T do too: the last stride is filled up with it, as in EnCodec.

    Args:
        in_channels: width before.
        out_channels: width after.
        kernel_size: taps; with their dilation they span at least `stride` samples.
        stride: samples per output.
        dilation: samples between two taps.
        groups: into which channels are split, each convolved by itself; as many as channels is a depthwise convolution.
        causal: whether output t ends at input (t + 1) stride - 1; otherwise it is centred on its stride.
        odd_zero_first: see `padding`.
        padding_mode: what stands before the first and behind the last sample, see `edges`.
        normalization: builds one of the outputs from their number of channels; None: weight norm in its place.
        bias: whether outputs have one.
        gain: scale of the first weights. At 1 the output has the variance of a white input; at 0 all is zero, and there
            is no weight norm, which has no direction to keep.

    Raises:
        ValueError: if the taps do not span a stride, or the normalization of a causal one is not causal.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        causal: bool,
        odd_zero_first: bool = True,
        padding_mode: PaddingMode = "zeros",
        normalization: Normalization | None = None,
        bias: bool = True,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: expected one of {', '.join(map(repr, PADDING_MODES))}")
        self.causal = causal
        self.padding_mode: PaddingMode = padding_mode
        self.stride = stride
        self.dilation = dilation
        self.groups = groups
        self.span = (kernel_size - 1) * dilation + 1
        if self.span < stride:
            raise ValueError(f"kernel_size={kernel_size} spans {self.span} samples: expected at least stride={stride}")
        self.before, self.after = padding(self.span - stride, causal, odd_zero_first=odd_zero_first)
        self.both_ends = padding_mode == "zeros" and 0 <= self.before - self.after < stride
        convolution = nn.Conv1d(
            in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, groups=groups, bias=bias
        )
        self.convolution = started(
            convolution, in_channels // groups * kernel_size, gain, weight_normed=normalization is None
        )
        self._build_normalization(normalization, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) to (B, out_channels, T / stride)."""
        # Zeros that the convolution puts at both ends itself need no copy; it may have one behind that no output sees.
        zeros = self.before if self.stream is None and self.both_ends else 0
        if not zeros:
            missing = 0 if self.padding_mode == "zeros" else -x.shape[-1] % self.stride
            x = self.preceded(x, self.before, after=self.after + missing, mode=self.padding_mode)
        filters, bias = self.weight(), self.convolution.bias
        outputs = F.conv1d(x, filters, bias, self.stride, zeros, self.dilation, self.groups)
        return self.normalization(outputs)

    def reach(self, first: int, last: int) -> Interval | None:
        """Inputs on which the outputs `first` to `last` depend, within a recording: see `padding_mode` for its ends."""
        if reach_of(self.normalization, first, last) is None:
            return None
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
        normalization: as in `Convolution1d`; it sees all outputs of the transposed convolution, as in EnCodec, and
            those that are too many at the ends are dropped behind it.
        groups: of channels that do not see each other; weight norm is then of each input channel.
        bias: as in `Convolution1d`.
        gain: as in `Convolution1d`.

    Differs: DAC drops (stride + 1) / 2 outputs at both ends where the stride is odd, so that its last one is missing;
    all others are equal.

    Raises:
        ValueError: if there are fewer taps than the stride, or as in `Convolution1d`.
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
        normalization: Normalization | None = None,
        groups: int = 1,
        bias: bool = True,
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
        # Outputs behind those that are left when as many are dropped at both ends: the convolution gives some if asked.
        self.missing = max(stride + 2 * self.cut - kernel_size, 0)
        convolution = nn.ConvTranspose1d(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=bias
        )
        fan_in = in_channels // groups * kernel_size / stride
        self.convolution = started(
            convolution, fan_in, gain, axis=int(groups == 1), weight_normed=normalization is None
        )
        self._build_normalization(normalization, out_channels)
        self.drops = isinstance(self.normalization, nn.Identity) and self.missing < stride
        # Of inputs that a stream keeps; a norm over time cannot stream, and would see the zeros in front of the first.
        over_time = reach_of(self.normalization, 0, 0) is None
        self.before = 0 if over_time else (kernel_size - 1 - self.cut) // stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T) to (B, out_channels, T stride)."""
        weight, bias, groups = self.weight(), self.convolution.bias, self.convolution.groups
        if self.stream is None and self.drops:  # nothing is computed to be dropped
            outputs = F.conv_transpose1d(x, weight, bias, self.stride, self.cut, self.missing, groups)
            return outputs.narrow(-1, 0, x.shape[-1] * self.stride)
        # A stream keeps inputs and not the tail of the outputs, which would have the bias twice.
        x_before = self.preceded(x, self.before)
        outputs = F.conv_transpose1d(x_before, weight, bias, self.stride, groups=groups)
        return self.normalization(outputs).narrow(-1, self.cut + self.before * self.stride, x.shape[-1] * self.stride)

    def reach(self, first: int, last: int) -> Interval | None:
        """Inputs on which the outputs `first` to `last` depend."""
        if reach_of(self.normalization, first, last) is None:
            return None
        return -((self.kernel_size - 1 - self.cut - first) // self.stride), (last + self.cut) // self.stride


class TemporalSequence(nn.Sequential):
    """Layers one after the other; those without `reach` act on every time step by itself."""

    def reach(self, first: int, last: int) -> Interval | None:
        """Inputs on which the outputs `first` to `last` depend; None without bound."""
        reached: Interval | None = (first, last)
        for layer in reversed(self):
            reached = None if reached is None else reach_of(layer, *reached)
        return reached


class _Patches1d(nn.Module):
    """A layer of patches of p successive samples."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size


class ToPatches1d(_Patches1d):
    """(B, C, T) to (B, C p, T / p): p successive samples become channels."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to (B, C p, T / p)."""
        return rearrange(x, "b c (t p) -> b (c p) t", p=self.patch_size)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first * self.patch_size, (last + 1) * self.patch_size - 1


class FromPatches1d(_Patches1d):
    """(B, C p, T) to (B, C, T p), the inverse of `ToPatches1d`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C p, T) to (B, C, T p)."""
        return rearrange(x, "b (c p) t -> b c (t p)", p=self.patch_size)

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first // self.patch_size, last // self.patch_size


def started(
    convolution: Convolution, fan_in: float, gain: float, *, axis: int = 0, weight_normed: bool = True
) -> Convolution:
    """First weights, and weight norm over all axes but that of the output channels.

    Weights are normal with standard deviation gain / sqrt(fan_in) and biases 0, so that white noise keeps its variance.
    Weight norm separates the length of a filter from its direction: with Snake, whose slope and curvature grow with its
    input, training at the learning rates of audio codecs (1e-4, GAN losses) depends on it (Salimans, Kingma 2016,
    arXiv:1602.07868).

    Args:
        convolution: with `weight`, and `bias` or none.
        fan_in: products per output.
        gain: 0 gives zeros, without weight norm, which would divide 0 by 0.
        axis: of the output channels.
        weight_normed: whether there is weight norm at all.
    """
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    nn.init.normal_(convolution.weight, std=gain / math.sqrt(fan_in))
    return weight_norm(convolution, dim=axis) if gain and weight_normed else convolution
