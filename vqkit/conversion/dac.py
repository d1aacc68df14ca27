"""The Descript Audio Codec, as its authors publish it and as transformers does."""

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import nn

from vqkit.backbones.activations import SignedSnake, Tanh
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.temporal import FilterLayer
from vqkit.conversion.family import Entry, Family
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import number_of
from vqkit.conversion.weight_norm import filter_entries, filter_shape, normalization_of
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.reduction import SumOverMembers
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.tokenizers.audio import AudioTokenizer

PUBLISHED_RATES: dict[tuple[tuple[int, ...], int], int] = {
    ((2, 4, 8, 8), 9): 44100,
    ((2, 4, 8, 8), 18): 44100,
    ((2, 4, 5, 8), 32): 24000,
    ((2, 4, 5, 8), 12): 16000,
}
"""In Hz, of the strides and levels of the released models, of which the weights say nothing else."""
UNITS = 3
"""Residual units before each stride and behind it, of dilations 1, 3 and 9."""


class DACFamily(Family):
    """A DAC; subclasses name its layers, and say where its sample rate is written.

    Args:
        sample_rate: in Hz; None takes what the file says, or that of the released model of these strides and levels.

    Source: Kumar et al. 2023 (https://arxiv.org/abs/2306.06546) and its released code.
    """

    license = "mit"

    def __init__(self, sample_rate: int | None = None) -> None:
        self.sample_rate = sample_rate

    @abstractmethod
    def stated_rate(self, source: Source) -> Any:
        """The sample rate that stands beside the weights; None where there is none."""

    @abstractmethod
    def level(self, side: str, number: int) -> str:
        """A level of the "encoder" or the "decoder", counted in the order of execution."""

    @abstractmethod
    def ends(self, side: str, levels: int) -> tuple[str, str, str]:
        """Convolution before all levels, and Snake and convolution behind them."""

    @abstractmethod
    def resampling(self, side: str) -> tuple[str, str]:
        """Snake and strided convolution of a level."""

    @abstractmethod
    def unit(self, side: str, number: int) -> tuple[str, str, str, str]:
        """Snake, dilated convolution, Snake and convolution of one tap of a residual unit."""

    def build(self, source: Source) -> AudioTokenizer:
        """See `Family`."""
        quantizer = build_quantizer(source)
        sizes = self._strides(source, "encoder"), self._strides(source, "decoder")[::-1]
        rate = self._rate(source, sizes[0], quantizer.num_codebooks)
        shared: dict[str, dict[str, Any]] = {
            side: {"dim": quantizer.dim, "activation": SignedSnake, "normalization": normalization_of(source, side)}
            for side in ("encoder", "decoder")
        }
        first, last = self.ends("encoder", len(sizes[0]))[0], self.ends("decoder", len(sizes[1]))[2]
        channels, in_channels, _ = filter_shape(source, first)
        out_channels, width, _ = filter_shape(source, last)
        return AudioTokenizer(
            ConvEncoder1d(**shared["encoder"], in_channels=in_channels, channels=channels, strides=sizes[0]),
            quantizer,
            ConvDecoder1d(
                **shared["decoder"],
                out_channels=out_channels,
                channels=width,
                strides=sizes[1],
                drops_odd_last=True,
                output_activation=Tanh,
            ),
            sample_rate=rate,
        )

    def entries(self, source: Source, tokenizer: Any) -> Iterator[Entry]:
        """See `Family`."""
        for side in ("encoder", "decoder"):
            backbone = getattr(tokenizer, side)
            levels = len(backbone.recorded_arguments()["strides"])
            ours = (pair for pair in backbone.named_modules() if isinstance(pair[1], FilterLayer | SignedSnake))
            for (path, layer), name in zip(ours, self._order(side, levels), strict=True):
                yield from layer_entries(source, f"{side}.{path}", layer, name)
        yield from quantizer_entries(source, tokenizer.quantizer)

    def _order(self, side: str, levels: int) -> Iterator[str]:
        """Names of the layers in the order of execution."""
        first, snake, last = self.ends(side, levels)
        units = [name for number in range(UNITS) for name in self.unit(side, number)]
        resampling = self.resampling(side)
        inside = [*units, *resampling] if side == "encoder" else [*resampling, *units]
        yield first
        for number in range(levels):
            yield from (f"{self.level(side, number)}.{name}" for name in inside)
        yield from (snake, last)

    def _strides(self, source: Source, side: str) -> list[int]:
        """In the order of execution."""
        levels = number_of(lambda number: source.has_below(self.level(side, number)))
        if not levels:
            raise ValueError(f"there is no entry below {self.level(side, 0)!r}: expected the first level")
        names = [f"{self.level(side, number)}.{self.resampling(side)[1]}" for number in range(levels)]
        return [stride_of(source, name) for name in names]

    def _rate(self, source: Source, strides: list[int], levels: int) -> int:
        known = self.sample_rate, self.stated_rate(source), PUBLISHED_RATES.get((tuple(strides), levels))
        said = next((rate for rate in known if rate is not None), None)
        if said is None:
            raise ValueError(
                f"nothing says its sample rate, and no released model has strides {strides} and {levels} levels: "
                f"expected family={type(self).__name__}(sample_rate=...)"
            )
        if type(said) is not int or said < 1:
            raise ValueError(f"its sample rate is {said!r}: expected a positive whole number of Hz")
        return said


