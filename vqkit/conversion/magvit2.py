"""Encoder and decoder of the MAGVIT-2 family, under the names of SEED-Voken.

All of them compute what `MAGVIT2Encoder` and `MAGVIT2Decoder` do, with norms of 32 groups and epsilon 1e-6.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from vqkit.backbones.magvit2 import MAGVIT2Decoder, MAGVIT2Encoder
from vqkit.conversion.family import Entry, Family
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import check_blocks, layers_entries, number_of
from vqkit.quantizers.base import BaseQuantizer
from vqkit.tokenizers.tokenizer import Tokenizer


class MAGVIT2Family(Family):
    """A published tokenizer with this encoder and decoder, and no layer between them and the quantizer."""

    unused = ("loss.",)

    @abstractmethod
    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """The quantizer of latents with `channel_dim` 1."""

    def quantizer_entries(self, source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
        """What its weights are taken from."""
        yield from ()

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        inward, outward = _sizes(source, "encoder.down", "conv_out", 0), _sizes(source, "decoder.up", "conv_in", 1)
        check_blocks(source, inward, outward)
        return Tokenizer(
            MAGVIT2Encoder(in_channels=source.shape("encoder.conv_in.weight", 4)[1], **inward),
            self.build_quantizer(source),
            MAGVIT2Decoder(
                out_channels=source.shape("decoder.conv_out.weight", 4)[0],
                adaptive_norm=source.has_below("decoder.adaptive"),
                **outward,
            ),
        )

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        for part, order in (("encoder", encoder_order), ("decoder", decoder_order)):
            module: Any = tokenizer.get_submodule(part)
            yield from layers_entries(f"{part}.layers", module.layers, order(module.recorded_arguments()))
        yield from self.quantizer_entries(source, tokenizer.quantizer)


def _sizes(source: Source, levels: str, next_to_latents: str, axis: int) -> dict[str, Any]:
    """Arguments of the encoder or the decoder whose levels have their entries below `levels`."""
    side = levels.partition(".")[0]
    return levels_of(source, levels) | {
        "dim": source.shape(f"{side}.{next_to_latents}.weight", 4)[axis],
        "num_middle_blocks": number_of(lambda n: source.has_below(f"{side}.mid_block.{n}")),
    }


def levels_of(source: Source, name: str) -> dict[str, Any]:
    """Widths and blocks of the levels of an encoder or a decoder.

    Args:
        source: the weights.
        name: of its list of levels.

    Raises:
        ValueError: there is no level, or the first convolution of one has no weight of 4 axes.
    """
    number = number_of(lambda level: source.has_below(f"{name}.{level}"))
    widths = [source.shape(f"{name}.{level}.block.0.conv1.weight", 4)[0] for level in range(number)]
    if not widths:
        raise ValueError(f"there is no entry below '{name}.0': expected the level of the image's size")
    channels = math.gcd(*widths)
    return {
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "num_res_blocks": number_of(lambda block: source.has_below(f"{name}.0.block.{block}")),
    }


def encoder_order(
    sizes: Mapping[str, Any], *, middle: str = "mid_block", downsample: str | None = "downsample"
) -> Iterator[str]:
    """Names of the layers of an encoder of these sizes as they are run.

    Args:
        sizes: arguments of the encoder; those without `num_middle_blocks` have as many as in a level.
        middle: what the blocks behind the levels are called.
        downsample: what the convolution behind a level is called; None where there is none.
    """
    yield "encoder.conv_in"
    for level in range(len(sizes["channel_multipliers"])):
        if level > 0 and downsample is not None:
            yield f"encoder.down.{level - 1}.{downsample}"
        yield from (f"encoder.down.{level}.block.{block}" for block in range(sizes["num_res_blocks"]))
    yield from _middle(f"encoder.{middle}", sizes)
    yield from ("encoder.norm_out", "encoder.conv_out")


def decoder_order(
    sizes: Mapping[str, Any], *, name: str = "decoder", middle: str = "mid_block", upsample: str = "upsample"
) -> Iterator[str]:
    """Names of the layers of the decoder `name` as they are run; see `encoder_order`."""
    yield f"{name}.conv_in"
    yield from _middle(f"{name}.{middle}", sizes)
    for level in reversed(range(len(sizes["channel_multipliers"]))):
        if sizes.get("adaptive_norm"):
            yield f"{name}.adaptive.{level}"
        yield from (f"{name}.up.{level}.block.{block}" for block in range(sizes["num_res_blocks"]))
        if level > 0:
            yield f"{name}.up.{level}.{upsample}"
    yield from (f"{name}.norm_out", f"{name}.conv_out")


def _middle(name: str, sizes: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"{name}.{block}" for block in range(sizes.get("num_middle_blocks", sizes["num_res_blocks"])))
