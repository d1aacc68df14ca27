"""TiTok and TA-TiTok, as bytedance/1d-tokenizer publishes them."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from vqkit.backbones.latent_tokens import (
    CodeHead,
    LatentTokenDecoder,
    LatentTokenEncoder,
    PixelHead,
    TiTokEncoder,
)
from vqkit.backbones.maskgit import MaskGITDecoder2d
from vqkit.conversion.family import Entry, Family, named_entries
from vqkit.conversion.fqgan import transformer_parts
from vqkit.conversion.maskgit import build_decoder, decoder_entries
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import TABLE, check_blocks, number_of
from vqkit.methods.anchors import ClosestAnchor
from vqkit.methods.cvq import ClusterReinit
from vqkit.parts.selection import Search
from vqkit.quantizers.base import BaseQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.tokenizers.tokenizer import Tokenizer

CHANNELS_OF_A_HEAD = 64
"""In all published sizes; weights do not show it."""
ENTRIES_IN_BLOCK = 12
"""Of a block of a transformer: two norms and four linear maps, each with its bias."""
TOKENS = {
    "class_token": "class_embedding",
    "positions": "positional_embedding",
    "latent_positions": "latent_token_positional_embedding",
}
"""Names of what is added to the tokens of encoder and decoder, and of the first of them, ours and theirs."""
LOGITS = "decoder.ffn.2.weight"
"""There in models whose decoder predicts codes."""
TEACHERS_CODES = "pixel_quantize.embedding.weight"
USAGE = "quantize.embed_prob"
CONTEXT_BIAS = "decoder.text_guidance_proj.bias"
CONTEXT_POSITIONS = "decoder.text_guidance_positional_embedding"


class TiTok(Family):
    """TiTok with discrete tokens: L-32, B-64 and S-128, and those of 8192 codes.

    The first three predict the codes of MaskGIT's VQGAN and have its decoder (`CodeHead`); a file of the first stage of
    their training, without it, is refused. Those of 8192 codes give pixels (`PixelHead`). Whether codes lie on the
    sphere is what `config.json` says (`use_l2_norm`); without one they do where codes are predicted, as published. The
    tokenizer takes and gives images in [-1, 1]; those of the release lie in [0, 1].

    Source: Yu et al. 2024 (https://arxiv.org/abs/2406.07550) and its released code.
    """

    name = "TiTok"
    telltale = "encoder.latent_token_positional_embedding"
    license = "apache-2.0"

    def build(self, source: Source) -> Tokenizer:
        """See `Family`."""
        settings = _settings(source)
        if settings.get("quantize_mode", "vq") != "vq" or TABLE not in source:
            raise ValueError(
                f"it has no codes (entry {TABLE!r}; quantize_mode={settings.get('quantize_mode', 'vq')!r} in its "
                "config.json): expected a model of discrete tokens, and no variational autoencoder"
            )
        dim = source.shape(TABLE, 2)[1]
        head, patch_size = self.build_head(source)
        encoder, decoder = _sizes(source, "encoder"), _sizes(source, "decoder")
        _, in_channels, _, side = source.shape("encoder.patch_embed.weight", 4)
        check_blocks(source, encoder["transformer"], decoder["transformer"], entries=ENTRIES_IN_BLOCK)
        if (pixels := encoder["side"] * side) != (drawn := decoder["side"] * patch_size):
            raise ValueError(f"its encoder reads {pixels} x {pixels} pixels, its decoder draws {drawn} x {drawn}")
        common = {"dim": dim, "num_tokens": source.shape("latent_tokens", 2)[0], "image_size": pixels}
        kind = TiTokEncoder if LOGITS in source else LatentTokenEncoder
        return Tokenizer(
            kind(in_channels=in_channels, patch_size=side, **common, **encoder["transformer"]),
            self.build_quantizer(source, settings),
            LatentTokenDecoder(
                head=head,
                patch_size=patch_size,
                context_tokens=self.context_tokens(source),
                **common,
                **decoder["transformer"],
            ),
        )

    def build_head(self, source: Source) -> tuple[nn.Module, int]:
        """What draws a picture of tokens, and the side of a token's patch."""
        if LOGITS not in source:
            width, channels = source.shape("decoder.ffn.0.weight", 4)[:2]
            out_channels = source.shape("decoder.conv_out.weight", 4)[0]
            side = math.isqrt(width // out_channels)
            return PixelHead(out_channels=out_channels, channels=channels, patch_size=side), side
        if TEACHERS_CODES not in source:
            raise ValueError(
                f"entry {TEACHERS_CODES!r} is missing: expected the codes and the decoder that a picture is drawn by; "
                "files of the first stage of training have none"
            )
        size, dim = source.shape(TEACHERS_CODES, 2)
        pixels = build_decoder(source, dim, "pixel_decoder")
        head = CodeHead(pixels=pixels, channels=source.shape("decoder.decoder_embed.weight", 2)[0], codebook_size=size)
        return head, pixels.downsampling_factor

    def build_quantizer(self, source: Source, settings: Mapping[str, Any]) -> BaseQuantizer:
        """The quantizer of latents with `channel_dim` -1."""
        size, dim = source.shape(TABLE, 2)
        normalize = settings.get("use_l2_norm", LOGITS in source)
        if not isinstance(normalize, bool):
            raise ValueError(f"config.json has use_l2_norm={normalize!r}: expected true or false")
        return Quantizer("vq", dim=dim, codebook_size=size, normalize=normalize)

    def context_tokens(self, source: Source) -> int:
        """Further tokens that the decoder reads."""
        return 0

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        encoder, quantizer, decoder = tokenizer.encoder, tokenizer.quantizer, tokenizer.decoder
        assert isinstance(encoder, LatentTokenEncoder) and isinstance(decoder, LatentTokenDecoder)
        latents, mask_token = tuple(encoder.latents.shape), (1, *decoder.mask_token.shape)
        yield from named_entries("encoder.patches.projection", encoder.patches.projection, "encoder.patch_embed")
        yield Entry("encoder.latents", {"latent_tokens": latents})
        yield from _transformer_entries("encoder", encoder)
        yield from named_entries("encoder.projection", encoder.projection, "encoder.conv_out", axes=4)
        yield Entry("quantizer.codebook.vectors", {TABLE: (quantizer.codebook_size, quantizer.dim)})
        yield from named_entries("decoder.embedding", decoder.embedding, "decoder.decoder_embed")
        yield Entry("decoder.mask_token", {"decoder.mask_token": mask_token})
        yield from _transformer_entries("decoder", decoder)
        yield from self.head_entries(decoder.head)

    def head_entries(self, head: nn.Module) -> Iterator[Entry]:
        """What each weight of the head of the decoder is taken from."""
        if isinstance(head, PixelHead):
            names = {"to_pixels": "decoder.ffn.0", "convolution": "decoder.conv_out"}
        else:
            assert isinstance(head, CodeHead) and isinstance(head.pixels, MaskGITDecoder2d)
            names = {"to_logits.0": "decoder.ffn.0", "to_logits.2": "decoder.ffn.2"}
            yield Entry("decoder.head.codes.weight", {TEACHERS_CODES: tuple(head.codes.weight.shape)})
            yield from decoder_entries(head.pixels, "decoder.head.pixels", "pixel_decoder")
        for ours, theirs in names.items():
            yield from named_entries(f"decoder.head.{ours}", head.get_submodule(ours), theirs, axes=4)


class TATiTok(TiTok):
    """TA-TiTok with discrete tokens: BL-32, BL-64 and BL-128.

    Its decoder reads a text beside the tokens, and the encoder does not, so codes are those of the picture alone. A
    converted tokenizer has one text for all pictures: `text` becomes its `context`, further parameters of the decoder.

    Args:
        text: (tokens, channels), the last hidden states of CLIP ViT-L/14-336 behind its last norm for the text, (77,
            768) in what is published. Zeros will do where only tokens are wanted.

    Raises:
        TypeError: `text` is no tensor of floating point.
        ValueError: in `convert` without a text, or if the decoder takes other sizes.

    Source: Kim et al. 2025 (https://arxiv.org/abs/2501.07730) and its released code.
    """

    name = "TA-TiTok"
    telltale = CONTEXT_POSITIONS

    def __init__(self, text: Tensor | None = None) -> None:
        if text is not None and not (isinstance(text, Tensor) and text.is_floating_point()):
            raise TypeError(f"text is a {type(text).__name__}: expected a tensor of floating point, (tokens, channels)")
        self.text = text

    def build_quantizer(self, source: Source, settings: Mapping[str, Any]) -> BaseQuantizer:
        """See `TiTok`."""
        if USAGE not in source:
            return super().build_quantizer(source, settings)
        size, dim = source.shape(TABLE, 2)
        reinit = ClusterReinit(ClosestAnchor("euclidean"))
        return Quantizer("cvq", dim=dim, codebook_size=size, search=Search("euclidean"), maintenance=[reinit])

    def context_tokens(self, source: Source) -> int:
        """See `TiTok`."""
        number, _ = source.shape(CONTEXT_POSITIONS, 2)
        channels = source.shape("decoder.text_guidance_proj.weight", 2)[1]
        if self.text is None or self.text.shape != (number, channels):
            given = None if self.text is None else tuple(self.text.shape)
            raise ValueError(
                f"its decoder reads a text beside the tokens, and text has shape {given}: expected "
                f"{(number, channels)}, what CLIP makes of it; give convert family=TATiTok(text), zeros where only "
                "tokens are wanted"
            )
        return number

    def entries(self, source: Source, tokenizer: Tokenizer) -> Iterator[Entry]:
        """See `Family`."""
        yield from super().entries(source, tokenizer)
        size = tokenizer.quantizer.codebook_size
        if USAGE in source:
            yield Entry("quantizer.codebook.usage", {USAGE: (size,)}, lambda shares: size * shares)
        text, decoder = self.text, tokenizer.decoder
        assert text is not None and isinstance(decoder, LatentTokenDecoder) and decoder.context is not None
        number, channels = decoder.context.shape
        sources = {
            "decoder.text_guidance_proj.weight": (channels, text.shape[1]),
            CONTEXT_BIAS: (channels,),
            CONTEXT_POSITIONS: (number, channels),
        }
        yield Entry(
            "decoder.context",
            sources,
            lambda weight, bias, positions: text.double() @ weight.double().mT + bias + positions,
        )


def _settings(source: Source) -> Mapping[str, Any]:
    """What a `config.json` of the release says of the model, {} without one."""
    found: Any = source.config
    for name in ("model", "vq_model"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _sizes(source: Source, part: str) -> dict[str, Any]:
    """Patches on a side, and sizes of the transformer, of the encoder or the decoder.

    Raises:
        ValueError: an entry that says one is missing or has another number of axes, or sizes do not fit.
    """
    number, channels = source.shape(f"{part}.positional_embedding", 2)
    side = math.isqrt(max(number - 1, 0))
    if side**2 + 1 != number or not side:
        raise ValueError(
            f"entry '{part}.positional_embedding' is for {number} tokens: expected one and a square of patches"
        )
    if channels % CHANNELS_OF_A_HEAD:
        raise ValueError(f"its {part} has {channels} channels: expected heads of {CHANNELS_OF_A_HEAD}, as published")
    depth = number_of(lambda block: source.has_below(f"{part}.transformer.{block}"))
    transformer = {"channels": channels, "depth": depth, "num_heads": channels // CHANNELS_OF_A_HEAD}
    return {"side": side, "transformer": transformer}


def _transformer_entries(part: str, module: LatentTokenEncoder | LatentTokenDecoder) -> Iterator[Entry]:
    """Of what encoder and decoder have both."""
    for ours, theirs in TOKENS.items():
        yield Entry(f"{part}.{ours}", {f"{part}.{theirs}": tuple(module.get_parameter(ours).shape)})
    yield from named_entries(f"{part}.blocks", module.blocks, part, transformer_parts(len(module.blocks) - 1))
    yield from named_entries(f"{part}.norm", module.norm, f"{part}.ln_post")