class DAC(DACFamily):
    """The authors' layout: `weights_44khz_8kbps.pth` and its like, state dict and metadata in one file."""

    name = "DAC"
    telltale = "decoder.model.1.block.0.alpha"

    def stated_rate(self, source: Source) -> Any:
        """Of the arguments of the model, in the metadata of the file."""
        arguments = source.metadata.get("kwargs")
        return arguments.get("sample_rate") if isinstance(arguments, dict) else None

    def level(self, side: str, number: int) -> str:
        """See `DACFamily`."""
        return f"{_sequence(side)}.{number + 1}.block"

    def ends(self, side: str, levels: int) -> tuple[str, str, str]:
        """See `DACFamily`."""
        return f"{_sequence(side)}.0", f"{_sequence(side)}.{levels + 1}", f"{_sequence(side)}.{levels + 2}"

    def resampling(self, side: str) -> tuple[str, str]:
        """See `DACFamily`."""
        return ("3", "4") if side == "encoder" else ("0", "1")

    def unit(self, side: str, number: int) -> tuple[str, str, str, str]:
        """See `DACFamily`."""
        place = number if side == "encoder" else number + 2
        return f"{place}.block.0", f"{place}.block.1", f"{place}.block.2", f"{place}.block.3"


class TransformersDAC(DACFamily):
    """The layout of transformers: folder of `DacModel.save_pretrained`, with weight norm folded or not."""

    name = "DAC of transformers"
    telltale = "encoder.block.0.res_unit1.snake1.alpha"

    def stated_rate(self, source: Source) -> Any:
        """Of `config.json`."""
        return source.config.get("sampling_rate")

    def level(self, side: str, number: int) -> str:
        """See `DACFamily`."""
        return f"{side}.block.{number}"

    def ends(self, side: str, levels: int) -> tuple[str, str, str]:
        """See `DACFamily`."""
        return f"{side}.conv1", f"{side}.snake1", f"{side}.conv2"

    def resampling(self, side: str) -> tuple[str, str]:
        """See `DACFamily`."""
        return "snake1", "conv1" if side == "encoder" else "conv_t1"

    def unit(self, side: str, number: int) -> tuple[str, str, str, str]:
        """See `DACFamily`."""
        name = f"res_unit{number + 1}"
        return f"{name}.snake1", f"{name}.conv1", f"{name}.snake2", f"{name}.conv2"


def _sequence(side: str) -> str:
    return "encoder.block" if side == "encoder" else "decoder.model"


def stride_of(source: Source, name: str) -> int:
    """The stride of a convolution, which has twice as many taps.

    Raises:
        ValueError: it has an odd number of taps.
    """
    taps = filter_shape(source, name)[2]
    if taps % 2:
        raise ValueError(f"{name!r} has {taps} taps: expected twice its stride")
    return taps // 2


def layer_entries(source: Source, target: str, layer: nn.Module, name: str) -> Iterator[Entry]:
    """What a convolution or a Snake is taken from.

    Args:
        source: the weights.
        target: name of the layer in the state.
        layer: the layer.
        name: of the published one.
    """
    if isinstance(layer, SignedSnake):
        yield Entry(f"{target}.frequency", {f"{name}.alpha": (1, len(layer.frequency), 1)})
    else:
        yield from filter_entries(source, target, layer, name)


def build_quantizer(source: Source) -> ResidualQuantizer:
    """The residual levels, each with linear maps around codes that are chosen by angle, and the losses of the training.

    Raises:
        ValueError: an entry that says a size is missing.
    """
    levels = number_of(lambda number: source.has_below(level_name(number)))
    return ResidualQuantizer(
        partial(Quantizer, **code_sizes(source)),
        max(levels, 1),
        estimator=None,
        dropout=0.5,
        reduction=SumOverMembers(),
        channel_dim=1,
    )


def code_sizes(source: Source) -> dict[str, Any]:
    """Arguments of the quantizer of one level, by the shapes of the first."""
    size, codebook_dim = source.shape(f"{level_name(0)}.codebook.weight", 2)
    dim = filter_shape(source, f"{level_name(0)}.in_proj")[1]
    losses = [Commitment(0.25), CodebookLoss(1.0)]
    return {"method": "factorized", "dim": dim, "codebook_size": size, "codebook_dim": codebook_dim, "losses": losses}


def quantizer_entries(source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
    """What the levels of a quantizer are taken from."""
    stages: Any = quantizer.get_submodule("stages")
    for number, stage in enumerate(stages):
        target, name = f"quantizer.stages.{number}", level_name(number)
        yield from filter_entries(source, f"{target}.project_in", stage.project_in, f"{name}.in_proj")
        yield from filter_entries(source, f"{target}.project_out", stage.project_out, f"{name}.out_proj")
        yield Entry(f"{target}.codebook.vectors", {f"{name}.codebook.weight": tuple(stage.codebook.vectors.shape)})


def level_name(number: int) -> str:
    """Of a level of the quantizer."""
    return f"quantizer.quantizers.{number}"
