import copy
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.frame_transformer import WindowedTransformer
from vqkit.backbones.streaming import StreamingLayer, streaming

TRANSFORMER = partial(WindowedTransformer, num_layers=2, num_heads=2, context_frames=4, layer_scale=1.0)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"strides": (5, 1), "dilations": (1, 3), "residual_kernel_size": 3},
    {"strides": (3,), "patch_size": 4, "linear_path": True},
    {"linear_path": True, "transformer": TRANSFORMER},
]
FRAMES = 40


def build(**options: Any) -> tuple[ConvEncoder1d, ConvDecoder1d]:
    torch.manual_seed(0)
    options = {"dim": 6, "channels": 4, "strides": (2, 3), "causal": True} | options
    pair = ConvEncoder1d(**options), ConvDecoder1d(**options)
    with torch.no_grad():  # away from zeros
        for parameter in nn.ModuleList(pair).parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return pair


def in_chunks(module: nn.Module, x: Tensor, sizes: list[int]) -> Tensor:
    with streaming(module):
        return torch.cat([module(chunk) for chunk in x.split(sizes, -1)], -1)


def random_sizes(frames: int, generator: torch.Generator) -> list[int]:
    sizes = []
    while sum(sizes) < frames:
        sizes.append(min(int(torch.randint(1, 9, (), generator=generator)), frames - sum(sizes)))
    return sizes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "default")
def test_chunks_of_any_size_give_what_one_pass_gives(options: dict[str, Any], seed: int) -> None:
    encoder, decoder = build(**options)
    factor = encoder.downsampling_factor
    sizes = random_sizes(FRAMES, torch.Generator().manual_seed(seed))
    waves, latents = torch.randn(2, 1, FRAMES * factor), torch.randn(2, 6, FRAMES)
    with torch.no_grad():
        expected = encoder(waves), decoder(latents)
    assert expected[0].std() > 0.1 and expected[1].std() > 0.1
    torch.testing.assert_close(
        in_chunks(encoder, waves, [size * factor for size in sizes]), expected[0], atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(in_chunks(decoder, latents, sizes), expected[1], atol=1e-5, rtol=1e-5)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8))
def test_in_double_precision_nothing_is_left_but_rounding(sizes: list[int]) -> None:
    model = nn.Sequential(*build(**OPTIONS[-1])).double()
    factor = model[0].downsampling_factor
    waves = torch.randn(1, 1, sum(sizes) * factor, dtype=torch.float64)
    with torch.no_grad():
        expected = model(waves)
    streamed = in_chunks(model, waves, [size * factor for size in sizes])
    torch.testing.assert_close(streamed, expected, atol=1e-12 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options) or "default")
def test_the_first_chunk_is_the_beginning_of_one_pass(options: dict[str, Any]) -> None:
    model = nn.Sequential(*build(**options)).double()
    waves = torch.randn(1, 1, 2 * model[0].downsampling_factor, dtype=torch.float64)
    with torch.no_grad():
        expected = model(waves)
    with streaming(model):  # the same sums, in another order on some processors
        torch.testing.assert_close(model(waves), expected, atol=1e-12 * float(expected.abs().max()), rtol=0)


def test_weight_norm_is_computed_once_per_stream() -> None:
    encoder, _ = build()
    waves = torch.randn(1, 1, 60)
    norm = encoder.layers[0].convolution.parametrizations.weight
    calls = []
    norm.register_forward_hook(lambda *_: calls.append(1))
    in_chunks(encoder, waves, [6] * 10)
    assert len(calls) == 1
    with torch.no_grad():
        norm.original0 *= 2  # as training does between two streams
        expected = encoder(waves)
    assert len(calls) == 2
    torch.testing.assert_close(in_chunks(encoder, waves, [6] * 10), expected, atol=1e-5, rtol=1e-5)


def test_a_long_stream_does_not_drift() -> None:
    model = TRANSFORMER(8)
    chunk = torch.randn(1, 8, 1)
    with streaming(model):
        for _ in range(20):
            early = model(chunk)
        for layer in model.modules():
            if isinstance(layer, StreamingLayer):
                assert layer.stream is not None and layer.stream.seen == 20
                layer.stream.seen += 10**9  # a year of 30 Hz
        torch.testing.assert_close(model(chunk), early)


