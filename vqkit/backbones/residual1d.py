"""The residual unit of SEANet."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from vqkit.backbones.temporal import Activation, Convolution1d, Interval, TemporalSequence


class ResidualUnit1d(nn.Module):
    """skip(x) + convolution of one tap(activation(dilated convolution(activation(x)))).

    Args:
        channels: width.
        kernel_size: taps of the dilated convolution.
        dilation: samples between its taps.
        compress: the inner width is `channels // compress`, at least 1.
        activation: builds one for a width.
        convolution: builds a `Convolution1d`, with what all of a model share: sides, padding, normalization.
        convolved_skip: whether the skip is a convolution of one tap, as in EnCodec's released models; otherwise it is
            the identity, as in SEANet, DAC and Mimi.
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
        convolution: Callable[..., Convolution1d],
        convolved_skip: bool,
        gain: float,
    ) -> None:
        super().__init__()
        inner = max(channels // compress, 1)
        self.branch = TemporalSequence(
            activation(channels),
            convolution(channels, inner, kernel_size, dilation=dilation),
            activation(inner),
            convolution(inner, channels, 1, gain=gain),
        )
        self.skip = convolution(channels, channels, 1) if convolved_skip else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) to the same."""
        shaped = self.branch(x)  # first, so that a convolved skip does not wait in memory
        skipped = self.skip(x)
        if torch.is_grad_enabled() or skipped.dtype != shaped.dtype or _is_heard(self.branch):
            return skipped + shaped
        return shaped.add_(skipped)  # the same numbers, in memory that the last convolution has taken

    def reach(self, first: int, last: int) -> Interval | None:
        """Inputs on which the outputs `first` to `last` depend; the skip sees no more than the branch."""
        return self.branch.reach(first, last)


def _is_heard(module: nn.Module) -> bool:
    """Whether hooks see what the module or a part of it gives: they may keep it, so that nothing may be added to it."""
    return bool(of_all_modules._global_forward_hooks) or any(part._forward_hooks for part in module.modules())
