"""VQGAN as taming-transformers publishes it: f16 with 1024 or 16384 codes, f8, and the Gumbel one."""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from vqkit.conversion.family import Entry
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import LayerNames, VQGANFamily
from vqkit.parts.selection import Search
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer

ENCODER = LayerNames(
    residual="encoder.down.{level}.block.{block}",
    attention="encoder.down.{level}.attn.{block}",
    resample="encoder.down.{level}.downsample.conv",
    middle=("encoder.mid.block_1", "encoder.mid.attn_1", "encoder.mid.block_2"),
    first="encoder.conv_in",
    norm="encoder.norm_out",
    last="encoder.conv_out",
    latent="quant_conv",
)
DECODER = LayerNames(
    residual="decoder.up.{level}.block.{block}",
    attention="decoder.up.{level}.attn.{block}",
    resample="decoder.up.{level}.upsample.conv",
    middle=("decoder.mid.block_1", "decoder.mid.attn_1", "decoder.mid.block_2"),
    first="decoder.conv_in",
    norm="decoder.norm_out",
    last="decoder.conv_out",
    latent="post_quant_conv",
)


class TamingVQGAN(VQGANFamily):
    """VQGAN of taming-transformers.

    Class attributes:
        published_blocks: residual blocks of a level in all that the authors published. Others have the same names for
            codes that are chosen in another way, so a file with another number is not recognized. None: any.

    Source: Esser, Rombach, Ommer 2021 (https://arxiv.org/abs/2012.09841) and its released code.
    """

    name = "VQGAN of taming-transformers"
    telltale = "encoder.down.0.block.0.conv1.weight"
    unused = ("loss.",)
    license = "mit"
    encoder = ENCODER
    decoder = DECODER
    published_blocks: ClassVar[int | None] = 2

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """See `Family`."""
        if not super().recognizes(source):
            return False
        found = cls.encoder.num_res_blocks(source)
        if cls.published_blocks not in (None, found):
            raise ValueError(
                f"{source.file} has names that several families share, and {found} residual blocks in a level: those "
                f"of {cls.name} have {cls.published_blocks}. Say by family= of vqkit.convert how codes are chosen: "
                "TamingVQGAN() for the nearest one, SeedVokenIBQ() for the largest dot product"
            )
        return True


class TamingGumbelVQGAN(TamingVQGAN):
    """VQGAN of taming-transformers with a Gumbel-softmax: one table is searched and another read.

    The logits are a 1x1 convolution with a bias: inner products with the rows of a table that has the bias as one more
    column, of latents that have a 1 there. So the quantizer is a `cascaded` one, whose maps add that 1 and take it off.

    Differs: the index is the largest logit, without noise; the release draws it in evaluation too. Further training
    moves the codes that are read, and not the table that is searched; there is no prior.

    Source: Esser, Rombach, Ommer 2021 (https://arxiv.org/abs/2012.09841) and its released code.
    """

    name = "VQGAN of taming-transformers with Gumbel-softmax"
    telltale = "quantize.proj.weight"
    published_blocks = None

    def build_quantizer(self, source: Source) -> BaseQuantizer:
        """See `VQGANFamily`."""
        size, dim = source.shape("quantize.embed.weight", 2)
        return Quantizer(
            "cascaded", dim=dim, codebook_size=size, codebook_dim=dim + 1, channel_dim=1, search=Search("dot")
        )

    def quantizer_entries(self, source: Source, quantizer: BaseQuantizer) -> Iterator[Entry]:
        """See `VQGANFamily`."""
        size, dim = quantizer.codebook_size, quantizer.dim
        logits = {"quantize.proj.weight": (size, dim, 1, 1), "quantize.proj.bias": (size,)}
        with_zero = partial(nn.functional.pad, pad=(0, 1))
        yield Entry("quantizer.codebook.index_vectors", logits, lambda w, b: torch.cat([w.flatten(1), b[:, None]], 1))
        yield Entry("quantizer.codebook.vectors", {"quantize.embed.weight": (size, dim)}, with_zero)
        yield Entry("quantizer.project_in.weight", {}, partial(torch.eye, dim + 1, dim))
        yield Entry("quantizer.project_in.bias", {}, lambda: torch.eye(dim + 1)[-1])
        yield Entry("quantizer.project_out.weight", {}, partial(torch.eye, dim, dim + 1))
        yield Entry("quantizer.project_out.bias", {}, partial(torch.zeros, dim))
