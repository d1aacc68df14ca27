"""SNAC's encoder and decoder: attention in windows, noise, recordings of any length, and blocks of them."""

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.refusals import refused
from vqkit import AudioTokenizer, MultiRateQuantizer, Quantizer
from vqkit.backbones.activations import Snake
from vqkit.backbones.block_attention import BlockAttention1d
from vqkit.backbones.depthwise1d import DepthwiseDecoder1d, DepthwiseEncoder1d
from vqkit.backbones.frame_transformer import WindowedTransformer, rotate
from vqkit.backbones.noise1d import NoiseInjection1d, injected_noise

SIZES: dict[str, Any] = {"channels": 16, "strides": (2, 3), "window_frames": 3}


def build(window_frames: int | None = 3) -> AudioTokenizer:
    """With an index for 2 frames and for each, and so steps of 2 frames in windows of 3."""
    torch.manual_seed(0)
    sizes = SIZES | {"window_frames": window_frames}
    code = partial(Quantizer, "vq", dim=64, codebook_size=16)
    quantizer = MultiRateQuantizer(code, [2, 1], channel_dim=1)
    codec = AudioTokenizer(
        DepthwiseEncoder1d(**sizes), quantizer, DepthwiseDecoder1d(dim=64, **sizes), sample_rate=6000
    )
    for layer in codec.modules():
        if isinstance(layer, BlockAttention1d):
            nn.init.normal_(layer.output.weight, std=0.3)
            nn.init.normal_(layer.query_key_value.weight, std=0.3)
    codec.initialize([sound(4, 600, seed=2).float()])
    return codec.double().eval()


def sound(batch: int, samples: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, 1, samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- attention


@pytest.mark.parametrize("frames", [3, 8, 9])
def test_attention_is_that_of_who_may_see_whom(frames: int) -> None:
    """By one mask over all frames; in rotary attention only differences of positions count."""
    torch.manual_seed(0)
    layer = BlockAttention1d(8, window_frames=4, head_channels=2).double()
    x = torch.randn(2, 8, frames, dtype=torch.float64)
    query, key, value = layer.query_key_value(layer.norm(x.mT)).unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4)
    places = torch.arange(frames)
    query, key = rotate(query, places), rotate(key, places)
    seen = places[:, None] // 4 == places // 4
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    expected = x + layer.output(attended.transpose(1, 2).flatten(2)).mT
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_nothing_passes_from_window_to_window_and_all_within_one() -> None:
    layer = BlockAttention1d(8, window_frames=4, head_channels=2).double()
    x = torch.randn(1, 8, 11, dtype=torch.float64, requires_grad=True)
    layer(x)[0, :, 5].sum().backward()
    assert (x.grad[0].abs().sum(0) > 0).tolist() == [False] * 4 + [True] * 4 + [False] * 3
    assert layer.reach(5, 5) == (2, 8)


# ---------------------------------------------------------------------- noise


def test_noise_is_added_in_training_and_where_it_is_asked_for() -> None:
    codec = build()
    indices = codec.encode(sound(1, 36))
    with torch.no_grad():
        quiet = codec.decode(indices)
        assert torch.equal(codec.decode(indices), quiet)
        with injected_noise(codec, torch.Generator().manual_seed(1)):
            noisy = codec.decode(indices)
            assert not torch.equal(codec.decode(indices), noisy)
        with injected_noise(codec.decoder, torch.Generator().manual_seed(1)):
            assert torch.equal(codec.decode(indices), noisy)
        assert torch.equal(codec.decode(indices), quiet)
        latents = codec.quantizer.decode(indices).double()
        codec.train()
        assert not torch.equal(codec.decoder(latents), codec.decoder(latents))


