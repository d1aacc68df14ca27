"""What EnCodec's backbones have and those of DAC and Mimi have not: mirrored ends, an LSTM, a norm over time."""

from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from tests.test_streaming import in_chunks
from vqkit import AudioTokenizer, Quantizer, ResidualQuantizer
from vqkit.backbones.activations import ELU
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.edges import PADDING_MODES, PaddingMode, padded
from vqkit.backbones.encodec import SkipLSTM, TimeGroupNorm
from vqkit.backbones.resampled import ResampledDecoder1d, ResampledEncoder1d
from vqkit.backbones.residual1d import ResidualUnit1d
from vqkit.backbones.streaming import streaming
from vqkit.backbones.temporal import Convolution1d, Deconvolution1d
from vqkit.deployment.onnx import Decode, Encode, export_onnx

SIZES: dict[str, Any] = {"dim": 6, "channels": 4, "strides": (2, 3), "dilations": (1,), "residual_kernel_size": 3}
SPEECH: dict[str, Any] = SIZES | {
    "compress": 2,
    "activation": ELU,
    "latent_kernel_size": 7,
    "causal": True,
    "padding_mode": "reflect",
    "convolved_skip": True,
    "transformer": partial(SkipLSTM, num_layers=2),
}
MUSIC: dict[str, Any] = SPEECH | {"causal": False, "normalization": TimeGroupNorm}


def build(**options: Any) -> tuple[ConvEncoder1d, ConvDecoder1d]:
    torch.manual_seed(0)
    pair = ConvEncoder1d(**options), ConvDecoder1d(**options)
    with torch.no_grad():  # away from zeros and ones
        for parameter in nn.ModuleList(pair).double().parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return pair


def test_all_modes_are_listed() -> None:
    assert get_args(PaddingMode) == PADDING_MODES


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("zeros", [0, 0, 0, 1, 2, 3, 4, 0, 0]),
        ("reflect", [4, 3, 2, 1, 2, 3, 4, 3, 2]),
        ("replicate", [1, 1, 1, 1, 2, 3, 4, 4, 4]),
    ],
)
def test_what_stands_beyond_the_ends(mode: PaddingMode, expected: list[int]) -> None:
    x = torch.arange(1.0, 5.0)[None, None]
    assert padded(x, 3, 2, mode)[0, 0].tolist() == expected


def test_a_recording_too_short_to_be_mirrored_gets_zeros_behind_it_first() -> None:
    x = torch.tensor([[[1.0, 2.0]]])
    assert padded(x, 3, 0, "reflect")[0, 0].tolist() == [0, 0, 2, 1, 2]
    assert padded(x, 3, 2, "reflect")[0, 0].tolist() == [0, 0, 2, 1, 2, 0, 0]
    assert padded(x, 0, 3, "reflect")[0, 0].tolist() == [1, 2, 0, 0, 0]


@pytest.mark.parametrize("options", [SPEECH, SPEECH | {"transformer": None, "padding_mode": "replicate"}])
def test_a_stream_of_mirrored_and_recurrent_layers_gives_what_one_pass_gives(options: dict[str, Any]) -> None:
    encoder, decoder = build(**options)
    waves, latents = torch.randn(2, 1, 20 * 6).double(), torch.randn(2, 6, 20).double()
    with torch.no_grad():
        expected = encoder(waves), decoder(latents)
    sizes = [7, 1, 4, 8]  # the first holds the six frames that seven taps mirror, and the one they are mirrored at
    for streamed, whole in (
        (in_chunks(encoder, waves, [6 * size for size in sizes]), expected[0]),
        (in_chunks(decoder, latents, sizes), expected[1]),
    ):
        torch.testing.assert_close(streamed, whole, atol=1e-13 * float(whole.abs().max()) * 100, rtol=0)


def test_a_stream_that_begins_with_too_little_to_mirror_is_refused() -> None:
    encoder, _ = build(**SPEECH)
    with pytest.raises(ValueError, match=r"begins with 6 time steps at a layer that mirrors 6.*begin with a longer"):
        in_chunks(encoder, torch.randn(1, 1, 20 * 6).double(), [36, 84])


