"""Activations at twice the sample rate: the filter, its equation, and what it keeps out of the band."""

import math
from functools import partial

import numpy
import pytest
import torch
import torch.nn.functional as F
from scipy.signal.windows import kaiser
from torch import Tensor, nn

from tests.test_sound_backbones import looked_at, shake
from vqkit.backbones.activations import ELU, SnakeBeta
from vqkit.backbones.antialiasing import AntiAliased, low_pass
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.streaming import streaming
from vqkit.backbones.temporal import Convolution1d
from vqkit.saving.config import from_config, to_config


def test_the_filter_is_a_sinc_with_a_kaiser_window() -> None:
    """12 taps, a quarter of the rate, a transition of 0.3 on each side: `beta` by Kaiser's formula."""
    attenuation = 2.285 * 5 * math.pi * 1.2 + 7.95
    assert attenuation > 50
    beta = 0.1102 * (attenuation - 8.7)
    times = numpy.arange(12) - 5.5
    expected = kaiser(12, beta) * numpy.sinc(times / 2)
    found = low_pass().double()
    # Twelve numbers of at most 1/2 in float32, whose window has some ten roundings.
    torch.testing.assert_close(found, torch.from_numpy(expected / expected.sum()), rtol=0, atol=1e-6)


def oracle(taps: Tensor, activation: nn.Module, x: Tensor) -> Tensor:
    """Zeros between the samples, the filter, the activation, the filter, and every second sample."""
    time = x.shape[-1]
    stuffed = torch.zeros(*x.shape[:-1], 2 * (time + 10), dtype=x.dtype)
    stuffed[..., ::2] = F.pad(x, (5, 5), mode="replicate")
    double = torch.zeros(*x.shape[:-1], 2 * time, dtype=x.dtype)
    for n in range(2 * time):
        for k in range(12):
            # The even filter has its middle between taps 5 and 6, and so half a sample behind.
            double[..., n] += 2 * taps[k] * stuffed[..., 10 + n + 5 - k]
    double = activation(double)
    result = torch.zeros_like(x)
    for t in range(time):
        for k in range(12):
            result[..., t] += taps[k] * double[..., min(max(2 * t + k - 5, 0), 2 * time - 1)]
    return result


@pytest.mark.parametrize("time", [1, 2, 9])
def test_it_is_its_equation(time: int) -> None:
    layer = AntiAliased(3).double()
    shake(layer)
    x = torch.randn(2, 3, time, dtype=torch.float64)
    torch.testing.assert_close(layer(x), oracle(layer.filters.taps, layer.activation, x))


def test_snake_beta_is_its_equation_and_stays_one() -> None:
    snake, x = SnakeBeta(3).double(), torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(snake(x), x + x.sin() ** 2)
    shake(snake)
    a, b = snake.log_frequency.exp(), snake.log_divisor.exp()
    torch.testing.assert_close(snake(x), x + (a * x).sin() ** 2 / b)
    assert snake.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="channels=0: expected a positive number"):
        SnakeBeta(0)


def test_frequencies_that_the_activation_adds_are_not_folded_back() -> None:
    """The square of a sine at 0.35 of the rate is at 0.7, which at the plain rate would sound at 0.3; 12 taps pass some
    of it."""
    x = torch.sin(2 * math.pi * 0.35 * torch.arange(400.0)).view(1, 1, -1)
    plain, filtered = SnakeBeta(1)(x), AntiAliased(1)(x)
    at = round(0.3 * 300)
    folded, kept = (torch.fft.rfft(wave[..., 50:350]).abs()[0, 0, at] for wave in (plain, filtered))
    assert kept < folded / 3


def test_the_context_is_exact() -> None:
    layer = AntiAliased(2).double()
    shake(layer)
    x = torch.randn(1, 2, 40, dtype=torch.float64)
    assert looked_at(layer, x, 20, 22) == layer.reach(20, 22) == (15, 27)


@pytest.mark.parametrize("activation", [AntiAliased, partial(AntiAliased, activation=ELU)])
def test_models_with_it_know_how_far_they_look(activation) -> None:
    sizes = {"dim": 3, "channels": 2, "strides": (2, 3), "dilations": (1,), "activation": activation}
    encoder, decoder = ConvEncoder1d(**sizes).double(), ConvDecoder1d(**sizes).double()
    plain = [kind(**sizes | {"activation": ELU}) for kind in (ConvEncoder1d, ConvDecoder1d)]
    # Three at the rate of the samples, three at half of it and one at a sixth; the other way round in the decoder.
    before, after = (samples + 5 * (3 * 1 + 3 * 2 + 1 * 6) for samples in plain[0].context)
    assert encoder.context == (before, after)
    assert decoder.context is not None and decoder.context[0] > plain[1].context[0]
    frames = -(-before // 6) + 1
    waves = torch.randn(1, 1, (frames + 2 + -(-after // 6)) * 6, dtype=torch.float64)
    shake(encoder)
    assert looked_at(encoder, waves, frames, frames) == (frames * 6 - before, frames * 6 + 5 + after)
    assert to_config(from_config(to_config(encoder))) == to_config(encoder)


def test_nothing_causal_has_it() -> None:
    with pytest.raises(ValueError, match="AntiAliased is not causal"), streaming(AntiAliased(2)):
        pass
    for kind in (ConvEncoder1d, ConvDecoder1d):
        with pytest.raises(ValueError, match="causal=True with AntiAliased, which looks ahead"):
            kind(dim=3, channels=2, strides=(2,), causal=True, activation=AntiAliased)


@pytest.mark.slow
def test_an_encoder_with_it_is_that_of_x_codec_2() -> None:
    """The class of transformers, in its order of layers, with random weights; BigCodec's has an LSTM besides."""
    xcodec2 = pytest.importorskip("transformers.models.xcodec2.modeling_xcodec2")
    config = xcodec2.Xcodec2Config(encoder_hidden_size=4, hidden_size=16, downsampling_ratios=[2, 5])
    published = xcodec2.Xcodec2Encoder(config).double().eval()
    shake(published)
    encoder = ConvEncoder1d(dim=16, channels=4, strides=(2, 5), activation=AntiAliased).double()
    ours = [layer for layer in encoder.modules() if isinstance(layer, Convolution1d | SnakeBeta)]
    theirs = [layer for layer in published.modules() if isinstance(layer, nn.Conv1d | xcodec2.Xcodec2SnakeBeta)]
    with torch.no_grad():
        for layer, other in zip(ours, theirs, strict=True):
            if isinstance(layer, Convolution1d):
                layer.convolution.weight = other.weight.detach()
                layer.convolution.bias.copy_(other.bias)
            else:
                layer.log_frequency.copy_(other.alpha.unsqueeze(-1))
                layer.log_divisor.copy_(other.beta.unsqueeze(-1))
        waves = torch.randn(2, 1, 300, dtype=torch.float64)
        latents = published(waves)
        # The filters of 12 taps are float32 on both sides; the rest is float64, some thirty layers of about unit gain.
        torch.testing.assert_close(encoder(waves), latents, rtol=1e-9, atol=1e-9)
