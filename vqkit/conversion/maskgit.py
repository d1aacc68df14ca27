"""MaskGIT's VQGAN, as bytedance/1d-tokenizer and open-muse hold it in torch."""

from collections.abc import Iterator

from vqkit.backbones.maskgit import MaskGITDecoder2d, MaskGITEncoder2d
from vqkit.conversion.family import Entry, Family
from vqkit.conversion.magvit2 import decoder_order, encoder_order, levels_of
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import TABLE, check_blocks, layers_entries, nearest_code
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
        order = encoder_order(encoder.recorded_arguments(), middle="mid", downsample=None)
        yield from layers_entries("encoder.layers", encoder.layers, order)
        yield Entry("quantizer.codebook.vectors", {TABLE: (quantizer.codebook_size, quantizer.dim)})
        yield from decoder_entries(decoder)


def build_decoder(source: Source, dim: int, name: str = "decoder") -> MaskGITDecoder2d:
    """A decoder of the sizes that the shapes below `name` say, for latents of `dim` channels."""
    out_channels = source.shape(f"{name}.conv_out.weight", 4)[0]
    levels = levels_of(source, f"{name}.up")
    check_blocks(source, levels)
    return MaskGITDecoder2d(out_channels=out_channels, dim=dim, **levels)


def decoder_entries(decoder: MaskGITDecoder2d, target: str = "decoder", name: str = "decoder") -> Iterator[Entry]:
    """What each weight of the decoder `target` is taken from, which is published below `name`."""
    order = decoder_order(decoder.recorded_arguments(), name=name, middle="mid", upsample="upsample_conv")
    yield from layers_entries(f"{target}.layers", decoder.layers, order)
