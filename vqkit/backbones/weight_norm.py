"""Weight norm once a model is trained: filters that are stored as they are applied.

Weight norm is for training (see `temporal.started`). Afterwards v g / |v| is the same at every call, and to compute it
takes as long as to convolve a few frames with it. A model without it is built with `normalization=PlainFilters`; `bake`
makes one of a model that was trained with it.
"""

from collections.abc import Iterator

from torch import nn
from torch.nn.utils import parametrize

from vqkit.backbones.temporal import FilterLayer
from vqkit.saving.config import Configured

SIZES = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
"""Arguments of a convolution that has neither padding nor bias."""


class PlainFilters(Configured, nn.Identity):
    """For `normalization=...` of a backbone of sound: no weight norm, and no norm behind the convolutions either.

    So are Mimi, and DAC as transformers has it: their files hold filters alone.

    Args:
        channels: not needed, taken since every normalization is.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()


class WeightNormed(Configured):
    """A backbone of sound that takes `normalization`, where None is weight norm."""

    def fold_weight_norm(self) -> None:
        """Store the filters as they are applied, bit for bit, here and in what `to_config` writes.

        Filters inside of parts that have a configuration of their own are theirs to fold. Nothing happens where there
        is no weight norm.
        """
        if self.recorded_arguments()["normalization"] is not None:
            return
        assert isinstance(self, nn.Module)
        for layer in _own_filters(self):
            layer.convolution = _plain(layer.convolution)
            layer.normalization = PlainFilters(layer.convolution.out_channels)
        self.record(normalization=PlainFilters)


def _own_filters(module: nn.Module) -> Iterator[FilterLayer]:
    for child in module.children():
        if isinstance(child, FilterLayer):
            yield child
        elif not isinstance(child, Configured):
            yield from _own_filters(child)


def _plain(convolution: nn.Conv1d | nn.ConvTranspose1d) -> nn.Conv1d | nn.ConvTranspose1d:
    """A convolution of the same filters. It is a new one: a copy of one with weight norm shares the class with it."""
    if not parametrize.is_parametrized(convolution, "weight"):
        return convolution
    kind = nn.ConvTranspose1d if isinstance(convolution, nn.ConvTranspose1d) else nn.Conv1d
    plain = kind(**{name: getattr(convolution, name) for name in SIZES}, bias=False, device="meta")
    trained = any(parameter.requires_grad for name, parameter in convolution.named_parameters() if name != "bias")
    plain.weight = nn.Parameter(convolution.weight.detach(), requires_grad=trained)
    plain.bias = convolution.bias
    return plain.train(convolution.training)
