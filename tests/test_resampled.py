"""A transformer and a learned resampling around the backbones of sound: Mimi's arrangement, on small sizes."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.refusals import refused
from tests.test_audio_tokenizer import chunks_of, noise
from tests.test_sound_backbones import shake
from vqkit import AudioTokenizer, Quantizer, ResidualQuantizer, SplitQuantizer
from vqkit.backbones.activations import ELU
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.frame_transformer import WindowedTransformer
from vqkit.backbones.resampled import ResampledDecoder1d, ResampledEncoder1d
from vqkit.backbones.streaming import streaming

# Random weights give a few latents far from the others.
pytestmark = pytest.mark.filterwarnings("ignore:Quantizer. the codes spread")

SIZES: dict[str, Any] = {"dim": 8, "channels": 4, "strides": (2, 3), "dilations": (1,), "activation": ELU}
TRANSFORMER = partial(WindowedTransformer, num_layers=2, num_heads=2, context_frames=3, layer_scale=1.0)
ROUNDING = 1e-12
"""Some twenty layers of sums of up to a hundred products of numbers about 1, each rounded by 1e-16."""


def build(
    *, causal: bool = True, stride: int = 2, transformer: Any = TRANSFORMER
) -> tuple[ResampledEncoder1d, ResampledDecoder1d]:
    torch.manual_seed(0)
    options: dict[str, Any] = {"stride": stride, "transformer": transformer}
    if transformer is TRANSFORMER:
        options["transformer"] = partial(TRANSFORMER, causal=causal)
    encoder = ResampledEncoder1d(ConvEncoder1d(**SIZES, causal=causal), **options)
    decoder = ResampledDecoder1d(ConvDecoder1d(**SIZES, causal=causal), **options)
    shake(encoder, decoder)
    return encoder.double().eval(), decoder.double().eval()


def make_codec(causal: bool = True) -> AudioTokenizer:
    encoder, decoder = build(causal=causal)
    book = partial(Quantizer, "ema", dim=4, codebook_size=32)
    quantizer = SplitQuantizer([book, partial(ResidualQuantizer, book, 3)], dim=8, channel_dim=1)
    codec = AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000)
    codec.initialize([noise(4, 1, 2400).double()], samples=400)
    return codec.eval()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_order_of_layers_and_their_equations(stride: int, causal: bool) -> None:
    """Convolution and transposed convolution written out: y_t = sum_k W_k x_{s t + k - before}, with x_t for t < 0 that
    of t = 0 and x_t behind the end that of the last, and z_{s t + k - cut} += v_k y_t for each channel by itself."""
    encoder, decoder = build(causal=causal, stride=stride)
    waves = noise(2, 1, 7 * 6 * stride).double()
    frames = encoder.transformer(encoder.encoder(waves))
    assert frames.shape == (2, 8, 7 * stride)
    before = stride if causal else (stride + 1) // 2
    places = (torch.arange(0, 7 * stride, stride)[:, None] + torch.arange(2 * stride) - before).clamp(0, 7 * stride - 1)
    expected = torch.einsum("bctk,ock->bot", frames[..., places], encoder.downsample.convolution.weight)
    latents = encoder(waves)
    torch.testing.assert_close(latents, expected, rtol=0, atol=ROUNDING)

    full = torch.zeros(2, 8, 7 * stride + stride).double()
    for place, tap in ((t, k) for t in range(7) for k in range(2 * stride)):
        full[..., place * stride + tap] += decoder.upsample.convolution.weight[:, 0, tap] * latents[..., place]
    cut = 0 if causal else (stride + 1) // 2
    expected = decoder.decoder(decoder.transformer(full[..., cut : cut + 7 * stride]))
    torch.testing.assert_close(decoder(latents), expected, rtol=0, atol=ROUNDING)
    assert encoder.downsample.convolution.bias is None and decoder.upsample.convolution.bias is None


@pytest.mark.parametrize("size", [1, 2, 5])
def test_chunks_of_latents_give_what_one_pass_gives(size: int) -> None:
    encoder, decoder = build()
    waves = noise(2, 1, 23 * 12).double()
    with torch.no_grad():
        latents = encoder(waves)
        sound = decoder(latents)
    with streaming(encoder), streaming(decoder):
        parts = [encoder(chunk) for chunk in waves.split(12 * size, -1)]
        pieces = [decoder(part) for part in parts]
    torch.testing.assert_close(torch.cat(parts, -1), latents, rtol=0, atol=ROUNDING)
    torch.testing.assert_close(torch.cat(pieces, -1), sound, rtol=0, atol=ROUNDING)


def test_a_codec_streams_at_the_delay_of_a_latent() -> None:
    codec, wave = make_codec(), noise(2, 1, 60 * 12 + 5).double()
    whole = codec.encode(wave)
    assert whole.shape == (2, 61, 4) and len(whole[..., 0].unique()) > 8
    with codec.streaming() as stream:
        parts = [stream.encode(chunk) for chunk in chunks_of(wave, 0)] + [stream.flush()]
        pieces = [stream.decode(part) for part in parts]
    assert torch.equal(codec.join(parts), whole)
    torch.testing.assert_close(torch.cat(pieces, -1), codec.decode(whole), rtol=0, atol=1e-5)  # codes leave as float32
    assert codec.latency == 12 / 8000


@pytest.mark.slow
def test_export_with_a_dynamic_batch() -> None:
    """Of one length: blocks of attention are counted in Python."""
    encoder, _ = build()
    waves = noise(3, 1, 120).double()
    program = torch.export.export(encoder, (waves[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(waves), encoder(waves), rtol=0, atol=ROUNDING)


test_what_does_not_fit_is_refused = refused(
    (lambda: ResampledEncoder1d(nn.Linear(3, 3)), r"encoder=Linear has dim=None, downsampling_factor=None and"),
    (lambda: ResampledDecoder1d(ConvDecoder1d(**SIZES), stride=0), "stride=0: expected a positive number"),
    (
        lambda: ResampledEncoder1d(ConvEncoder1d(**SIZES, causal=True), transformer=partial(TRANSFORMER, causal=False)),
        r"WindowedTransformer.causal is not True",
    ),
)
