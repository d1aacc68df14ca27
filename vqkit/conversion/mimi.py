"""Mimi, as Kyutai and as transformers publish it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.activations import ELU
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.frame_transformer import TransformerLayer, WindowedTransformer
from vqkit.backbones.resampled import ResampledDecoder1d, ResampledEncoder1d
from vqkit.backbones.temporal import Deconvolution1d, FilterLayer
from vqkit.conversion.family import Entry, Family, named_entries
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import number_of
from vqkit.conversion.weight_norm import filter_entries, normalization_of
from vqkit.parts.codebooks import Codebook
from vqkit.parts.losses import Commitment
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.reduction import MeanOverChoices
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.quantizers.split import SplitQuantizer
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.tokenizer import Tokenizer

SAMPLE_RATE = 24_000
HEADS = 8
CONTEXT = 250
"""Frames that a frame attends to, its own among them; neither this nor the number of heads shows in the weights."""
MOST_LAYERS = 64
"""Of one kind: twice as many as there are codebooks in what is published."""
LEAST_USAGE = 1e-5
"""By which the sum of a code is divided where it was used less."""


@dataclass(frozen=True)
class Names:
    """Names of Mimi's parts. {side} is encoder or decoder, {place} the number of a layer or a codebook.

    Attributes:
        layer: of the convolutional encoder and decoder.
        convolution: what follows the name of a layer that is one.
        deconvolution: the same for a transposed one.
        block: of a transformer, its layer {place}.
        parts: of a block; ours and theirs.
        scales: of a block, the factors of its branches; ours and theirs.
        resampling: the convolutions to the rate of the codes and back.
        branches: of the quantizer, semantic and acoustic.
        codebook: in a branch.
        code_sum: in a codebook, the running sum of the vectors that chose each code.
        initialized: in a codebook, whether it was.
    """

    layer: str
    convolution: str
    deconvolution: str
    block: str
    parts: Mapping[str, str]
    scales: Mapping[str, str]
    resampling: tuple[str, str]
    branches: tuple[str, str]
    codebook: str
    code_sum: str
    initialized: str


KYUTAI = Names(
    layer="{side}.model.{place}",
    convolution=".conv.conv",
    deconvolution=".convtr.convtr",
    block="{side}_transformer.transformer.layers.{place}",
    parts={"attention_norm": "norm1", "network.0": "norm2", "network.1": "linear1", "network.3": "linear2",
           "attention.output": "self_attn.out_proj"},
    scales={"attention_scale": "layer_scale_1.scale", "network_scale": "layer_scale_2.scale"},
    resampling=("downsample.conv.conv.conv", "upsample.convtr.convtr.convtr"),
    branches=("quantizer.rvq_first", "quantizer.rvq_rest"),
    codebook="vq.layers.{place}._codebook",
    code_sum="embedding_sum",
    initialized="_initialized",
)  # fmt: skip
TRANSFORMERS = Names(
    layer="{side}.layers.{place}",
    convolution=".conv",
    deconvolution=".conv",
    block="{side}_transformer.layers.{place}",
    parts={"attention_norm": "input_layernorm", "network.0": "post_attention_layernorm", "network.1": "mlp.fc1",
           "network.3": "mlp.fc2", "attention.output": "self_attn.o_proj"},
    scales={"attention_scale": "self_attn_layer_scale.scale", "network_scale": "mlp_layer_scale.scale"},
    resampling=("downsample.conv", "upsample.conv"),
    branches=("quantizer.semantic_residual_vector_quantizer", "quantizer.acoustic_residual_vector_quantizer"),
    codebook="layers.{place}.codebook",
    code_sum="embed_sum",
    initialized="initialized",
)  # fmt: skip

RENAMED = {
    r"\.self_attn\.in_projs\.0\.weight$": ".self_attn.in_proj_weight",
    r"\.self_attn\.in_proj\.weight$": ".self_attn.in_proj_weight",
    r"\.self_attn\.out_projs\.0\.weight$": ".self_attn.out_proj.weight",
    r"\._codebook\.inited$": "._codebook._initialized",
    r"\._codebook\.cluster_size$": "._codebook.cluster_usage",
    r"\._codebook\.embed_(avg|sum)$": "._codebook.embedding_sum",
}
"""Names that earlier and later versions of Kyutai's code have, and those of the files that it released."""
ASSUMED: dict[str, Any] = {
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "dilation_growth_rate": 2,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "rope_type": "default",
}
"""What weights do not show, by the names of transformers' `config.json`."""


