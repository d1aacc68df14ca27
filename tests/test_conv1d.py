import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.test_sound_backbones import TRANSFORMER, Everything, shake
from vqkit.backbones.activations import ELU, Snake, Tanh
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.frame_transformer import WindowedTransformer
from vqkit.backbones.mdct import blocked_basis, lapped_basis
from vqkit.backbones.streaming import streaming
from vqkit.backbones.temporal import Convolution1d, Deconvolution1d

SMALL: dict[str, Any] = {"dim": 6, "channels": 4, "strides": (2, 3)}


def build(*, signals: int = 1, **options: Any) -> tuple[ConvEncoder1d, ConvDecoder1d]:
    torch.manual_seed(0)
    options = SMALL | options
    return ConvEncoder1d(in_channels=signals, **options), ConvDecoder1d(out_channels=signals, **options)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    strides=st.lists(st.integers(1, 6), max_size=3),
    patch_size=st.integers(1, 4),
    channels=st.integers(1, 3),
    kernel_size=st.integers(1, 8),
    causal=st.booleans(),
    linear_path=st.booleans(),
    frames=st.integers(1, 4),
)
def test_any_strides_and_any_kernels(strides, patch_size, channels, kernel_size, causal, linear_path, frames) -> None:
    options = {
        "dim": 3,
        "channels": channels,
        "strides": strides,
        "dilations": (2,),
        "kernel_size": kernel_size,
        "residual_kernel_size": kernel_size,
        "latent_kernel_size": kernel_size,
        "patch_size": patch_size,
        "causal": causal,
        "linear_path": linear_path,
    }
    encoder, decoder = ConvEncoder1d(**options), ConvDecoder1d(**options)
    waves = torch.randn(1, 1, frames * encoder.downsampling_factor)
    latents = encoder(waves)
    assert latents.shape == (1, 3, frames)
    assert decoder(latents).shape == waves.shape


def test_a_transformer_is_built_in_at_the_widest_place() -> None:
    for plain, part in zip(build(), build(transformer=TRANSFORMER), strict=True):
        (transformer,) = (module for module in part.modules() if isinstance(module, WindowedTransformer))
        assert transformer.layers[0].attention.output.in_features == 4 * 2 * 2
        reach = 2 * 3 * (part.downsampling_factor if isinstance(part, ConvEncoder1d) else 1)
        assert part.context == (plain.context[0] + reach, plain.context[1] + reach)


@pytest.mark.parametrize(("cap", "widths"), [(None, {4, 8, 16}), (10, {4, 8, 10}), (4, {4})])
def test_widths_double_up_to_the_cap(cap: int | None, widths: set[int]) -> None:
    for part in build(max_channels=cap, dim=1):
        layers = [module for module in part.modules() if isinstance(module, nn.Conv1d | nn.ConvTranspose1d)]
        assert {width for layer in layers for width in (layer.in_channels, layer.out_channels)} == widths | {1}


def test_published_sizes() -> None:
    def millions(*modules: nn.Module) -> float:
        return sum(parameter.numel() for module in modules for parameter in module.parameters()) / 1e6

    with torch.device("meta"):
        pair = ConvEncoder1d(dim=1024), ConvDecoder1d(dim=1024)
    # DAC for 44.1 kHz has 76 million with its quantizer, which has 0.2 of them.
    assert millions(*pair) == pytest.approx(76.4, abs=0.1)
    assert [part.downsampling_factor for part in pair] == [512, 512]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize(("strides", "patch_size"), [((4, 2), 1), ((3, 5), 1), ((3,), 4)])
def test_the_linear_path_starts_exact(strides: tuple[int, ...], patch_size: int, signals: int, causal: bool) -> None:
    """But for half a hop at each end, where the lapped windows have no second one."""
    hop = math.prod(strides) * patch_size
    encoder, decoder = build(
        signals=signals, dim=signals * hop, strides=strides, patch_size=patch_size, linear_path=True, causal=causal
    )
    waves = torch.randn(2, signals, 9 * hop)
    with torch.no_grad():
        error = (decoder(encoder(waves)) - waves).abs().amax((0, 1))
    edge = 0 if causal else hop // 2
    assert error[edge : len(error) - (hop - edge if edge else 0)].max() < 1e-5
    assert causal or (error[:edge].max() > 0.01 and error[-edge:].max() > 0.01)


