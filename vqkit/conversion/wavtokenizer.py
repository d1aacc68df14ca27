"""WavTokenizer, in the names of its release and of transformers."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from vqkit.backbones.conv1d import ConvEncoder1d
from vqkit.backbones.convnext1d import ConvNeXt1d
from vqkit.backbones.layers2d import Attention2d
from vqkit.backbones.resnet1d import PositionNetwork, ResidualBlock1d
from vqkit.backbones.vocos import VocosDecoder
from vqkit.conversion.encodec import RELEASE, TRANSFORMERS, SEANetNames, encoder_sizes, seanet_entries
from vqkit.conversion.family import Entry, Family, named_entries
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import RESIDUAL_PARTS, AttentionNames, layer_entries, number_of
from vqkit.parts.losses import Commitment
from vqkit.quantizers.quantizer import Quantizer
from vqkit.tokenizers.audio import AudioTokenizer

SAMPLE_RATE = 24_000
"""In Hz, of all released models, whose weights do not say it."""
SETTINGS = {"use_causal_conv": False, "pad_mode": "reflect", "decoder_attention_num_groups": 32, "norm_eps": 1e-6}
"""Entries of the `config.json` of transformers that weights do not show, and the values that are meant here."""
COMMITMENT = 1000.0
BLOCKS = "backbone.convnext"
FIRST_CONDITIONS = "backbone.norm.scale.weight"
"""Of the first norm, a row for each condition."""
POSITION_PARTS = {
    "before.0": "0",
    "before.1": "1",
    "attention": "2",
    "after.0": "3",
    "after.1": "4",
    "norm": "5",
}
BLOCK_PARTS = {"convolution": "dwconv", "network.0": "pwconv1", "network.2": "pwconv2"}


class WavTokenizerFamily(Family):
    """A WavTokenizer; subclasses name its parts.

    Norms of the decoder have a scale and a shift for each of four conditions, the bandwidths of an experiment that all
    became the same; the released code decodes by the first. The tokenizer has those of one condition.

    Args:
        condition: which, counted from 0.

    Source: Ji et al. 2024 (https://arxiv.org/abs/2408.16532) and its released code.
    """

    license = "mit"

    encoder: ClassVar[str]
    names: ClassVar[SEANetNames]
    codebook: ClassVar[str]
    head: ClassVar[str]

    def __init__(self, condition: int = 0) -> None:
        if condition < 0:
            raise ValueError(f"condition={condition}: expected 0 or more")
        self.condition = condition

    def build(self, source: Source) -> AudioTokenizer:
        """See `Family`."""
        sizes = encoder_sizes(source, self.encoder, self.names) | {"causal": False}
        codebook_size, dim = source.shape(f"{self.codebook}.embed", 2)
        width = source.shape("backbone.embed.weight", 3)[0]
        source.check_config(SETTINGS)
        rate = source.number("sampling_rate", SAMPLE_RATE)
        self._conditions(source)
        blocks = partial(
            ConvNeXt1d,
            num_layers=number_of(lambda layer: source.has_below(f"{BLOCKS}.{layer}")),
            hidden_channels=source.shape(f"{BLOCKS}.0.pwconv1.weight", 2)[0],
            kernel_size=source.shape(f"{BLOCKS}.0.dwconv.weight", 3)[2],
        )
        decoder = VocosDecoder(
            dim=dim,
            channels=width,
            hop_length=math.prod(sizes["strides"]),
            num_points=source.shape(f"{self.head}.weight", 2)[0] - 2,
            blocks=[PositionNetwork, blocks],
        )
        quantizer = Quantizer(
            "ema", dim=dim, codebook_size=codebook_size, losses=[Commitment(COMMITMENT)], channel_dim=1
        )
        return AudioTokenizer(ConvEncoder1d(in_channels=1, **sizes), quantizer, decoder, sample_rate=rate)

    def entries(self, source: Source, tokenizer: Any) -> Iterator[Entry]:
        """See `Family`."""
        yield from seanet_entries(source, "encoder", tokenizer.encoder, self.encoder, self.names)
        size, dim = tokenizer.quantizer.codebook_size, tokenizer.quantizer.dim
        yield Entry("quantizer.codebook.vectors", {f"{self.codebook}.embed": (size, dim)})
        yield Entry("quantizer.codebook.usage", {f"{self.codebook}.cluster_size": (size,)})
        decoder = tokenizer.decoder
        names = {"embedding": "backbone.embed", "norm": "backbone.final_layer_norm", "head.linear": self.head}
        for ours, theirs in names.items():
            yield from named_entries(f"decoder.{ours}", decoder.get_submodule(ours), theirs)
        for ours, theirs in POSITION_PARTS.items():
            yield from _position_entries(decoder, f"blocks.0.{ours}", f"backbone.pos_net.{theirs}")
        conditions = self._conditions(source)
        yield from self._norm_entries(decoder, "blocks.1.norm", "backbone.norm", conditions)
        for number, block in enumerate(decoder.blocks[1].layers):
            ours, theirs = f"blocks.1.layers.{number}", f"{BLOCKS}.{number}"
            for own, other in BLOCK_PARTS.items():
                yield from named_entries(f"decoder.{ours}.{own}", block.get_submodule(own), f"{theirs}.{other}")
            yield from self._norm_entries(decoder, f"{ours}.norm", f"{theirs}.norm", conditions)
            yield Entry(f"decoder.{ours}.scale", {f"{theirs}.gamma": tuple(decoder.norm.weight.shape)})

    def _conditions(self, source: Source) -> int:
        found = source.shape(FIRST_CONDITIONS, 2)[0]
        if self.condition >= found:
            raise ValueError(
                f"{FIRST_CONDITIONS!r} has {found} rows: expected more than condition={self.condition}, which counts"
                " from 0"
            )
        return found

    def _norm_entries(self, decoder: VocosDecoder, ours: str, theirs: str, conditions: int) -> Iterator[Entry]:
        """Scale and shift of one condition."""

        def row(table: Tensor) -> Tensor:
            return table[self.condition]

        width = decoder.norm.weight.shape[0]
        for own, other in (("weight", "scale"), ("bias", "shift")):
            yield Entry(f"decoder.{ours}.{own}", {f"{theirs}.{other}.weight": (conditions, width)}, row)


class WavTokenizer(WavTokenizerFamily):
    """The Lightning checkpoint of the authors: 40 and 75 tokens a second. Its discriminators are left out."""

    name = "WavTokenizer"
    encoder = "feature_extractor.encodec.encoder"
    names = RELEASE
    codebook = "feature_extractor.encodec.quantizer.vq.layers.0._codebook"
    head = "head.out"
    telltale = f"{codebook}.embed"
    unused = (
        f"{codebook}.inited",
        f"{codebook}.embed_avg",
        "feature_extractor.encodec.decoder.",
        "head.istft.window",
        "multiperioddisc.",
        "multiresddisc.",
        "dac.",
        "dacdiscriminator.",
        "melspec_loss.",
    )


class TransformersWavTokenizer(WavTokenizerFamily):
    """The layout of transformers: folder of `WavTokenizerModel.save_pretrained`."""

    name = "WavTokenizer of transformers"
    encoder = "encoder_model.encoder"
    names = TRANSFORMERS
    codebook = "encoder_model.quantizer.codebook"
    head = "head.linear"
    telltale = f"{codebook}.embed"
    unused = (f"{codebook}.inited", f"{codebook}.embed_avg")


def _position_entries(decoder: VocosDecoder, ours: str, theirs: str) -> Iterator[Entry]:
    """Of a residual block, the attention or the norm of the position network."""
    part = decoder.get_submodule(ours)
    if isinstance(part, ResidualBlock1d):
        yield from named_entries(f"decoder.{ours}", part, theirs, RESIDUAL_PARTS)
    elif isinstance(part, Attention2d):
        names = AttentionNames(axes=3)
        yield from layer_entries(f"decoder.{ours}", part, theirs, attention=names)
    else:
        yield from named_entries(f"decoder.{ours}", part, theirs)