def test_noise_is_one_for_all_channels_times_a_linear_map() -> None:
    layer = NoiseInjection1d(3).double().eval()
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    with injected_noise(layer, torch.Generator().manual_seed(1)):
        found = layer(x)
    noise = torch.randn(2, 1, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = x + noise * torch.einsum("oi,bit->bot", layer.map.weight[..., 0], x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(layer(x), x)


def test_noise_needs_a_layer_and_ends_with_an_error_inside() -> None:
    message = "Linear has no NoiseInjection1d: expected a decoder that adds noise"
    with pytest.raises(ValueError, match=message), injected_noise(nn.Linear(1, 1)):
        pass
    layer = NoiseInjection1d(3)
    with pytest.raises(RuntimeError), injected_noise(layer):
        raise RuntimeError
    assert not layer.injects
    with injected_noise(layer, generator := torch.Generator()):
        with injected_noise(layer):
            assert layer.generator is None
        assert layer.injects and layer.generator is generator


@pytest.mark.parametrize("attention", [BlockAttention1d(64, window_frames=3), WindowedTransformer(64, num_layers=1)])
def test_no_recordings_are_no_frames(attention: nn.Module) -> None:
    assert attention(torch.zeros(0, 64, 7)).shape == (0, 64, 7)


# ---------------------------------------------------------------------- recordings


@pytest.mark.parametrize("samples", [36, 37])
def test_recordings_are_filled_up_to_whole_windows_and_steps(samples: int) -> None:
    codec = build()
    whole = -(-samples // 36) * 36  # 6 frames of 6 samples: two windows, three steps
    wave = sound(2, samples)
    indices = codec.encode(wave)
    assert indices.shape == (2, whole // 6 + whole // 12)
    assert torch.equal(indices, codec.encode(F.pad(wave, (0, whole - samples))))
    assert codec.decode(indices, length=samples).shape == codec(wave).reconstruction.shape == wave.shape


@pytest.mark.parametrize(
    ("window_frames", "frames_per_block"),
    [(3, 10)] + [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((3, 1), (None, 1), (None, 10))],
)
def test_blocks_give_the_same_codes_and_sound(window_frames: int | None, frames_per_block: int) -> None:
    codec = build(window_frames)
    wave = sound(1, 400)
    indices = codec.encode(wave)
    assert len(indices.unique()) > 4
    pieces = list(codec.encode_blocks(wave.split(70, dim=-1), frames_per_block=frames_per_block))
    assert len(pieces) > 2 and torch.equal(codec.join(pieces), indices)
    blocks = list(codec.decode_blocks(pieces, frames_per_block=frames_per_block))
    assert len(blocks) > 2
    torch.testing.assert_close(torch.cat(blocks, -1), codec.decode(indices), rtol=1e-10, atol=1e-10)


def test_blocks_begin_where_windows_of_the_decoder_do() -> None:
    codec = build(window_frames=None)
    codec.decoder = build().decoder
    rows = torch.randint(16, (1, 40, 3), generator=torch.Generator().manual_seed(0))
    indices = codec.quantizer.deinterleave(rows)
    sound = torch.cat(list(codec.decode_blocks([indices], frames_per_block=10)), -1)
    torch.testing.assert_close(sound, codec.decode(indices), rtol=1e-10, atol=1e-10)


def test_noise_may_be_left_out_and_the_activation_chosen() -> None:
    decoder = DepthwiseDecoder1d(dim=64, injects_noise=False, activation=Snake, **SIZES)
    assert not any(isinstance(layer, NoiseInjection1d) for layer in decoder.modules())
    assert isinstance(decoder.get_submodule(decoder.output_layer).convolution, nn.Conv1d)


test_mistakes_are_named = refused(
    (lambda: DepthwiseEncoder1d(strides=(2, 0)), r"strides=\(2, 0\): expected positive numbers"),
    (lambda: DepthwiseEncoder1d(channels=0), "channels=0: expected a positive number"),
    (lambda: DepthwiseEncoder1d(channels=8, strides=(2,), window_frames=4), "head_channels=64: expected an even div"),
    (lambda: DepthwiseDecoder1d(dim=0), "dim=0: expected a positive number"),
    (lambda: BlockAttention1d(64, window_frames=0), "window_frames=0: expected a positive number"),
    (lambda: NoiseInjection1d(0), "channels=0: expected a positive number"),
)
