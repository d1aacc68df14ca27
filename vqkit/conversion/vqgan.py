"""Encoder and decoder of the VQGAN family, under whatever names they are published.

Source: Esser, Rombach, Ommer 2021 (https://arxiv.org/abs/2012.09841). All of them compute what `ConvEncoder2d` and
`ConvDecoder2d` do, with one head, norms of epsilon 1e-6, and a convolution on each side of the quantizer.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar

from torch import Tensor, nn

from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.layers2d import Attention2d, Downsample2d, ResidualBlock2d, Upsample2d
from vqkit.backbones.magvit2 import AdaptiveGroupNorm2d, SubpixelUpsample2d
from vqkit.conversion.family import Entry, Family, named_entries
from vqkit.conversion.source import Source
from vqkit.parts.losses import CodebookLoss, Commitment
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.tokenizers.tokenizer import Tokenizer

NORM_GROUPS = 32
ENTRIES_IN_BLOCK = 6
"""Of a residual block, at least: two norms with their shifts, and two convolutions."""
MOST_BLOCKS = 256
"""Of encoder and decoder together: published models have fewer than 100. Building takes a millisecond for each."""
TABLE = "quantize.embedding.weight"
"""The codes, (K, D)."""
RESIDUAL_PARTS = {"branch.0.": "norm1.", "branch.2.": "conv1.", "branch.3.": "norm2.", "branch.6.": "conv2."}
"""Names of what is in the branch of a residual block, ours and theirs."""
PARTS: dict[type[nn.Module], dict[str, str]] = {
    Downsample2d: {"convolution.": ""},
    Upsample2d: {"convolution.": ""},
    AdaptiveGroupNorm2d: {"gain.": "gamma.", "shift.": "beta."},
}
"""The same for layers that have these names everywhere."""


@dataclass(frozen=True)
class AttentionNames:
    """Names of the parts of a self-attention.

    Attributes:
        norm: the group norm.
        projections: to queries, keys and values, in this order; or one of all three.
        output: the last projection.
        axes: of their weights: 4 for 1x1 convolutions, 2 for linear layers.
    """

    norm: str = "norm"
    projections: tuple[str, ...] = ("q", "k", "v")
    output: str = "proj_out"
    axes: int = 4


@dataclass(frozen=True)
class LayerNames:
    """Names of the layers of an encoder or a decoder, and of what is in them.

    {level} counts from the image, {place} in the order in which levels are run, and {block} within a level.

    Attributes:
        residual: a residual block.
        attention: the self-attention behind a block.
        resample: the convolution between a level and the next one that is run.
        middle: the two blocks at the coarsest map, and the self-attention between them.
        first: the convolution that is run first.
        norm: the last norm.
        last: the convolution behind it.
        latent: the convolution next to the quantizer.
        shortcut: the 1x1 convolution of a block that changes the width.
    """

    residual: str
    attention: str
    resample: str
    middle: tuple[str, str, str]
    first: str
    norm: str
    last: str
    latent: str
    shortcut: str = "nin_shortcut"

    def sizes(self, source: Source) -> dict[str, Any]:
        """Arguments of the backbone with these layers, `num_res_blocks` as they are counted.

        Raises:
            ValueError: an entry that says a size is missing, or widths have no common channels.
        """
        levels = number_of(lambda n: source.has_below(self._residual(n, n, 0)))
        places = range(levels) if "{level}" in self.residual else reversed(range(levels))
        widths = [source.shape(f"{self._residual(n, n, 0)}.conv1.weight", 4)[0] for n in places]
        if not widths:
            raise ValueError(f"there is no entry below {self._residual(0, 0, 0)!r}: expected the first residual block")
        channels = math.gcd(*widths)
        outer, inner, kernel_size, _ = source.shape(f"{self.latent}.weight", 4)
        return {
            "dim": outer,
            "latent_channels": inner,
            "latent_kernel_size": kernel_size,
            "channels": channels,
            "channel_multipliers": [width // channels for width in widths],
            "num_res_blocks": self.num_res_blocks(source),
            "attention_factors": [
                2**n
                for n in range(levels)
                if source.has_below(self.attention.format(level=n, place=levels - 1 - n, block=0))
            ],
            "middle_attention": source.has_below(self.middle[1]),
            "attention_heads": 1,
        }

    def num_res_blocks(self, source: Source) -> int:
        """Residual blocks in the first level."""
        return number_of(lambda n: source.has_below(self._residual(0, 0, n)))

    def _residual(self, level: int, place: int, block: int) -> str:
        return self.residual.format(level=level, place=place, block=block)

    def level(self, level: int, place: int, blocks: int, *, attends: bool) -> Iterator[str]:
        """The blocks of a level in the order of execution."""
        for block in range(blocks):
            yield self._residual(level, place, block)
            if attends:
                yield self.attention.format(level=level, place=place, block=block)

    def between(self, level: int, place: int) -> str:
        """What follows a level that is not the last."""
        return self.resample.format(level=level, place=place)


class VQGANFamily(Family):
    """A published VQGAN; subclasses name its layers and, if it has another one, build its quantizer.

    Class attributes:
        encoder, decoder: names of their layers.
        attentions: names of the parts of a self-attention: the first whose projections are in the file.
    """

    encoder: ClassVar[LayerNames]
    decoder: ClassVar[LayerNames]
    attentions: ClassVar[Sequence[AttentionNames]] = (AttentionNames(),)

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """The quantizer of latents with `channel_dim` 1: the nearest code."""
        return nearest_code(source)

    def quantizer_entries(self, source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
        """What its weights are taken from."""
        yield Entry("quantizer.codebook.vectors", {TABLE: (quantizer.codebook_size, quantizer.dim)})

    def norm_groups(self, source: Source) -> int:
        """Groups of each norm, of which weights say nothing."""
        return NORM_GROUPS

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        groups = self.norm_groups(source)
        inward, outward = (names.sizes(source) for names in (self.encoder, self.decoder))
        outward |= {"dim": outward["latent_channels"], "latent_channels": outward["dim"]}  # it leads outwards
        outward["num_res_blocks"] -= 1
        levels = [len(sizes["channel_multipliers"]) for sizes in (inward, outward)]
        if levels[0] != levels[1]:
            raise ValueError(f"its encoder has {levels[0]} levels and its decoder {levels[1]}: expected as many")
        check_blocks(source, inward, outward)
        in_channels = source.shape(f"{self.encoder.first}.weight", 4)[1]
        out_channels = source.shape(f"{self.decoder.last}.weight", 4)[0]
        return Tokenizer(
            self.build_encoder(source, in_channels=in_channels, norm_groups=groups, **inward),
            self.build_quantizer(source),
            ConvDecoder2d(out_channels=out_channels, norm_groups=groups, **outward),
        )

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        yield from self.encoder_entries(source, tokenizer.encoder)
        decoder: Any = tokenizer.decoder
        order = self._decoder_order(decoder.recorded_arguments())
        shortcut, attention = self.decoder.shortcut, self.attention_names(source)
        yield from layers_entries("decoder.layers", decoder.layers, order, shortcut, attention)
        yield from self.quantizer_entries(source, tokenizer.quantizer)

    def build_encoder(self, source: Source, **sizes: Any) -> nn.Module:
        """An encoder of the sizes that `LayerNames` found."""
        return ConvEncoder2d(**sizes)

    def encoder_entries(self, source: Source, encoder: Any) -> Iterator[Entry]:
        """What its weights are taken from."""
        order = self._encoder_order(encoder.recorded_arguments())
        shortcut, attention = self.encoder.shortcut, self.attention_names(source)
        yield from layers_entries("encoder.layers", encoder.layers, order, shortcut, attention)

    def attention_names(self, source: Source) -> AttentionNames:
        """Names of the parts of its self-attentions."""
        for attention in self.attentions:
            if any(name.endswith(f".{attention.projections[0]}.weight") for name in source.state):
                return attention
        return self.attentions[0]

    def trunk_order(self, sizes: dict[str, Any]) -> Iterator[str]:
        """Names of the layers of an encoder of these sizes as they are run, up to the last norm."""
        names, levels = self.encoder, len(sizes["channel_multipliers"])
        yield names.first
        for level in range(levels):
            attends = 2**level in sizes["attention_factors"]
            yield from names.level(level, level, sizes["num_res_blocks"], attends=attends)
            if level < levels - 1:
                yield names.between(level, level)
        yield from _middle(names, sizes)

    def _encoder_order(self, sizes: dict[str, Any]) -> Iterator[str]:
        yield from self.trunk_order(sizes)
        yield from (self.encoder.norm, self.encoder.last)
        if sizes["latent_kernel_size"] is not None:
            yield self.encoder.latent

    def _decoder_order(self, sizes: dict[str, Any]) -> Iterator[str]:
        names, levels = self.decoder, len(sizes["channel_multipliers"])
        if sizes["latent_kernel_size"] is not None:
            yield names.latent
        yield names.first
        yield from _middle(names, sizes)
        for place, level in enumerate(reversed(range(levels))):
            attends = 2**level in sizes["attention_factors"]
            yield from names.level(level, place, sizes["num_res_blocks"] + 1, attends=attends)
            if level > 0:
                yield names.between(level, place)
        yield from (names.norm, names.last)


def number_of(is_there: Callable[[int], bool]) -> int:
    """How many are there, counted from 0 to the first that is not.

    Raises:
        ValueError: more than `MOST_BLOCKS`, before a model is built of them.
    """
    number = sum(1 for _ in takewhile(is_there, range(MOST_BLOCKS + 1)))
    if number > MOST_BLOCKS:
        raise ValueError(
            f"its names count more than {MOST_BLOCKS} layers or codebooks of one kind: expected at most as many, which "
            "no published model has"
        )
    return number


def check_blocks(source: Source, *sides: Mapping[str, Any], entries: int = ENTRIES_IN_BLOCK) -> None:
    """Refuse names of more blocks than there are entries for, or than `MOST_BLOCKS`, before a model is built of them.

    Args:
        source: the weights.
        sides: sizes of encoder and decoder: `num_res_blocks` of each of `channel_multipliers`, `num_middle_blocks`,
            and `depth` of a transformer, as far as they have them.
        entries: of a block, at least.

    Raises:
        ValueError: there are more.
    """
    blocks = sum(
        len(sizes.get("channel_multipliers", ())) * sizes.get("num_res_blocks", 0)
        + sizes.get("num_middle_blocks", 0)
        + sizes.get("depth", 0)
        for sizes in sides
    )
    if entries * blocks > len(source.state):
        raise ValueError(
            f"its names are those of {blocks} blocks: expected at most one for {entries} of its {len(source.state)} "
            "entries"
        )
    if blocks > MOST_BLOCKS:
        raise ValueError(
            f"its names are those of {blocks} blocks: expected at most {MOST_BLOCKS}, more than any published model has"
        )


def _middle(names: LayerNames, sizes: dict[str, Any]) -> Iterator[str]:
    first, attention, second = names.middle
    yield from (first, attention, second) if sizes["middle_attention"] else (first, second)


def nearest_code(source: Source) -> Quantizer:
    """The quantizer of the codes `TABLE`, with the losses of taming-transformers.

    These have beta on the codebook: mse(z, sg e) + 0.25 mse(sg z, e).
    """
    size, dim = source.shape(TABLE, 2)
    losses = [Commitment(1.0), CodebookLoss(0.25)]
    return Quantizer("vq", dim=dim, codebook_size=size, channel_dim=1, losses=losses)


def layers_entries(
    target: str,
    layers: nn.Module,
    names: Iterable[str],
    shortcut: str = "nin_shortcut",
    attention: AttentionNames = AttentionNames(),
) -> Iterator[Entry]:
    """The entries of a sequence of layers.

    Args:
        target: name of the sequence in the state.
        layers: the sequence; layers without parameters are passed over.
        names: what each of the others is called, in the order of execution.
        shortcut: see `LayerNames`.
        attention: names of the parts of a self-attention.
    """
    ours = ((name, layer) for name, layer in layers.named_children() if list(layer.parameters()))
    for (name, layer), theirs in zip(ours, names, strict=True):
        yield from layer_entries(f"{target}.{name}", layer, theirs, shortcut, attention)


def layer_entries(
    target: str,
    layer: nn.Module,
    name: str,
    shortcut: str = "nin_shortcut",
    attention: AttentionNames = AttentionNames(),
) -> Iterator[Entry]:
    """The entries of one layer, from those below `name`; see `layers_entries`."""
    if isinstance(layer, Attention2d):
        maps = [f"{name}.{projection}" for projection in attention.projections]
        output = f"{name}.{attention.output}"
        yield from named_entries(f"{target}.norm", layer.norm, f"{name}.{attention.norm}")
        yield from named_entries(f"{target}.query_key_value", layer.query_key_value, maps, axes=attention.axes)
        yield from named_entries(f"{target}.output", layer.output, output, axes=attention.axes)
    elif isinstance(layer, ResidualBlock2d):
        yield from named_entries(target, layer, name, RESIDUAL_PARTS | {"skip.": f"{shortcut}."})
    elif isinstance(layer, SubpixelUpsample2d):
        yield from named_entries(target, layer, name, {"convolution.": "conv1."}, combine=_by_channel)
    else:
        yield from named_entries(target, layer, name, PARTS.get(type(layer), {"": ""}))


def _by_channel(outputs: Tensor) -> Tensor:
    """Outputs (4 C, ...) in the order of their place in 2 x 2 pixels, and then of channels, the other way round."""
    return outputs.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