@pytest.mark.parametrize("options", [SPEECH, SPEECH | {"dilations": (1, 9)}, SPEECH | {"kernel_size": 60}, SIZES])
def test_the_first_frames_are_as_many_as_a_stream_needs(options: dict[str, Any]) -> None:
    for part, hop, channels in zip(build(**options | {"causal": True}), (6, 1), (1, 6), strict=True):
        x = torch.randn(1, channels, 30 * hop).double()
        expected = part(x)
        first = part.first_frames
        streamed = in_chunks(part, x, [first * hop, (30 - first) * hop])
        torch.testing.assert_close(streamed, expected)
        if first > 1:
            with pytest.raises(ValueError, match="begin with a longer chunk"):
                in_chunks(part, x, [(first - 1) * hop, (31 - first) * hop])
    assert (first > 1) == ("padding_mode" in options)


def test_a_tokenizer_holds_back_what_its_stream_has_to_begin_with() -> None:
    codec = codec_of(SPEECH)
    wave = 0.3 * torch.randn(1, 1, 20 * 6 + 1)
    with codec.streaming():
        pieces = [*(codec.encode(chunk) for chunk in wave.split(5, -1)), codec.flush()]
        sound = [codec.decode(piece) for piece in pieces]
    lengths = [piece.shape[1] for piece in pieces if piece.shape[1]]
    assert lengths == [7, *[1] * 14]
    assert torch.equal(torch.cat(pieces, 1), codec.encode(wave))
    torch.testing.assert_close(torch.cat(sound, -1), codec.decode(codec.encode(wave)), rtol=0, atol=1e-5)
    with codec.streaming():
        codec.encode(wave[..., :37])
        assert codec.flush().shape[1] == 7
    with (
        codec.streaming(),
        pytest.raises(ValueError, match="ends after 36 samples, and the model mirrors the first 42"),
    ):
        codec.encode(wave[..., :36])
        codec.flush()


@pytest.mark.parametrize(("stride", "held"), [(1, 7), (2, 4)])
def test_it_holds_back_what_the_decoder_mirrors_too(stride: int, held: int) -> None:
    encoder, decoder = build(**SPEECH | {"transformer": None})
    encoder = ConvEncoder1d(**SPEECH | {"transformer": None, "latent_kernel_size": 3}).double()
    assert (encoder.first_frames, decoder.first_frames) == (3, 7)
    both = ResampledEncoder1d(encoder, stride=stride), ResampledDecoder1d(decoder, stride=stride)
    quantizer = Quantizer("ema", dim=6, codebook_size=16, channel_dim=1)
    codec = AudioTokenizer(both[0], quantizer, both[1], sample_rate=600).eval().double()
    wave = 0.3 * torch.randn(1, 1, 20 * 6).double()
    with codec.streaming():
        pieces = [codec.encode(chunk) for chunk in wave.split(6 * stride, -1)]
        sound = torch.cat([codec.decode(piece) for piece in pieces], -1)
    assert next(piece.shape[1] for piece in pieces if piece.shape[1]) == held
    assert torch.equal(torch.cat(pieces, 1), codec.encode(wave))
    torch.testing.assert_close(sound, codec.decode(codec.encode(wave)), rtol=0, atol=1e-12)


def test_an_lstm_refuses_another_batch_in_the_middle_of_a_stream() -> None:
    lstm = SkipLSTM(4)
    with streaming(lstm):
        lstm(torch.randn(2, 4, 3))
        with pytest.raises(ValueError, match="began with 2 signals and continues with 3"):
            lstm(torch.randn(3, 4, 3))


def test_a_norm_over_time_is_not_causal() -> None:
    with pytest.raises(ValueError, match="causal=True with normalization=TimeGroupNorm, which sees later samples"):
        ConvEncoder1d(**SPEECH | {"normalization": TimeGroupNorm})
    with pytest.raises(ValueError, match="linear_path=True starts the last convolution at zero"):
        ConvDecoder1d(**MUSIC | {"linear_path": True})
    with pytest.raises(ValueError, match="padding_mode='mirror': expected one of 'zeros', 'reflect', 'replicate'"):
        ConvEncoder1d(**SIZES, padding_mode="mirror")  # type: ignore[arg-type]


