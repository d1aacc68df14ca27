"""MaskGIT's VQGAN, as bytedance/1d-tokenizer and open-muse hold it in torch."""

import math
from collections.abc import Iterator
from typing import Any

from vqkit.backbones.maskgit import MaskGITDecoder2d, MaskGITEncoder2d
from vqkit.conversion.family import Entry, Family
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import TABLE, check_blocks, layers_entries, nearest_code, number_of
from vqkit.tokenizers.tokenizer import Tokenizer


class MaskGITVQGAN(Family):
    """VQGAN of MaskGIT, f16 with 1024 codes: `maskgit-vqgan-imagenet-f16-256.bin`, and that of open-muse.

    The tokenizer takes and gives images in [-1, 1]; those of the release lie in [0, 1].

    Source: Chang et al. 2022 (https://arxiv.org/abs/2202.04200), and its torch form in the released code of TiTok
    (Yu et al. 2024, https://arxiv.org/abs/2406.07550), whose teacher it is.
    """

    name = "VQGAN of MaskGIT"
    telltale = "decoder.up.1.upsample_conv.weight"
    license = "apache-2.0"

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        quantizer = nearest_code(source)
        in_channels = source.shape("encoder.conv_in.weight", 4)[1]
        levels = levels_of(source, "encoder.down")
        check_blocks(source, levels)
        return Tokenizer(
            MaskGITEncoder2d(in_channels=in_channels, dim=quantizer.dim, **levels),
            quantizer,
            build_decoder(source, quantizer.dim),
        )

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        encoder, quantizer, decoder = tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder
        assert isinstance(encoder, MaskGITEncoder2d) and isinstance(decoder, MaskGITDecoder2d)
        yield from layers_entries("encoder.layers", encoder.layers, _encoder_order(encoder))
        yield Entry("quantizer.codebook.vectors", {TABLE: (quantizer.codebook_size, quantizer.dim)})
        yield from decoder_entries(decoder)


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


def build_decoder(source: Source, dim: int, name: str = "decoder") -> MaskGITDecoder2d:
    """A decoder of the sizes that the shapes below `name` say, for latents of `dim` channels."""
    out_channels = source.shape(f"{name}.conv_out.weight", 4)[0]
    levels = levels_of(source, f"{name}.up")
    check_blocks(source, levels)
    return MaskGITDecoder2d(out_channels=out_channels, dim=dim, **levels)


def decoder_entries(decoder: MaskGITDecoder2d, target: str = "decoder", name: str = "decoder") -> Iterator[Entry]:
    """What each weight of the decoder `target` is taken from, which is published below `name`."""
    yield from layers_entries(f"{target}.layers", decoder.layers, _decoder_order(decoder, name))


def _encoder_order(encoder: MaskGITEncoder2d) -> Iterator[str]:
    sizes = encoder.recorded_arguments()
    blocks = range(sizes["num_res_blocks"])
    yield "encoder.conv_in"
    for level in range(len(sizes["channel_multipliers"])):
        yield from (f"encoder.down.{level}.block.{block}" for block in blocks)
    yield from (f"encoder.mid.{block}" for block in blocks)
    yield from ("encoder.norm_out", "encoder.conv_out")


def _decoder_order(decoder: MaskGITDecoder2d, name: str) -> Iterator[str]:
    sizes = decoder.recorded_arguments()
    blocks = range(sizes["num_res_blocks"])
    yield f"{name}.conv_in"
    yield from (f"{name}.mid.{block}" for block in blocks)
    for level in reversed(range(len(sizes["channel_multipliers"]))):
        yield from (f"{name}.up.{level}.block.{block}" for block in blocks)
        if level > 0:
            yield f"{name}.up.{level}.upsample_conv"
    yield from (f"{name}.norm_out", f"{name}.conv_out")
