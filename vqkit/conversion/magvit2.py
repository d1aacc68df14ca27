"""Encoder and decoder of the MAGVIT-2 family, under the names of SEED-Voken.

All of them compute what `MAGVIT2Encoder` and `MAGVIT2Decoder` do, with norms of 32 groups and epsilon 1e-6.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from vqkit.backbones.layers2d import ResidualBlock2d
from vqkit.backbones.magvit2 import AdaptiveGroupNorm2d, MAGVIT2Decoder, MAGVIT2Encoder, SubpixelUpsample2d
from vqkit.conversion.family import Entry, Family, joined
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import RESIDUAL_PARTS, check_blocks, common_channels, number_of
from vqkit.quantizers.base import BaseQuantizer
from vqkit.tokenizers.tokenizer import Tokenizer

PARTS: dict[type[nn.Module], dict[str, str]] = {
    ResidualBlock2d: RESIDUAL_PARTS | {"skip.": "nin_shortcut."},
    AdaptiveGroupNorm2d: {"gain.": "gamma.", "shift.": "beta."},
    SubpixelUpsample2d: {"convolution.": "conv1."},
}
"""Names of what is in a layer, ours and theirs; other layers have their parameters alone."""


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
        inward, outward = _sizes("encoder.down", source), _sizes("decoder.up", source)
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
        for part, order in (("encoder", _encoder_order), ("decoder", _decoder_order)):
            module: Any = tokenizer.get_submodule(part)
            layers = {name: layer for name, layer in module.layers.named_children() if list(layer.parameters())}
            for (name, layer), theirs in zip(layers.items(), order(module.recorded_arguments()), strict=True):
                yield from _entries(f"{part}.layers.{name}", layer, theirs)
        yield from self.quantizer_entries(source, tokenizer.quantizer)


def _sizes(levels: str, source: Source) -> dict[str, Any]:
    """Arguments of the encoder or the decoder whose levels have their entries below `levels`."""
    side = levels.partition(".")[0]
    number = number_of(lambda n: source.has_below(f"{levels}.{n}.block.0"))
    widths = [source.shape(f"{levels}.{n}.block.0.conv1.weight", 4)[0] for n in range(number)]
    if not widths:
        raise ValueError(f"there is no entry below {f'{levels}.0.block.0'!r}: expected the first residual block")
    channels = common_channels(widths)
    axis, next_to_latents = (0, "conv_out") if side == "encoder" else (1, "conv_in")
    return {
        "dim": source.shape(f"{side}.{next_to_latents}.weight", 4)[axis],
        "channels": channels,
        "channel_multipliers": [width // channels for width in widths],
        "num_res_blocks": number_of(lambda n: source.has_below(f"{levels}.0.block.{n}")),
        "num_middle_blocks": number_of(lambda n: source.has_below(f"{side}.mid_block.{n}")),
    }


def _encoder_order(sizes: dict[str, Any]) -> Iterator[str]:
    yield "encoder.conv_in"
    for level in range(len(sizes["channel_multipliers"])):
        if level > 0:
            yield f"encoder.down.{level - 1}.downsample"
        for block in range(sizes["num_res_blocks"]):
            yield f"encoder.down.{level}.block.{block}"
    for block in range(sizes["num_middle_blocks"]):
        yield f"encoder.mid_block.{block}"
    yield from ("encoder.norm_out", "encoder.conv_out")


def _decoder_order(sizes: dict[str, Any]) -> Iterator[str]:
    yield "decoder.conv_in"
    for block in range(sizes["num_middle_blocks"]):
        yield f"decoder.mid_block.{block}"
    for level in reversed(range(len(sizes["channel_multipliers"]))):
        if sizes["adaptive_norm"]:
            yield f"decoder.adaptive.{level}"
        for block in range(sizes["num_res_blocks"]):
            yield f"decoder.up.{level}.block.{block}"
        if level > 0:
            yield f"decoder.up.{level}.upsample"
    yield from ("decoder.norm_out", "decoder.conv_out")


def _entries(target: str, layer: nn.Module, name: str) -> Iterator[Entry]:
    """The entries of one layer, from those below `name`."""
    parts = PARTS.get(type(layer), {"": ""})
    combine = _by_channel if isinstance(layer, SubpixelUpsample2d) else joined
    for ours, parameter in layer.named_parameters():
        part = next(part for part in parts if ours.startswith(part))
        theirs = f"{name}.{parts[part]}{ours.removeprefix(part)}"
        yield Entry(f"{target}.{ours}", {theirs: tuple(parameter.shape)}, combine)


def _by_channel(outputs: Tensor) -> Tensor:
    """Outputs (4 C, ...) in the order of their place in 2 x 2 pixels, and then of channels, the other way round."""
    return outputs.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
