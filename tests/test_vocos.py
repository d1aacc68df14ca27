"""Vocos's decoder: its transform, how far it looks, and what cannot be done with which blocks.

Its equations are in `tests/conversion/wavtokenizer.py`.
"""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from tests.backbones import assert_context_is_exact, shake
from tests.refusals import refused
from vqkit import AudioTokenizer, Decode, Quantizer, export_onnx
from vqkit.backbones.complex_spectrum import InverseSTFT
from vqkit.backbones.conv1d import ConvEncoder1d
from vqkit.backbones.convnext1d import ConvNeXt1d
from vqkit.backbones.frame_transformer import WindowedTransformer
from vqkit.backbones.resnet1d import PositionNetwork, ResidualBlocks1d
from vqkit.backbones.streaming import streaming
from vqkit.backbones.vocos import LARGEST_MAGNITUDE, ISTFTHead, VocosDecoder
from vqkit.saving.config import from_config, to_config

HOP = 10
CONVNEXT = partial(ConvNeXt1d, num_layers=2, kernel_size=5)
POSITIONS = partial(PositionNetwork, norm_groups=4)
RESIDUAL = partial(ResidualBlocks1d, norm_groups=4)
TRANSFORMER = partial(WindowedTransformer, num_layers=2, num_heads=2, context_frames=3, causal=False)
BLOCKS: dict[str, list[Callable[[int], nn.Module]]] = {
    "vocos": [CONVNEXT],
    "wavtokenizer": [POSITIONS, CONVNEXT],
    "x-codec 2": [RESIDUAL, TRANSFORMER, RESIDUAL],
    "transformer": [TRANSFORMER],
}


def build(kind: str = "vocos", **options) -> VocosDecoder:
    torch.manual_seed(0)
    decoder = VocosDecoder(**{"dim": 6, "channels": 8, "hop_length": HOP, "blocks": BLOCKS[kind]} | options)
    shake(decoder)
    return decoder.eval()


def make_codec(kind: str = "vocos") -> AudioTokenizer:
    encoder = ConvEncoder1d(dim=6, channels=4, strides=(2, 5))
    quantizer = Quantizer("vq", dim=6, codebook_size=16, channel_dim=1)
    return AudioTokenizer(encoder, quantizer, build(kind), sample_rate=8000).eval()