def test_a_norm_sees_all_outputs_of_a_transposed_convolution() -> None:
    """Those that are cut off at the ends too, as in EnCodec, and none of inputs that are not there."""
    layer = Deconvolution1d(2, 3, 6, stride=3, causal=False, normalization=TimeGroupNorm).double()
    x = torch.randn(1, 2, 5).double()
    full = layer.normalization(layer.convolution(x))
    torch.testing.assert_close(layer(x), full[..., 2:-1])
    assert not hasattr(layer.convolution, "parametrizations")


class ChannelNorm(nn.LayerNorm):
    """Of each time step by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mT).mT


def test_a_norm_of_single_time_steps_streams() -> None:
    layer = Deconvolution1d(2, 3, 6, stride=3, causal=True, normalization=ChannelNorm).double()
    x = torch.randn(1, 2, 5).double()
    torch.testing.assert_close(layer(x), layer.normalization(layer.convolution(x))[..., :15])
    torch.testing.assert_close(in_chunks(layer, x, [2, 1, 2]), layer(x))


def unit(*, convolved_skip: bool, gain: float) -> ResidualUnit1d:
    options: dict[str, Any] = {"kernel_size": 3, "dilation": 1, "compress": 1, "activation": ELU, "gain": gain}
    return ResidualUnit1d(4, **options, convolution=partial(Convolution1d, causal=True), convolved_skip=convolved_skip)


def test_the_skip_is_an_identity_or_a_convolution() -> None:
    x = torch.randn(1, 4, 5)
    assert torch.equal(unit(convolved_skip=False, gain=0.0)(x), x)
    convolved = unit(convolved_skip=True, gain=0.0)
    torch.testing.assert_close(convolved(x), torch.einsum("oc,bct->bot", convolved.skip.convolution.weight[..., 0], x))


@torch.no_grad()
@pytest.mark.parametrize("heard", ["branch", "branch.3", "everything"])
def test_a_hook_keeps_what_the_branch_gave(heard: str) -> None:
    """Without gradients the skip is added into the memory of the branch, unless somebody may hold it."""
    module = unit(convolved_skip=False, gain=1.0)
    x, kept = torch.randn(1, 4, 5), []
    expected = module.branch(x)

    def keep(part: nn.Module, inputs: Any, output: Tensor) -> None:
        if part in (module.branch, module.branch[3]):
            kept.append(output)

    if heard == "everything":
        handle = nn.modules.module.register_module_forward_hook(keep)
    else:
        handle = module.get_submodule(heard).register_forward_hook(keep)
    output = module(x)
    handle.remove()
    assert kept and all(torch.equal(found, expected) for found in kept)
    assert torch.equal(output, expected + x)


@torch.no_grad()
def test_without_hooks_the_skip_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    module, shaped = unit(convolved_skip=False, gain=1.0), torch.randn(1, 4, 5)
    monkeypatch.setattr(module.branch, "forward", lambda x: shaped)
    assert module(torch.randn(1, 4, 5)) is shaped


def codec_of(options: dict[str, Any]) -> AudioTokenizer:
    encoder, decoder = build(**options)
    stage = partial(Quantizer, "ema", dim=6, codebook_size=16)
    quantizer = ResidualQuantizer(stage, 2, channel_dim=1)
    return AudioTokenizer(encoder.float(), quantizer, decoder.float(), sample_rate=600).eval()


@pytest.mark.parametrize("half", [Encode, Decode])
def test_a_file_of_any_length_is_refused_with_an_lstm(half: type, tmp_path: Path) -> None:
    """It would have the length of the example, and fail at others without saying why."""
    with pytest.raises(ValueError, match=r"dynamic=True with (en|de)coder.layers.\d.lstm, .*: .* give dynamic=False"):
        export_onnx(half(codec_of(SPEECH)), torch.randn(1, 1, 60), tmp_path / "any.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_of_one_length_computes_the_same(tmp_path: Path) -> None:
    from tests.test_exporting import File  # skips where there is no ONNX Runtime

    codec = codec_of(SPEECH)
    wave = 0.3 * torch.randn(1, 1, 8 * 6)
    indices = codec.encode(wave)
    encode = File(Encode(codec), wave, tmp_path / "encode.onnx", dynamic=False)
    decode = File(Decode(codec), indices, tmp_path / "decode.onnx", dynamic=False)
    assert torch.equal(encode(wave), indices)
    torch.testing.assert_close(decode(indices), codec.decode(indices).detach(), rtol=1e-5, atol=1e-5)