def test_what_is_kept_is_short_and_holds_no_chunk() -> None:
    encoder, _ = build(**OPTIONS[-1])
    with streaming(encoder):
        encoder(torch.randn(1, 1, 6 * 1000))
        kept = [layer.stream.past for layer in encoder.modules() if isinstance(layer, StreamingLayer) and layer.stream]
        held = [past.untyped_storage().nbytes() for past in kept if past is not None]
    assert len(held) > 10 and max(held) < 4000


def test_gradients_are_off_inside_and_on_again_outside() -> None:
    encoder, _ = build()
    waves = torch.randn(1, 1, 60)
    with streaming(encoder) as inside:
        assert inside is encoder
        assert not encoder(waves).requires_grad
    assert encoder(waves).requires_grad


def test_the_end_of_a_stream_leaves_nothing() -> None:
    encoder, _ = build(transformer=TRANSFORMER)
    waves = torch.randn(1, 1, 60)
    with torch.no_grad():
        expected = encoder(waves)
    with streaming(encoder):
        encoder(waves)
        during = set(encoder.state_dict())
    assert during == set(encoder.state_dict())
    with torch.no_grad():
        assert torch.equal(encoder(waves), expected)
    with streaming(encoder):
        assert torch.equal(encoder(waves), expected), "a stream began with the end of another"
    with pytest.raises(ZeroDivisionError), streaming(encoder):
        encoder(waves)
        raise ZeroDivisionError
    with streaming(encoder):
        assert torch.equal(encoder(waves), expected), "an error left a stream open"


def test_one_stream_at_a_time() -> None:
    model = nn.Sequential(*build())
    other = copy.deepcopy(model)
    with streaming(model):
        message = r"ConvEncoder1d\..* is in a stream already: close it first"
        with pytest.raises(RuntimeError, match=message), streaming(model[0]):
            pass
        with streaming(other):
            assert other(torch.randn(1, 1, 6)).shape == (1, 1, 6)
        assert model(torch.randn(1, 1, 6)).shape == (1, 1, 6), "the refusal closed the stream"
        with pytest.raises(RuntimeError, match="in a stream already"), streaming(model):
            pass
    with streaming(model[0]), streaming(model[1]):
        model(torch.randn(1, 1, 6))


def test_two_signals_are_a_batch() -> None:
    encoder, _ = build(transformer=TRANSFORMER)
    waves = torch.randn(2, 1, 60)
    both = in_chunks(encoder, waves, [12] * 5)
    for signal, alone in zip(waves, both, strict=True):
        torch.testing.assert_close(in_chunks(encoder, signal[None], [12] * 5), alone[None], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: build(causal=False)[0], r"ConvEncoder1d is not causal \(causal=False\)"),
        (lambda: nn.Sequential(build()[0], build(causal=False)[1]), "Sequential.1 is not causal"),
        (lambda: nn.Linear(3, 3), "Linear has no layer that streams"),
    ],
)
def test_what_cannot_stream_is_refused(module, message: str) -> None:
    refused = module()
    with pytest.raises(ValueError, match=message), streaming(refused):
        pass
    assert all(layer.stream is None for layer in refused.modules() if isinstance(layer, StreamingLayer))


def test_a_chunk_of_another_batch_is_refused() -> None:
    encoder, _ = build()
    with streaming(encoder):
        encoder(torch.randn(2, 1, 6))
        with pytest.raises(ValueError, match="the stream began with 2 signals and continues with 3"):
            encoder(torch.randn(3, 1, 6))
        assert encoder(torch.randn(2, 1, 6)).shape == (2, 6, 1)


def test_a_chunk_on_another_device_is_refused() -> None:
    encoder, _ = build()
    with streaming(encoder):
        encoder(torch.randn(1, 1, 6))
        with pytest.raises(ValueError, match="the stream began on cpu and continues on meta: open a new one"):
            encoder.to("meta")(torch.randn(1, 1, 6, device="meta"))


def test_a_chunk_that_is_no_whole_frame_is_refused() -> None:
    encoder, _ = build()
    with streaming(encoder), pytest.raises(ValueError, match="multiple of the downsampling factor 6"):
        encoder(torch.randn(1, 1, 7))