@pytest.mark.parametrize("causal", [False, True])
def test_a_short_linear_path_keeps_low_frequencies(causal: bool) -> None:
    encoder, decoder = build(dim=16, strides=(8, 8), linear_path=True, causal=causal)
    times = torch.arange(64 * 20)

    def kept(cycles_per_hop: float) -> float:
        wave = (2 * math.pi * cycles_per_hop / 64 * times).sin()[None, None]
        with torch.no_grad():
            inner = (decoder(encoder(wave)) - wave)[..., 64:-64]
        return 1 - float(inner.square().mean() / wave.square().mean())

    # A coefficient is half a cycle per hop wide, so that 16 of them reach to 8 cycles per hop.
    assert kept(4.3) > (0.99 if not causal else 0.9)
    assert abs(kept(20.3)) < 0.05


@pytest.mark.parametrize(("dim", "channels"), [(12, 1), (7, 1), (10, 2), (30, 2)])
def test_bases_are_orthonormal(dim: int, channels: int) -> None:
    rank = min(dim, 12 * channels)
    expected = torch.diag((torch.arange(dim) < rank).double())
    for basis in (lapped_basis(dim, channels, 12), blocked_basis(dim, channels, 12)):
        rows = basis.flatten(1).double()
        # An entry is rounded once, to float32, after two products in float64.
        torch.testing.assert_close(rows @ rows.T, expected, atol=3 * 2**-24, rtol=0)
        if channels == 2:
            torch.testing.assert_close(basis[0, 0], basis[0, 1])
            assert any(torch.allclose(row[0], -row[1], atol=1e-6) and bool(row.any()) for row in basis)


@pytest.mark.parametrize("activation", [Snake, ELU])
@pytest.mark.parametrize("depth", [(2, 4), (2, 4, 5, 8)])
def test_first_outputs_are_in_a_sane_range(activation: type[nn.Module], depth: tuple[int, ...]) -> None:
    encoder, decoder = build(dim=32, channels=8, strides=depth, activation=activation)
    waves = 0.1 * torch.randn(1, 1, 40 * encoder.downsampling_factor)
    with torch.no_grad():
        latents = encoder(waves)
        assert 0.03 < latents.std() < 1
        assert 0.03 < decoder(latents).std() < 2


def test_weight_norm_is_of_output_channels_and_not_of_what_starts_at_zero() -> None:
    forward = Convolution1d(3, 5, 4, stride=2, causal=True).convolution.parametrizations.weight
    back = Deconvolution1d(3, 5, 4, stride=2, causal=True).convolution.parametrizations.weight
    assert forward.original0.shape == (5, 1, 1) and back.original0.shape == (1, 5, 1)
    for part in build(linear_path=True):
        plain = [module for module in part.modules() if type(module) in (nn.Conv1d, nn.ConvTranspose1d)]
        assert sorted(bool(module.weight.any()) for module in plain) == [False, True]
        normed = [module for module in part.modules() if hasattr(module, "parametrizations")]
        assert len(normed) > 10 and all(bool(module.weight.any()) for module in normed)


def test_snake_is_its_equation_and_stays_one() -> None:
    snake = Snake(3, frequency=2.5).double()
    x = torch.randn(2, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(snake(x), x + (2.5 * x).sin() ** 2 / 2.5)
    with torch.no_grad():
        snake.log_frequency.copy_(torch.tensor([-30.0, 0.0, 5.0])[:, None])
    x.requires_grad_()
    snake(x).sum().backward()
    assert x.grad is not None and snake.log_frequency.grad is not None
    assert bool(x.grad.isfinite().all()) and bool(snake.log_frequency.grad.isfinite().all())
    torch.testing.assert_close(snake(x)[:, 0], x[:, 0])


def test_snake_is_computed_in_full_precision() -> None:
    snake = Snake(1, frequency=20.0).bfloat16()
    x = torch.linspace(-8, 8, 999)[None, None].bfloat16()
    frequency = snake.log_frequency.double().exp()
    expected = x.double() + (frequency * x.double()).sin().square() / frequency
    torch.testing.assert_close(snake(x), expected.bfloat16(), atol=0, rtol=2**-8)


def test_an_output_activation_is_what_everything_goes_through() -> None:
    _, plain = build(linear_path=True)
    bounded = ConvDecoder1d(**SMALL, linear_path=True, output_activation=Tanh)
    bounded.load_state_dict(plain.state_dict())
    latents = 5 * torch.randn(1, 6, 4)
    assert plain(latents).abs().max() > 1
    torch.testing.assert_close(bounded(latents), plain(latents).tanh())


def attention_oracle(layer: nn.Module, x: Tensor) -> Tensor:
    """Frame by frame and head by head, with positions of the whole sequence."""
    query, key, value = layer.query_key_value(x).chunk(3, -1)
    half = query.shape[-1] // layer.num_heads // 2
    frames = x.shape[1]
    turns = torch.polar(
        torch.ones(frames, half, dtype=x.dtype),
        torch.arange(frames)[:, None] * 10_000.0 ** (-torch.arange(half, dtype=x.dtype) / half),
    )
    heads = []
    for q, k, v in zip(*(part.chunk(layer.num_heads, -1) for part in (query, key, value)), strict=True):
        q, k = (torch.complex(part[..., :half], part[..., half:]) * turns for part in (q, k))
        scores = (q @ k.conj().mT).real / math.sqrt(2 * half)
        distance = torch.arange(frames)[:, None] - torch.arange(frames)
        scores[:, (distance > layer.before) | (-distance > layer.after)] = -math.inf
        heads.append(scores.softmax(-1) @ v)
    return layer.output(torch.cat(heads, -1))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("context_frames", "frames"), [(3, 1), (3, 4), (3, 13), (20, 7), (0, 5), (1, 6)])
