"""SNAC, as its author publishes it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from vqkit.backbones.depthwise1d import DepthwiseDecoder1d, DepthwiseEncoder1d
from vqkit.conversion.dac import (
    SIDES,
    UNITS,
    SideNames,
    code_sizes,
    level_name,
    quantizer_entries,
    sequence_names,
    side_entries,
    units_at,
)
from vqkit.conversion.family import Entry, Family
from vqkit.conversion.source import Source
from vqkit.conversion.vqgan import number_of
from vqkit.conversion.weight_norm import filter_shape, normalization_of
from vqkit.quantizers.multirate import MultiRateQuantizer
from vqkit.quantizers.quantizer import Quantizer
from vqkit.quantizers.reduction import SumOverMembers
from vqkit.tokenizers.audio import AudioTokenizer

FREQUENCIES = ".rel_pos.inv_freq"
"""Rotary frequencies, which are stored and not trained."""


class SNAC(Family):
    """SNAC at 24, 32 and 44.1 kHz: folder with `pytorch_model.bin`, and `config.json` that says what weights do not.

    The released decoder adds noise at each call; the tokenizer does so inside of `injected_noise` alone
    (`vqkit.backbones.noise1d`).

    Source: Siuzdak et al. 2024 (https://arxiv.org/abs/2410.14411) and its released code.
    """

    name = "SNAC"
    telltale = "encoder.block.1.block.0.block.0.alpha"
    license = "mit"

    def weights(self, source: Source) -> Source:
        """Without rotary frequencies, which have to be the usual ones.

        Raises:
            ValueError: they are others.
        """
        stored = {name for name in source.state if name.endswith(FREQUENCIES)}
        for name in stored:
            count = source.state[name].numel()
            usual = 10_000.0 ** (-torch.arange(count) / max(count, 1))
            # Of 16 bits, in which weights may be stored.
            if not torch.allclose(source.state[name].float().flatten(), usual, rtol=2**-7):
                raise ValueError(f"entry {name!r} holds other rotary frequencies than 10000^(-i / {count})")
        return replace(source, state={name: value for name, value in source.state.items() if name not in stored})

    def build(self, source: Source) -> AudioTokenizer:
        """See `Family`."""
        inward, outward = _encoder_names(source), _decoder_names(source)
        window = _window(source)
        quantizer = _quantizer(source)
        channels, in_channels, _ = filter_shape(source, inward.first[0])
        out_channels, width, _ = filter_shape(source, outward.last[-1])
        return AudioTokenizer(
            DepthwiseEncoder1d(
                in_channels=in_channels,
                channels=channels,
                strides=inward.strides(source),
                window_frames=window,
                normalization=normalization_of(source, "encoder"),
            ),
            quantizer,
            DepthwiseDecoder1d(
                out_channels=out_channels,
                dim=quantizer.dim,
                channels=width,
                strides=outward.strides(source)[::-1],
                window_frames=window,
                injects_noise=_injects_noise(source),
                normalization=normalization_of(source, "decoder"),
            ),
            sample_rate=source.number("sampling_rate"),
        )

    def entries(self, source: Source, tokenizer: Any) -> Iterator[Entry]:
        """See `Family`."""
        yield from side_entries(source, "encoder", tokenizer.encoder, _encoder_names(source))
        yield from side_entries(source, "decoder", tokenizer.decoder, _decoder_names(source))
        yield from quantizer_entries(source, tokenizer.quantizer)


def _encoder_names(source: Source) -> SideNames:
    inside = [*units_at(0), f"{UNITS}", f"{UNITS + 1}"]
    return sequence_names(source, "encoder.block", 1, inside, f"{UNITS + 1}", 1 + _attends(source, "encoder"))


def _decoder_names(source: Source) -> SideNames:
    noise = _injects_noise(source)
    inside = ["0", "1", *["2"] * noise, *units_at(2 + noise)]
    return sequence_names(source, "decoder.model", 2 + _attends(source, "decoder"), inside, "1", 2)


def _attends(source: Source, side: str) -> bool:
    return any(name.startswith(f"{side}.") and ".to_qkv." in name for name in source.state)


def _injects_noise(source: Source) -> bool:
    return source.has_below(f"decoder.model.{2 + _attends(source, 'decoder')}.block.2.linear")


def _quantizer(source: Source) -> MultiRateQuantizer:
    """Levels of DAC's codes with its losses, of which each has an index for so many frames."""
    strides: Any = source.config.get("vq_strides")
    count = number_of(lambda number: source.has_below(level_name(number)))
    listed = isinstance(strides, list) and all(type(size) is int and size >= 1 for size in strides)
    if not listed or len(strides) != count:
        raise ValueError(f"vq_strides={strides!r} in its config.json: expected frames for each index of {count} levels")
    level = partial(Quantizer, **code_sizes(source))
    return MultiRateQuantizer(level, strides, estimator=None, reduction=SumOverMembers(), channel_dim=1)


def _window(source: Source) -> int | None:
    attends = [_attends(source, side) for side in SIDES]
    if not any(attends):
        return None
    if not all(attends):
        raise ValueError("there is attention in one of encoder and decoder: expected it in both or in neither")
    return source.number("attn_window_size")
