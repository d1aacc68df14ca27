"""SNAC, as its author publishes it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from vqkit.backbones.activations import SignedSnake
from vqkit.backbones.block_attention import BlockAttention1d
from vqkit.backbones.depthwise1d import DepthwiseDecoder1d, DepthwiseEncoder1d
from vqkit.backbones.noise1d import NoiseInjection1d
from vqkit.backbones.temporal import FilterLayer
from vqkit.conversion.dac import UNITS, code_sizes, layer_entries, level_name, quantizer_entries, stride_of
from vqkit.conversion.family import Entry, Family
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import number_of
from vqkit.conversion.weight_norm import filter_entries, filter_shape, normalization_of
from vqkit.quantizers.multirate import MultiRateQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.reduction import SumOverMembers
from vqkit.tokenizers.audio import AudioTokenizer

FREQUENCIES = ".rel_pos.inv_freq"
"""Rotary frequencies, which are stored and not trained."""
ATTENTION = {
    "norm.weight": "norm.weight",
    "norm.bias": "norm.bias",
    "query_key_value.weight": "to_qkv.weight",
    "output.weight": "to_out.weight",
}
"""Names of the parts of the attention, ours and theirs."""
LAYERS = (FilterLayer, SignedSnake, NoiseInjection1d, BlockAttention1d)


class SNAC(Family):
    """SNAC at 24, 32 and 44.1 kHz: folder with `pytorch_model.bin`, and `config.json` that says what weights do not.

    The released decoder adds noise at each call; the tokenizer does so inside of `injected_noise` alone
    (`vqkit.backbones.noise1d`).

    Source: Siuzdak et al. 2024 (https://arxiv.org/abs/2410.14411) and its released code.
    """

    name = "SNAC"
    telltale = "encoder.block.1.block.0.block.0.alpha"
    license = "mit"

    def weights(self, source: Source) -> Source:
        """Without rotary frequencies, which have to be the usual ones.

        Raises:
            ValueError: they are others.
        """
        stored = {name for name in source.state if name.endswith(FREQUENCIES)}
        for name in stored:
            count = source.state[name].numel()
            usual = 10_000.0 ** (-torch.arange(count) / max(count, 1))
            # Of 16 bits, in which weights may be stored.
            if not torch.allclose(source.state[name].float().flatten(), usual, rtol=2**-7):
                raise ValueError(f"entry {name!r} holds other rotary frequencies than 10000^(-i / {count})")
        return replace(source, state={name: value for name, value in source.state.items() if name not in stored})

    def build(self, source: Source) -> AudioTokenizer:
        """See `Family`."""
        names = _Encoder.of(source), _Decoder.of(source)
        window = _window(source, [side.attends for side in names])
        quantizer = _quantizer(source)
        channels, in_channels, _ = filter_shape(source, names[0].first[0])
        out_channels, width, _ = filter_shape(source, names[1].last[-1])
        return AudioTokenizer(
            DepthwiseEncoder1d(
                in_channels=in_channels,
                channels=channels,
                strides=names[0].strides(source),
                window_frames=window,
                normalization=normalization_of(source, "encoder"),
            ),
            quantizer,
            DepthwiseDecoder1d(
                out_channels=out_channels,
                dim=quantizer.dim,
                channels=width,
                strides=names[1].strides(source)[::-1],
                window_frames=window,
                injects_noise=names[1].injects_noise,
                normalization=normalization_of(source, "decoder"),
            ),
            sample_rate=source.number("sampling_rate"),
        )

    def entries(self, source: Source, tokenizer: Any) -> Iterator[Entry]:
        """See `Family`."""
        for side, names in (("encoder", _Encoder.of(source)), ("decoder", _Decoder.of(source))):
            layers = [pair for pair in getattr(tokenizer, side).named_modules() if isinstance(pair[1], LAYERS)]
            for (path, layer), name in zip(layers, names.order(), strict=True):
                yield from _entries(source, f"{side}.{path}", layer, name)
        yield from quantizer_entries(source, tokenizer.quantizer)


@dataclass(frozen=True)
class _Encoder:
    """Names of the layers of the encoder.

    Attributes:
        levels: how many there are.
        attends: whether there is attention.
        injects_noise: whether there are noise layers.
    """

    levels: int
    attends: bool
    injects_noise: bool = False

    @classmethod
    def of(cls, source: Source) -> "_Encoder":
        levels = number_of(lambda number: source.has_below(f"encoder.block.{number + 1}.block"))
        return cls(levels, source.has_below(f"encoder.block.{levels + 1}.to_qkv"))

    @property
    def first(self) -> list[str]:
        """Those before all levels."""
        return ["encoder.block.0"]

    @property
    def last(self) -> list[str]:
        """Those behind all levels."""
        return [f"encoder.block.{self.levels + 1 + number}" for number in range(self.attends + 1)]

    def level(self, number: int) -> str:
        """In the order of execution."""
        return f"encoder.block.{number + 1}.block"

    def inside(self) -> list[str]:
        """The layers of a level."""
        return [*_units(0), f"{UNITS}", f"{UNITS + 1}"]

    @property
    def resampling(self) -> str:
        """The strided convolution of a level."""
        return f"{UNITS + 1}"

    def strides(self, source: Source) -> list[int]:
        """In the order of execution."""
        return [stride_of(source, f"{self.level(number)}.{self.resampling}") for number in range(self.levels)]

    def order(self) -> Iterator[str]:
        """The layers in the order of execution."""
        yield from self.first
        for number in range(self.levels):
            yield from (f"{self.level(number)}.{name}" for name in self.inside())
        yield from self.last


@dataclass(frozen=True)
class _Decoder(_Encoder):
    """Names of the layers of the decoder; see `_Encoder`."""

    @classmethod
    def of(cls, source: Source) -> "_Decoder":
        attends = source.has_below("decoder.model.2.to_qkv")
        levels = number_of(lambda number: source.has_below(f"decoder.model.{2 + attends + number}.block"))
        return cls(levels, attends, source.has_below(f"decoder.model.{2 + attends}.block.2.linear"))

    @property
    def first(self) -> list[str]:
        return [f"decoder.model.{number}" for number in range(2 + self.attends)]

    @property
    def last(self) -> list[str]:
        behind = 2 + self.attends + self.levels
        return [f"decoder.model.{behind}", f"decoder.model.{behind + 1}"]

    def level(self, number: int) -> str:
        return f"decoder.model.{2 + self.attends + number}.block"

    def inside(self) -> list[str]:
        return ["0", "1", *["2"] * self.injects_noise, *_units(2 + self.injects_noise)]

    @property
    def resampling(self) -> str:
        return "1"


def _units(place: int) -> list[str]:
    """Snakes and convolutions of the residual units of a level, of which the first is at `place`."""
    return [f"{place + unit}.block.{part}" for unit in range(UNITS) for part in range(4)]


def _entries(source: Source, target: str, layer: nn.Module, name: str) -> Iterator[Entry]:
    if isinstance(layer, NoiseInjection1d):
        yield from filter_entries(source, f"{target}.map", layer.map, f"{name}.linear")
    elif isinstance(layer, BlockAttention1d):
        for ours, parameter in layer.named_parameters():
            yield Entry(f"{target}.{ours}", {f"{name}.{ATTENTION[ours]}": tuple(parameter.shape)})
    else:
        yield from layer_entries(source, target, layer, name)


def _quantizer(source: Source) -> MultiRateQuantizer:
    """Levels of DAC's codes with its losses, of which each has an index for so many frames."""
    strides = source.config.get("vq_strides")
    count = number_of(lambda number: source.has_below(level_name(number)))
    if not isinstance(strides, list) or len(strides) != count or not all(map(_is_size, strides)):
        raise ValueError(f"vq_strides={strides!r} in its config.json: expected frames for each index of {count} levels")
    level = partial(Quantizer, **code_sizes(source))
    return MultiRateQuantizer(level, strides, estimator=None, reduction=SumOverMembers(), channel_dim=1)


def _window(source: Source, attends: list[bool]) -> int | None:
    if not any(attends):
        return None
    if not all(attends):
        raise ValueError("there is attention in one of encoder and decoder: expected it in both or in neither")
    return source.number("attn_window_size")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
