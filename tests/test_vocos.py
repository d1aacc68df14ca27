"""Vocos's decoder: its transform, how far it looks, and what cannot be done with which blocks.

Its equations are in `tests/conversion/wavtokenizer.py`.
"""

import math
from functools import partial

import pytest
import torch
from torch import nn

from tests.refusals import refused
from tests.test_sound_backbones import codec_of
from vqkit import AudioTokenizer, Decode, Quantizer
from vqkit.backbones.complex_spectrum import InverseSTFT
from vqkit.backbones.conv1d import ConvEncoder1d
from vqkit.backbones.convnext1d import ConvNeXt1d
from vqkit.backbones.resnet1d import PositionNetwork, ResidualBlocks1d
from vqkit.backbones.vocos import LARGEST_MAGNITUDE, ISTFTHead, VocosDecoder

HOP = 10


def build(**options) -> VocosDecoder:
    blocks = [partial(ConvNeXt1d, num_layers=2, kernel_size=5)]
    return VocosDecoder(**{"dim": 6, "channels": 8, "hop_length": HOP, "blocks": blocks} | options)


@pytest.mark.parametrize(("num_points", "hop_length"), [(40, 10), (24, 6), (20, 10)])
def test_a_waveform_comes_back_from_spectra_on_the_middles_of_hops(num_points: int, hop_length: int) -> None:
    lead, frames = (num_points - hop_length) // 2, 12
    inverse = InverseSTFT(num_points, window_length=num_points, hop_length=hop_length, first_sample=lead).double()
    wave = torch.randn(2, frames * hop_length, dtype=torch.float64)
    filled = nn.functional.pad(wave, (lead, lead))
    spectra = torch.fft.rfft(filled.unfold(-1, num_points, hop_length) * inverse.window).mT
    assert spectra.shape == (2, num_points // 2 + 1, frames)
    torch.testing.assert_close(inverse(spectra.real, spectra.imag), wave, rtol=1e-10, atol=1e-12)


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
    decoder = codec_of("vocos").float().decoder
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
    from tests.test_exporting import File  # skips where there is no ONNX Runtime

    codec = codec_of("wavtokenizer").float()
    decode = File(Decode(codec), torch.randint(16, (2, 7)), tmp_path / "decode.onnx")
    for shape in ((2, 7), (1, 3), (3, 19)):
        indices = torch.randint(16, shape)
        expected = codec.decode(indices).detach()
        # Some forty roundings of 6e-8 in a row, of samples whose largest is some tens.
        torch.testing.assert_close(decode(indices), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


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


def test_an_encoder_of_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"decoder\.downsampling_factor=20, but the encoder has 10"):
        AudioTokenizer(
            ConvEncoder1d(dim=6, channels=4, strides=(2, 5)),
            Quantizer("vq", dim=6, codebook_size=16, channel_dim=1),
            build(hop_length=20),
            sample_rate=8000,
        )
