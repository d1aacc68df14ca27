"""The VQ tokenizers of LlamaGen: VQ-16 and VQ-8."""

from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import TABLE, LayerNames, VQGANFamily
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer


class LlamaGenVQ(VQGANFamily):
    """VQ of LlamaGen: vectors and codes of 8 channels on the unit sphere.

    Source: Sun et al. 2024 (https://arxiv.org/abs/2406.06525) and its released code.
    """

    name = "VQ of LlamaGen"
    telltale = "encoder.conv_blocks.0.res.0.conv1.weight"
    unused = ("quantize.codebook_used", "loss.")
    license = "mit"
    encoder = LayerNames(
        residual="encoder.conv_blocks.{level}.res.{block}",
        attention="encoder.conv_blocks.{level}.attn.{block}",
        resample="encoder.conv_blocks.{level}.downsample.conv",
        middle=("encoder.mid.0", "encoder.mid.1", "encoder.mid.2"),
        first="encoder.conv_in",
        norm="encoder.norm_out",
        last="encoder.conv_out",
        latent="quant_conv",
    )
    decoder = LayerNames(
        residual="decoder.conv_blocks.{place}.res.{block}",
        attention="decoder.conv_blocks.{place}.attn.{block}",
        resample="decoder.conv_blocks.{place}.upsample.conv",
        middle=("decoder.mid.0", "decoder.mid.1", "decoder.mid.2"),
        first="decoder.conv_in",
        norm="decoder.norm_out",
        last="decoder.conv_out",
        latent="post_quant_conv",
    )

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `VQGANFamily`."""
        size, dim = source.shape(TABLE, 2)
        return Quantizer("vq", dim=dim, codebook_size=size, channel_dim=1, normalize=True)