class Mimi(Family):
    """Mimi in Kyutai's layout: the file beside Moshi's weights, `tokenizer-e351c8d8-checkpoint125.safetensors`.

    Indices are (B, frames, levels), the semantic level first; the release has levels before frames. Codes are the
    running sums of the file divided by their usage. Rotary positions turn neighbouring channels there, and those of
    both halves of a head here: rows of queries and keys are moved.

    Source: Défossez et al. 2024 (https://arxiv.org/abs/2410.00037), section 3.3, and its released code.
    """

    name = "Mimi (Kyutai)"
    telltale = "quantizer.rvq_first.input_proj.weight"
    license = "cc-by-4.0"
    names: ClassVar[Names] = KYUTAI

    def weights(self, source: Source) -> Source:
        """The source with the names of the released files.

        Raises:
            ValueError: the file has an entry under two of its names.
        """
        state: dict[str, Tensor] = {}
        for name, value in source.state.items():
            if (plain := _plain(name)) in state:
                raise ValueError(f"entry {name!r} is there under a second name too: expected one of them")
            state[plain] = value
        return Source(source.file, state, {}, source.license)

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        sides = {side: self._sizes(source, side) for side in ("encoder", "decoder")}
        down, up = self.names.resampling
        stride = source.shape(f"{down}.weight", 3)[2] // 2
        hidden = f"{self.names.block}.{self.names.parts['network.1']}.weight"
        transformers = {
            side: partial(
                WindowedTransformer,
                num_layers=self._number(source, self.names.block.replace("{side}", side)),
                num_heads=source.number("num_attention_heads", HEADS),
                context_frames=source.number("sliding_window", CONTEXT) - 1,
                expansion=source.shape(hidden.format(side=side, place=0), 2)[0] // sizes["dim"],
            )
            for side, sizes in sides.items()
        }
        return AudioTokenizer(
            ResampledEncoder1d(
                ConvEncoder1d(**sides["encoder"]),
                stride=stride,
                transformer=transformers["encoder"],
                normalization=normalization_of(source, down),
            ),
            self._build_quantizer(source, sides["encoder"]["dim"]),
            ResampledDecoder1d(
                ConvDecoder1d(**sides["decoder"]),
                stride=stride,
                transformer=transformers["decoder"],
                normalization=normalization_of(source, up),
            ),
            sample_rate=source.number("sampling_rate", SAMPLE_RATE),
        )

    def _number(self, source: Source, name: str) -> int:
        """How many layers have this name, with {place} from 0 on."""
        return _checked_number(number_of(lambda place: source.has_below(name.format(place=place))), name)

    def _sizes(self, source: Source, side: str) -> dict[str, Any]:
        """Arguments of the convolutional encoder or decoder."""
        layer = partial(self.names.layer.format, side=side)
        found = re.compile(re.escape(layer(place="{}")).replace(r"\{\}", r"(\d{1,9})\."))
        places = sorted({int(match[1]) for name in source.state if (match := found.match(name))})
        _checked_number(len(places), layer(place="{place}"))
        units = [place for place in places if source.has_below(f"{layer(place=place)}.block")]
        filters = [place for place in places if place not in units]
        if len(filters) < 3 or len(units) % (len(filters) - 2):
            raise ValueError(
                f"its {side} has {len(filters)} convolutions and {len(units)} residual blocks: expected two"
                " convolutions, others of a stride between them, and as many blocks beside each of those"
            )
        kind = self.names.convolution if side == "encoder" else self.names.deconvolution
        strides = [source.shape(f"{layer(place=place)}{kind}.weight", 3)[2] // 2 for place in filters[1:-1]]
        ends = [
            source.shape(f"{layer(place=place)}{self.names.convolution}.weight", 3)
            for place in (filters[0], filters[-1])
        ]
        audio, latents = ends if side == "encoder" else ends[::-1]
        normalization = normalization_of(source, side)
        sizes: dict[str, Any] = {"causal": True, "activation": ELU, "normalization": normalization}
        if side == "encoder":
            sizes |= {"in_channels": audio[1], "channels": audio[0], "dim": latents[0], "strides": strides}
        else:
            sizes |= {"out_channels": audio[0], "channels": audio[1], "dim": latents[1], "strides": strides[::-1]}
        sizes |= {"kernel_size": audio[2], "latent_kernel_size": latents[2]}
        per_level = len(units) // len(strides)
        sizes["dilations"] = [2**number for number in range(per_level)]
        if units:
            inner, width, taps = source.shape(f"{layer(place=units[0])}.block.1{self.names.convolution}.weight", 3)
            sizes |= {"residual_kernel_size": taps, "compress": width // inner}
        return sizes

    def _build_quantizer(self, source: Source, dim: int) -> SplitQuantizer:
        semantic, acoustic = self.names.branches
        size, width = source.shape(f"{self._codebook(semantic, 0)}.{self.names.code_sum}", 2)
        code = partial(Quantizer, "ema", dim=width, codebook_size=size, losses=[Commitment(weight=1.0)])
        levels = self._number(source, f"{acoustic}.{self.names.codebook}")
        rest = partial(ResidualQuantizer, code, levels, dropout=1.0, reduction=MeanOverChoices())
        return SplitQuantizer([code, rest], dim=dim, reduction=MeanOverChoices(), channel_dim=1)

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        encoder, quantizer, decoder = tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder
        assert isinstance(encoder, ResampledEncoder1d) and isinstance(decoder, ResampledDecoder1d)
        assert isinstance(quantizer, SplitQuantizer)
        for side, outer in (("encoder", encoder), ("decoder", decoder)):
            yield from self._convolutions(source, side, outer.get_submodule(f"{side}.layers"))
            assert isinstance(outer.transformer, WindowedTransformer)
            for place, block in enumerate(outer.transformer.layers):
                assert isinstance(block, TransformerLayer)
                yield from self._block(f"{side}.transformer.layers.{place}", side, place, block)
        down, up = self.names.resampling
        yield from filter_entries(source, "encoder.downsample", encoder.downsample, down)
        yield from filter_entries(source, "decoder.upsample", decoder.upsample, up)
        for number, name in enumerate(self.names.branches):
            for ours, theirs in (("project_in", "input_proj"), ("project_out", "output_proj")):
                layer = quantizer.get_submodule(f"{ours}.{number}")
                yield from filter_entries(source, f"quantizer.{ours}.{number}", layer, f"{name}.{theirs}")
            books = [part for part in quantizer.branches[number].modules() if isinstance(part, Codebook)]
            for level, book in enumerate(books):
                stage = "" if number == 0 else f".stages.{level}"
                yield from self._book(f"quantizer.branches.{number}{stage}.codebook", self._codebook(name, level), book)

    def _convolutions(self, source: Source, side: str, layers: nn.Module) -> Iterator[Entry]:
        for name, module in layers.named_modules():
            if isinstance(module, FilterLayer):
                kind = self.names.deconvolution if isinstance(module, Deconvolution1d) else self.names.convolution
                theirs = self.names.layer.format(side=side, place=name.replace("branch", "block")) + kind
                yield from filter_entries(source, f"{side}.{side}.layers.{name}", module, theirs)

    def _block(self, target: str, side: str, place: int, block: TransformerLayer) -> Iterator[Entry]:
        name = self.names.block.format(side=side, place=place)
        for ours, theirs in self.names.parts.items():
            yield from named_entries(f"{target}.{ours}", block.get_submodule(ours), f"{name}.{theirs}")
        for ours, theirs in self.names.scales.items():
            yield Entry(f"{target}.{ours}", {f"{name}.{theirs}": tuple(block.get_parameter(ours).shape)})
        width, heads = block.attention.output.out_features, block.attention.num_heads
        yield self._query_key_value(f"{target}.attention.query_key_value.weight", f"{name}.self_attn", width, heads)

    def _query_key_value(self, target: str, name: str, width: int, heads: int) -> Entry:
        """Maps to queries, keys and values, one after another; (2 i, 2 i + 1) of a head become (i, i + D / 2)."""

        def halves(rows: Tensor) -> Tensor:
            turned, values = rows.split([2 * width, width])
            turned = rearrange(turned, "(two h d pair) c -> (two h pair d) c", two=2, h=heads, pair=2)
            return torch.cat([turned, values])

        return Entry(target, {f"{name}.in_proj_weight": (3 * width, width)}, halves)

    def _codebook(self, branch: str, level: int) -> str:
        return f"{branch}.{self.names.codebook.format(place=level)}"

    def _book(self, target: str, name: str, book: Codebook) -> Iterator[Entry]:
        size, usage = (book.codebook_size,), f"{name}.cluster_usage"
        sums = {f"{name}.{self.names.code_sum}": (*size, book.dim), usage: size}
        yield Entry(f"{target}.vectors", sums, lambda total, used: total / used.clamp(min=LEAST_USAGE).unsqueeze(-1))
        flag = {f"{name}.{self.names.initialized}": (1,)}
        yield Entry(f"{target}.usage", {usage: size} | flag, lambda used, _: used)


class TransformersMimi(Mimi):
    """Mimi in the layout of the package transformers: a folder of `MimiModel.save_pretrained`, or `kyutai/mimi`.

    Number of heads, context and sample rate are what `config.json` says, and those of the release without one.
    """

    name = "Mimi (transformers)"
    telltale = "quantizer.semantic_residual_vector_quantizer.input_proj.weight"
    names = TRANSFORMERS

    def weights(self, source: Source) -> Source:
        """The source as it is, whose settings are those that Mimi has.

        Raises:
            ValueError: `config.json` describes another model.
        """
        config = dict(source.config)
        for settings in ("rope_parameters", "rope_scaling"):  # of later and earlier versions
            rotary = config.get(settings)
            if isinstance(rotary, Mapping):
                config |= {"rope_type": rotary.get("type", "default")} | dict(rotary)
        replace(source, config=config).check_config(ASSUMED)
        return source

    def _query_key_value(self, target: str, name: str, width: int, heads: int) -> Entry:
        """See `Mimi`; channels are as they are here."""
        return Entry(target, {f"{name}.{part}_proj.weight": (width, width) for part in "qkv"})


def _plain(name: str) -> str:
    """A name of Kyutai's code as the released files have it."""
    for pattern, plain in RENAMED.items():
        name = re.sub(pattern, plain, name)
    return name


def _checked_number(count: int, name: str) -> int:
    """Refuse more than a published model has, before it is built."""
    if count > MOST_LAYERS:
        raise ValueError(f"it has {count} entries {name!r}: expected at most {MOST_LAYERS}")
    return count
