"""EnCodec, in the names of its release and of transformers."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from vqkit.backbones.activations import ELU
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.encodec import SkipLSTM, TimeGroupNorm
from vqkit.backbones.residual1d import ResidualUnit1d
from vqkit.backbones.temporal import Convolution1d, Deconvolution1d
from vqkit.conversion.family import Entry, Family, named_entries
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import number_of
from vqkit.conversion.weight_norm import filter_entries, filter_shape, normalization_of
from vqkit.parts.losses import Commitment
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.reduction import MeanOverChoices
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.tokenizers.audio import AudioTokenizer
from vqkit.tokenizers.segments import SegmentTokenizer
from vqkit.tokenizers.tokenizer import Tokenizer

SPEECH_RATE, MUSIC_RATE = 24_000, 48_000
"""In Hz, of the two released models: causal with weight norm, and not causal with a norm over time."""
TRAINED_WITH = ("inited", "embed_avg")
"""Entries of a codebook that are not needed: codes are means here, and not sums."""
MUSIC = {"use_causal_conv": False, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}
SPEECH = {"use_causal_conv": True, "normalize": False, "chunk_length_s": None}
SETTINGS = {"pad_mode": "reflect", "trim_right_ratio": 1.0}
"""Entries of `config.json` that weights do not show, and the values that are meant here; of one size, and of both."""


@dataclass(frozen=True)
class SEANetNames:
    """The names of EnCodec's layers.

    Attributes:
        layer: of one of the encoder's or decoder's layers.
        filters: of a convolution in it.
        transposed: of a transposed one.
        norm: of the norm behind a convolution.
        transposed_norm: of that behind a transposed one.
        codebook: of a level.
    """

    layer: str
    filters: str
    transposed: str
    norm: str
    transposed_norm: str
    codebook: str


RELEASE = SEANetNames(
    layer="model.{}",
    filters="conv.conv",
    transposed="convtr.convtr",
    norm="conv.norm",
    transposed_norm="convtr.norm",
    codebook="quantizer.vq.layers.{}._codebook",
)
TRANSFORMERS = SEANetNames(
    layer="layers.{}",
    filters="conv",
    transposed="conv",
    norm="norm",
    transposed_norm="norm",
    codebook="quantizer.layers.{}.codebook",
)


class EnCodec(Family):
    """EnCodec for speech and sound at 24 kHz, and for music at 48 kHz.

    The two are told apart by their norms. That at 24 kHz becomes an `AudioTokenizer`, which streams; that at 48 kHz a
    `SegmentTokenizer`. Models of audiocraft, whose residual units have no convolution on their skip and whose
    recordings end in zeros, are refused. Losses and dropout for further training are those of
    `configs/audio/encodec_24khz.yaml`.

    Source: Defossez et al. 2022 (https://arxiv.org/abs/2210.13438) and its released code.
    """

    name = "EnCodec"
    telltale = f"{RELEASE.codebook.format(0)}.embed"
    license = "mit"

    @classmethod
    def recognizes(cls, source: Source) -> bool:
        """See `Family`."""
        return any(f"{names.codebook.format(0)}.embed" in source for names in (RELEASE, TRANSFORMERS))

    def weights(self, source: Source) -> Source:
        """See `Family`: without what a codebook is trained with."""
        state = {name: value for name, value in source.state.items() if not name.endswith(TRAINED_WITH)}
        return replace(source, state=state)

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        names = names_of(source)
        sizes = encoder_sizes(source, "encoder", names)
        music = sizes["normalization"] is TimeGroupNorm
        source.check_config(SETTINGS | (MUSIC if music else SPEECH))
        channels = filter_shape(source, f"encoder.{names.layer.format(0)}.{names.filters}")[1]
        encoder = ConvEncoder1d(in_channels=channels, **sizes)
        decoder = ConvDecoder1d(out_channels=channels, **sizes)
        levels = number_of(lambda level: source.has_below(names.codebook.format(level)))
        size, dim = source.shape(f"{names.codebook.format(0)}.embed", 2)
        stage = partial(Quantizer, "ema", dim=dim, codebook_size=size, losses=[Commitment(1.0)])
        quantizer = ResidualQuantizer(stage, levels, dropout=1.0, reduction=MeanOverChoices(), channel_dim=1)
        kind, rate = (SegmentTokenizer, MUSIC_RATE) if music else (AudioTokenizer, SPEECH_RATE)
        return kind(encoder, quantizer, decoder, sample_rate=source.number("sampling_rate", rate))

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        names, quantizer = names_of(source), tokenizer.quantizer
        assert isinstance(quantizer, ResidualQuantizer)
        for part in ("encoder", "decoder"):
            yield from seanet_entries(source, part, tokenizer.get_submodule(part), part, names)
        for level in range(quantizer.num_codebooks):
            theirs, ours = names.codebook.format(level), f"quantizer.stages.{level}.codebook"
            size = quantizer.level_sizes[level]
            yield Entry(f"{ours}.vectors", {f"{theirs}.embed": (size, quantizer.dim)})
            yield Entry(f"{ours}.usage", {f"{theirs}.cluster_size": (size,)})


def names_of(source: Source) -> SEANetNames:
    """The names of the release, or of transformers."""
    return TRANSFORMERS if f"{TRANSFORMERS.codebook.format(0)}.embed" in source else RELEASE


def encoder_sizes(source: Source, part: str, names: SEANetNames) -> dict[str, Any]:
    """The arguments that EnCodec's encoder has in common with its decoder, but for the audio's channels.

    Args:
        source: the weights.
        part: name of the encoder in them.
        names: of its layers.

    Raises:
        ValueError: an entry that says a size is missing or has another number of axes, or it is audiocraft's encoder.
    """
    layers = f"{part}.{names.layer}"
    first = f"{layers.format(0)}.{names.filters}"
    channels, _, kernel_size = filter_shape(source, first)
    place, strides, units = 1, [], [0]
    while source.has_below(f"{layers.format(place)}.block"):
        units.append(number_of(lambda unit: source.has_below(f"{layers.format(place + unit)}.block")))  # noqa: B023
        place += units[-1] + 1  # behind the units, and an activation without weights
        strides.append(filter_shape(source, f"{layers.format(place)}.{names.filters}")[2] // 2)
        place += 1
    unit = layers.format(1)
    inner, _, residual_kernel_size = filter_shape(source, f"{unit}.block.1.{names.filters}")
    if not source.has_below(f"{unit}.shortcut"):
        raise ValueError(
            f"there is no entry below '{unit}.shortcut': expected a convolution on the skip of residual units; models"
            " of audiocraft, which have none, pad with zeros, and are another family"
        )
    recurrent = f"{layers.format(place)}.lstm"
    num_layers = number_of(lambda layer: f"{recurrent}.weight_ih_l{layer}" in source)
    dim, _, latent_kernel_size = filter_shape(source, f"{layers.format(place + 2)}.{names.filters}")
    normed = source.has_below(f"{layers.format(0)}.{names.norm}")
    return {
        "dim": dim,
        "channels": channels,
        "strides": tuple(strides),
        "dilations": tuple(source.number("dilation_growth_rate", 2) ** unit for unit in range(units[-1])),
        "kernel_size": kernel_size,
        "residual_kernel_size": residual_kernel_size,
        "latent_kernel_size": latent_kernel_size,
        "compress": channels // inner,
        "activation": ELU,
        "transformer": partial(SkipLSTM, num_layers=num_layers),
        "causal": not normed,
        "padding_mode": "reflect",
        "convolved_skip": True,
        "normalization": TimeGroupNorm if normed else normalization_of(source, part),
    }


def seanet_entries(source: Source, target: str, backbone: nn.Module, part: str, names: SEANetNames) -> Iterator[Entry]:
    """What each weight of an encoder or decoder is taken from; layers have the same places in both trees.

    Args:
        source: the weights.
        target: name of the backbone in the tokenizer's state.
        backbone: as `encoder_sizes` says.
        part: its name in the source.
        names: of its layers.
    """
    assert isinstance(backbone, ConvEncoder1d | ConvDecoder1d)
    for place, layer in enumerate(backbone.layers):
        ours, theirs = f"{target}.layers.{place}", f"{part}.{names.layer.format(place)}"
        if isinstance(layer, ResidualUnit1d):
            for own, other in (("branch.1", "block.1"), ("branch.3", "block.3"), ("skip", "shortcut")):
                convolution = layer.get_submodule(own)
                yield from _convolution_entries(source, f"{ours}.{own}", convolution, f"{theirs}.{other}", names)
        elif isinstance(layer, SkipLSTM):
            yield from named_entries(ours, layer, theirs)
        elif isinstance(layer, Convolution1d | Deconvolution1d):
            yield from _convolution_entries(source, ours, layer, theirs, names)


def _convolution_entries(
    source: Source, target: str, layer: nn.Module, name: str, names: SEANetNames
) -> Iterator[Entry]:
    """Of a convolution, and of the norm behind it if there is one."""
    transposed = isinstance(layer, Deconvolution1d)
    yield from filter_entries(source, target, layer, f"{name}.{names.transposed if transposed else names.filters}")
    norm = names.transposed_norm if transposed else names.norm
    yield from named_entries(f"{target}.normalization", layer.get_submodule("normalization"), f"{name}.{norm}")