def test_windowed_attention_is_attention_with_a_window(causal: bool, context_frames: int, frames: int) -> None:
    model = WindowedTransformer(12, num_layers=1, num_heads=3, context_frames=context_frames, causal=causal).double()
    attention = model.layers[0].attention
    x = torch.randn(2, frames, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x), attention_oracle(attention, x))


@pytest.mark.parametrize("without_float64", [False, True])
def test_a_stream_knows_its_positions_after_years(without_float64: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqkit.precision.WITHOUT_FLOAT64", {"cpu"} if without_float64 else set())
    transformer = WindowedTransformer(8, num_layers=2, num_heads=2, context_frames=5, layer_scale=1.0)
    chunks = torch.randn(1, 8, 12).split([6, 3, 3], -1)
    made = []
    for years in (0, 5):
        with streaming(transformer):
            transformer(chunks[0])
            for layer in transformer.layers:
                layer.attention.stream.past = None  # it would have been turned by other angles
                layer.attention.stream.seen += years * 365 * 24 * 3600 * 25
            made.append(torch.cat([transformer(chunk) for chunk in chunks[1:]], -1))
    # Angles of 4e9 have an error of 4e9 * 2^-53 = 5e-7 in double precision; in float32 they would be noise.
    torch.testing.assert_close(*made, atol=1e-5, rtol=1e-5)


def test_the_memory_of_attention_grows_linearly(monkeypatch) -> None:
    model = WindowedTransformer(4, num_layers=1, num_heads=1, context_frames=7)
    attention = model.layers[0].attention
    masks, mask = [], attention._mask
    monkeypatch.setattr(attention, "_mask", lambda *arguments: masks.append(mask(*arguments)) or masks[-1])
    model(torch.randn(1, 4, 999))
    assert masks[0].shape == (125, 1, 8, 15)


def test_without_its_branches_the_transformer_is_the_identity() -> None:
    x = torch.randn(2, 8, 5)
    assert torch.equal(WindowedTransformer(8, num_layers=2, num_heads=2, layer_scale=0.0)(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim=0: expected a positive number"),
        ({"channels": 0}, "channels=0: expected a positive number"),
        ({"kernel_size": 0}, "kernel_size=0: expected a positive number"),
        ({"residual_kernel_size": 0}, "residual_kernel_size=0: expected a positive number"),
        ({"latent_kernel_size": 0}, "latent_kernel_size=0: expected a positive number"),
        ({"compress": 0}, "compress=0: expected a positive number"),
        ({"patch_size": 0}, "patch_size=0: expected a positive number"),
        ({"strides": (2, 0)}, r"strides=\(2, 0\): expected positive numbers"),
        ({"dilations": (0,)}, r"dilations=\(0,\): expected positive numbers"),
        ({"max_channels": 3}, "max_channels=3 is below channels=4"),
        ({"causal": True, "transformer": TRANSFORMER}, "causal=True with a transformer that is not"),
        ({"causal": True, "transformer": Everything}, r"Everything.causal is not True"),
        ({"transformer": partial(WindowedTransformer, num_heads=3)}, "num_heads=3 does not split 16 channels"),
        ({"transformer": partial(WindowedTransformer, num_layers=0)}, "num_layers=0: expected a positive number"),
        ({"transformer": partial(WindowedTransformer, context_frames=-1)}, "context_frames=-1: expected 0 or more"),
        ({"activation": partial(Snake, frequency=0.0)}, "frequency=0.0: expected positive numbers"),
    ],
)
@pytest.mark.parametrize("kind", [ConvEncoder1d, ConvDecoder1d])
def test_bad_arguments_are_refused(kind: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**SMALL | options)


@pytest.mark.parametrize("kind", [Convolution1d, partial(Deconvolution1d)])
def test_kernels_shorter_than_the_stride_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="expected at least stride=4"):
        kind(1, 1, 3, stride=4, causal=True)


