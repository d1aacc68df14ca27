"""The Descript Audio Codec, as its authors publish it and as transformers does."""

from abc import abstractmethod
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from vqkit.backbones.activations import SignedSnake, Tanh
from vqkit.backbones.block_attention import BlockAttention1d
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.noise1d import NoiseInjection1d
from vqkit.backbones.temporal import FilterLayer
from vqkit.conversion.family import Entry, Family, named_entries
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
SIDES = ("encoder", "decoder")
LAYERS = (FilterLayer, SignedSnake, NoiseInjection1d, BlockAttention1d)
"""Those with names: of DAC the first two, of SNAC all."""
ATTENTION = {"norm.": "norm.", "query_key_value.": "to_qkv.", "output.": "to_out."}
"""Names of the parts of SNAC's attention, ours and theirs."""


class SideNames(NamedTuple):
    """Names of the layers of an encoder or a decoder, in the order of execution.

    Attributes:
        first: those before all levels.
        levels: of each level.
        inside: those of a level, behind its name.
        resampling: its strided convolution, one of these.
        last: those behind all levels.
    """

    first: list[str]
    levels: list[str]
    inside: list[str]
    resampling: str
    last: list[str]

    def order(self) -> Iterator[str]:
        """All layers."""
        yield from self.first
        for level in self.levels:
            yield from (f"{level}.{name}" for name in self.inside)
        yield from self.last

    def strides(self, source: Source) -> list[int]:
        """The stride of each level, whose convolution has twice as many taps.

        Raises:
            ValueError: there is no level, or one has an odd number of taps.
        """
        if not self.levels:
            raise ValueError(f"there is no level behind {self.first[-1]!r}: expected one for each stride")
        taps = {name: filter_shape(source, name)[2] for name in (f"{n}.{self.resampling}" for n in self.levels)}
        for name, number in taps.items():
            if number % 2:
                raise ValueError(f"{name!r} has {number} taps: expected twice its stride")
        return [number // 2 for number in taps.values()]


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
    def names(self, source: Source, side: str) -> SideNames:
        """Of the layers of the "encoder" or the "decoder"."""

    def build(self, source: Source) -> AudioTokenizer:
        """See `Family`."""
        quantizer = build_quantizer(source)
        inward, outward = (self.names(source, side) for side in SIDES)
        strides = inward.strides(source)
        rate = self._rate(source, strides, quantizer.num_codebooks)
        shared: dict[str, dict[str, Any]] = {
            side: {"dim": quantizer.dim, "activation": SignedSnake, "normalization": normalization_of(source, side)}
            for side in SIDES
        }
        channels, in_channels, _ = filter_shape(source, inward.first[0])
        out_channels, width, _ = filter_shape(source, outward.last[-1])
        return AudioTokenizer(
            ConvEncoder1d(**shared["encoder"], in_channels=in_channels, channels=channels, strides=strides),
            quantizer,
            ConvDecoder1d(
                **shared["decoder"],
                out_channels=out_channels,
                channels=width,
                strides=outward.strides(source)[::-1],
                drops_odd_last=True,
                output_activation=Tanh,
            ),
            sample_rate=rate,
        )

    def entries(self, source: Source, tokenizer: Any) -> Iterator[Entry]:
        """See `Family`."""
        for side in SIDES:
            yield from side_entries(source, side, tokenizer.get_submodule(side), self.names(source, side))
        yield from quantizer_entries(source, tokenizer.quantizer)

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

    def names(self, source: Source, side: str) -> SideNames:
        """See `DACFamily`."""
        if side == "encoder":
            return sequence_names(source, "encoder.block", 1, [*units_at(0), "3", "4"], "4", 2)
        return sequence_names(source, "decoder.model", 1, ["0", "1", *units_at(2)], "1", 2)


class TransformersDAC(DACFamily):
    """The layout of transformers: folder of `DacModel.save_pretrained`, with weight norm folded or not."""

    name = "DAC of transformers"
    telltale = "encoder.block.0.res_unit1.snake1.alpha"

    def stated_rate(self, source: Source) -> Any:
        """Of `config.json`."""
        return source.config.get("sampling_rate")

    def names(self, source: Source, side: str) -> SideNames:
        """See `DACFamily`."""
        number = number_of(lambda level: source.has_below(f"{side}.block.{level}"))
        parts = ("snake1", "conv1", "snake2", "conv2")
        units = [f"res_unit{unit + 1}.{part}" for unit in range(UNITS) for part in parts]
        resampling = ["snake1", "conv1" if side == "encoder" else "conv_t1"]
        inside = [*units, *resampling] if side == "encoder" else [*resampling, *units]
        levels = [f"{side}.block.{level}" for level in range(number)]
        return SideNames([f"{side}.conv1"], levels, inside, resampling[1], [f"{side}.snake1", f"{side}.conv2"])


def sequence_names(
    source: Source, name: str, before: int, inside: list[str], resampling: str, behind: int
) -> SideNames:
    """Names of layers that are one sequence, as DAC and SNAC have them.

    Args:
        source: the weights.
        name: of the sequence.
        before: how many layers stand before the levels.
        inside: see `SideNames`.
        resampling: see `SideNames`.
        behind: how many layers stand behind the levels.
    """
    number = number_of(lambda level: source.has_below(f"{name}.{before + level}.block"))
    layers = [f"{name}.{place}" for place in range(before + number + behind)]
    levels = [f"{layer}.block" for layer in layers[before : before + number]]
    return SideNames(layers[:before], levels, inside, resampling, layers[before + number :])


def units_at(place: int) -> list[str]:
    """Snakes and convolutions of the residual units of a level, of which the first is at `place` of a sequence."""
    return [f"{place + unit}.block.{part}" for unit in range(UNITS) for part in range(4)]


def side_entries(source: Source, side: str, backbone: nn.Module, names: SideNames) -> Iterator[Entry]:
    """What each weight of an encoder or a decoder is taken from."""
    ours = [pair for pair in backbone.named_modules() if isinstance(pair[1], LAYERS)]
    for (path, layer), name in zip(ours, names.order(), strict=True):
        yield from _layer_entries(source, f"{side}.{path}", layer, name)


def _layer_entries(source: Source, target: str, layer: nn.Module, name: str) -> Iterator[Entry]:
    if isinstance(layer, SignedSnake):
        yield Entry(f"{target}.frequency", {f"{name}.alpha": (1, len(layer.frequency), 1)})
    elif isinstance(layer, NoiseInjection1d):
        yield from filter_entries(source, f"{target}.map", layer.map, f"{name}.linear")
    elif isinstance(layer, BlockAttention1d):
        yield from named_entries(target, layer, name, ATTENTION)
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