@pytest.mark.parametrize(("num_points", "hop_length"), [(40, 10), (24, 6), (20, 10)])
def test_a_waveform_comes_back_from_spectra_on_the_middles_of_hops(num_points: int, hop_length: int) -> None:
    lead, frames = (num_points - hop_length) // 2, 12
    inverse = InverseSTFT(num_points, window_length=num_points, hop_length=hop_length, first_sample=lead).double()
    wave = torch.randn(2, frames * hop_length, dtype=torch.float64)
    filled = nn.functional.pad(wave, (lead, lead))
    spectra = torch.fft.rfft(filled.unfold(-1, num_points, hop_length) * inverse.window).mT
    assert spectra.shape == (2, num_points // 2 + 1, frames)
    torch.testing.assert_close(inverse(spectra.real, spectra.imag), wave, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", BLOCKS)
@pytest.mark.parametrize("frames", [1, 5])
def test_shapes_gradients_and_configuration(kind: str, frames: int) -> None:
    decoder = build(kind)
    latents = torch.randn(2, 6, frames, requires_grad=True)
    sound = decoder(latents)
    assert sound.shape == (2, 1, HOP * frames)
    sound.square().sum().backward()
    assert latents.grad is not None and latents.grad.isfinite().all()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    again = from_config(to_config(decoder))
    again.load_state_dict(decoder.state_dict())
    assert torch.equal(again.eval()(latents), sound)


@pytest.mark.parametrize("num_points", [20, 24, 40, 60])
@pytest.mark.parametrize("kind", ["vocos", "transformer"])
def test_the_context_is_exact(kind: str, num_points: int) -> None:
    assert_context_is_exact(build(kind, num_points=num_points).double())


@pytest.mark.parametrize("kind", ["vocos", "transformer"])
def test_block_by_block_it_is_the_whole(kind: str) -> None:
    codec = make_codec(kind).double()
    indices = torch.randint(16, (2, 47))
    blocks = list(codec.decode_blocks(indices.split(5, dim=1), frames_per_block=8))
    assert len(blocks) > 1
    # Codes leave as float32; magnitudes are at most some hundreds of numbers of about 1, in some thirty sums.
    torch.testing.assert_close(torch.cat(blocks, -1), codec.decode(indices), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["wavtokenizer", "x-codec 2"])
def test_norms_over_the_whole_recording_leave_no_blocks(kind: str) -> None:
    codec = make_codec(kind)
    assert codec.decoder.context is None and codec.latency is None
    with pytest.raises(ValueError, match="blocks need a bounded context, and this model has none"):
        list(codec.decode_blocks([torch.zeros(1, 4, dtype=torch.int64)]))
    later = torch.randn(1, 6, 60)
    moved = later.clone()
    moved[..., -1] += 1
    with torch.no_grad():
        assert not torch.equal(codec.decoder(later)[..., :HOP], codec.decoder(moved)[..., :HOP])


@pytest.mark.parametrize("kind", BLOCKS)
def test_it_does_not_stream(kind: str) -> None:
    with pytest.raises(ValueError, match="VocosDecoder is not causal"), streaming(build(kind)):
        pass
    codec = make_codec(kind)
    with pytest.raises(ValueError, match="streaming needs a causal encoder and decoder"), codec.streaming():
        pass


def test_magnitudes_are_cut_off_and_their_gradients_are_finite() -> None:
    head = ISTFTHead(4, HOP, 4 * HOP)
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    head.linear.bias.data[0] = 1000.0  # the constant part; its exponential is no number
    frames = torch.randn(1, 9, 4, requires_grad=True)
    sound = head(frames)
    head.linear.bias.data[0] = math.log(LARGEST_MAGNITUDE)
    torch.testing.assert_close(sound, head(frames))
    sound.sum().backward()
    assert frames.grad is not None and frames.grad.isfinite().all()
    assert head.linear.weight.grad.isfinite().all()


def test_the_transform_is_computed_in_full_precision() -> None:
    decoder = build()
    latents = torch.randn(1, 6, 8)
    with torch.no_grad():
        expected = decoder(latents)
        with torch.autocast("cpu", torch.bfloat16):
            lowered = decoder(latents)
        lower = decoder.bfloat16()(latents.bfloat16())
    for sound in (lowered, lower):
        assert sound.dtype == torch.float32
        # Some twenty roundings of relative size 2^-8 in a row.
        assert (sound - expected).square().mean() < 0.02 * expected.square().mean()


@pytest.mark.slow
def test_onnx_runtime_decodes_any_number_of_frames(tmp_path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    codec = make_codec("wavtokenizer")
    export_onnx(Decode(codec), torch.randint(16, (2, 7)), tmp_path / "decode.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decode.onnx")
    for shape in ((2, 7), (1, 3), (3, 19)):
        indices = torch.randint(16, shape)
        (sound,) = session.run(None, {"indices": indices.numpy()})
        expected = codec.decode(indices).detach()
        # Some forty roundings of 6e-8 in a row, of samples whose largest is some tens.
        torch.testing.assert_close(torch.from_numpy(sound), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


test_sizes_that_do_not_fit_are_refused = refused(
    ({"dim": 0}, "dim=0: expected a positive number"),
    ({"hop_length": 5}, "num_points=20, hop_length=5: expected even numbers"),
    ({"num_points": 18}, "num_points=18, hop_length=10: expected even numbers, and at least twice the hop"),
    ({"num_points": 41}, "num_points=41, hop_length=10: expected even numbers"),
    ({"blocks": [partial(ConvNeXt1d, num_layers=0)]}, "num_layers=0: expected a positive number"),
    ({"blocks": [partial(ConvNeXt1d, kernel_size=4)]}, "kernel_size=4: expected an odd number of taps"),
    ({"blocks": [PositionNetwork]}, "norm_groups=32 does not divide the width 8"),
    ({"blocks": [partial(ResidualBlocks1d, norm_groups=3)]}, "norm_groups=3 does not divide the width 8"),
    by=lambda options: build(**options),
)


@pytest.mark.parametrize("shape", [(1, 5, 3), (6, 3), (1, 6, 0)])
def test_latents_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 6, frames\), frames > 0"):
        build()(torch.zeros(shape))


def test_an_encoder_of_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder\.downsampling_factor=20, but the encoder has 10"):
        AudioTokenizer(
            ConvEncoder1d(dim=6, channels=4, strides=(2, 5)),
            Quantizer("vq", dim=6, codebook_size=16, channel_dim=1),
            build(hop_length=20),
            sample_rate=8000,
        )