def codec() -> tuple[nn.Module, Tensor]:
    pair = build(strides=(3,), dilations=(2,), causal=True, linear_path=True)
    return nn.Sequential(*pair).eval(), torch.randn(3, 1, 30)


def decoder() -> tuple[nn.Module, Tensor]:
    return codec()[0][1], torch.randn(3, 6, 10)


def transformer() -> tuple[nn.Module, Tensor]:
    return WindowedTransformer(8, num_layers=1, num_heads=2, context_frames=3).eval(), torch.randn(3, 8, 10)


@pytest.mark.parametrize("traced", [decoder, transformer])
def test_compiles_in_one_graph_and_exports_with_a_dynamic_batch(
    traced: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    model, x = traced()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))
    program = torch.export.export(model, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(x), model(x))


def test_export_of_convolutions_with_a_dynamic_length() -> None:
    model, x = codec()
    frames = torch.export.Dim("frames", min=2, max=10_000)
    program = torch.export.export(model, (x,), dynamic_shapes=({2: 3 * frames},))
    longer = torch.randn(3, 1, 51)
    torch.testing.assert_close(program.module()(longer), model(longer))


@pytest.mark.parametrize("options", [{}, {"transformer": TRANSFORMER, "linear_path": True, "patch_size": 2}])
def test_autocast(options: dict[str, Any]) -> None:
    model = nn.Sequential(*build(**options)).eval()
    waves = torch.randn(2, 1, 10 * model[0].downsampling_factor)
    with torch.no_grad():
        expected = model(waves)
        with torch.autocast("cpu", torch.bfloat16):
            lowered = model(waves)
    assert (lowered.float() - expected).square().mean() < 2e-3 * expected.var()


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 7])
def test_strided_convolutions_are_those_of_dac_and_encodec(stride: int) -> None:
    """y_t = sum_k w_k x_{t s + k - ceil(s / 2)} and its transpose, 2 s taps, sample by sample.

    EnCodec, not causal, is the same. DAC's transposed convolution of an odd stride has the last sample not.
    """
    taps, front = 2 * stride, math.ceil(stride / 2)
    down = Convolution1d(2, 3, taps, stride=stride, causal=False).double()
    up = Deconvolution1d(3, 2, taps, stride=stride, causal=False).double()
    shake(down, up)
    x, latents = torch.randn(2, 6 * stride, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    expected = down.convolution.bias[:, None].repeat(1, 6)
    synthesis = up.convolution.bias[:, None].repeat(1, 6 * stride)
    for frame, tap in itertools.product(range(6), range(taps)):
        sample = frame * stride + tap - front
        if 0 <= sample < 6 * stride:
            expected[:, frame] += down.convolution.weight[:, :, tap] @ x[:, sample]
            synthesis[:, sample] += up.convolution.weight[:, :, tap].T @ latents[:, frame]
    torch.testing.assert_close(down(x[None])[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(up(latents[None])[0], synthesis, rtol=0, atol=1e-12)
    with torch.no_grad():  # as DAC writes it
        cut = F.conv_transpose1d(latents, up.convolution.weight, up.convolution.bias, stride, padding=front)
    torch.testing.assert_close(up(latents[None])[0, :, : cut.shape[-1]], cut, rtol=0, atol=1e-12)
    assert cut.shape[-1] == 6 * stride - stride % 2


@pytest.mark.parametrize("odd_zero_first", [True, False])
@pytest.mark.parametrize(
    ("taps", "stride", "dilation"), [(7, 1, 3), (4, 1, 1), (4, 2, 1), (7, 3, 1), (5, 5, 1), (10, 5, 1)]
)
def test_zeros_that_are_not_copied_are_zeros(taps: int, stride: int, dilation: int, odd_zero_first: bool) -> None:
    sides = {"causal": False, "odd_zero_first": odd_zero_first}
    x = torch.randn(2, 3, 4 * stride, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    there = Convolution1d(3, 5, taps, stride=stride, dilation=dilation, **sides).double()
    around = F.pad(x, (there.before, there.after))
    expected = F.conv1d(around, there.weight(), there.convolution.bias, stride, dilation=dilation)
    torch.testing.assert_close(there(x), expected)
    back = Deconvolution1d(3, 5, taps, stride=stride, **sides).double()
    whole = F.conv_transpose1d(F.pad(x, (0, 1)), back.weight(), back.convolution.bias, stride)
    torch.testing.assert_close(back(x), whole[..., back.cut : back.cut + x.shape[-1] * stride])
