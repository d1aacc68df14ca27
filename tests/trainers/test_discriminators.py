import re

import pytest
import torch

from tests.refusals import refused
from trainers.audio import (
    MultiBandSTFTDiscriminator,
    MultiPeriodDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSTFTDiscriminator,
    MultiScaleSubBandCQTDiscriminator,
)
from trainers.audio.discriminators.layers import ComplexPlanes
from trainers.core import Discriminator


def build(kind: type[Discriminator], in_channels: int = 1) -> Discriminator:
    if kind is MultiPeriodDiscriminator:
        return kind(in_channels, periods=[2, 3, 5], channels=2)
    if kind is MultiScaleDiscriminator:
        return kind(in_channels, scales=2, channels=4)
    if kind is MultiScaleSubBandCQTDiscriminator:
        sizes = {"hop_lengths": [64, 32], "bins_per_octave": [12, 24], "octaves": 3, "min_frequency": 500}
        return kind(8000, in_channels, **sizes, channels=4)
    return kind(in_channels, window_lengths=[256, 64], channels=4)


KINDS = [
    MultiPeriodDiscriminator,
    MultiScaleSTFTDiscriminator,
    MultiBandSTFTDiscriminator,
    MultiScaleDiscriminator,
    MultiScaleSubBandCQTDiscriminator,
]
FEATURES = {MultiBandSTFTDiscriminator: 25, MultiScaleDiscriminator: 7}
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


# ------------------------------------------------------------------ published sizes


@pytest.mark.parametrize(
    ("discriminator", "expected"),
    [
        # HiFi-GAN's periods: 41.1 million with biases and weight norm's gains.
        (lambda: MultiPeriodDiscriminator(), 5 * (32 * 5 + 32 * 128 * 5 + 128 * 512 * 5 + 512 * 1024 * 5 + 1024**2 * 5
            + 1024 * 3 + 2 * (32 + 128 + 512 + 1024 + 1024 + 1))),
        (lambda: MultiScaleSTFTDiscriminator(), 5 * (2 * 32 * 27 + 3 * 32**2 * 27 + 32**2 * 9 + 32 * 9
            + 2 * (5 * 32 + 1))),
        (lambda: MultiBandSTFTDiscriminator(), 3 * (5 * (2 * 32 * 27 + 3 * 32**2 * 27 + 32**2 * 9 + 2 * 5 * 32)
            + 32 * 9 + 2)),
        # MelGAN's and HiFi-GAN's: 29.6 million.
        (lambda: MultiScaleDiscriminator(), 3 * (128 * 15 + 41 * (128 * 32 + 256 * 8 + 512 * 16 + 1024 * 32 + 1024 * 64)
            + 1024**2 * 5 + 1024 * 3 + 2 * (128 + 128 + 256 + 512 + 3 * 1024 + 1))),
        (lambda: MultiScaleSubBandCQTDiscriminator(24000), 3 * (9 * (2 * 2 * 27 + 2 * 2) + 2 * 32 * 27
            + 3 * 32**2 * 27 + 32**2 * 9 + 32 * 9 + 2 * (5 * 32 + 1))),
    ],
    ids=["multi-period", "multi-scale STFT", "multi-band STFT", "multi-scale", "multi-scale CQT"],
)  # fmt: skip
def test_published_sizes(discriminator, expected: int) -> None:
    with torch.device("meta"):
        parameters = discriminator().parameters()
    assert sum(parameter.numel() for parameter in parameters) == expected


def test_a_period_sees_every_pth_sample_only() -> None:
    discriminator = MultiPeriodDiscriminator(periods=[3], channels=2)
    wave = torch.randn(1, 1, 300).requires_grad_()
    (output,) = discriminator(wave)
    logits = output.logits.reshape(-1, 3)
    logits[:, 1].sum().backward()
    touched = wave.grad[0, 0].reshape(-1, 3).abs().sum(0) > 0
    assert touched.tolist() == [False, True, False]


def test_bands_do_not_see_each_other() -> None:
    discriminator = MultiBandSTFTDiscriminator(window_lengths=[128], bands=[0, 0.5, 1], channels=2)
    (member,) = discriminator.members
    assert member.widths == [32, 33]
    time = torch.arange(2000)
    low, high = (torch.cos(torch.pi * share * time)[None, None] for share in (0.125, 0.875))
    (plain,), (more_treble,) = discriminator(low), discriminator(low + 0.5 * high)
    for ours, theirs in zip(plain.features[:5], more_treble.features[:5], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)  # what leaks through the window
    assert (plain.features[5] - more_treble.features[5]).abs().max() > 0.05


def test_spectrum_is_that_of_each_channel_and_of_the_same_level_at_any_window() -> None:
    wave = torch.randn(2, 2, 8000)
    for length in (64, 1024):
        planes = ComplexPlanes(length)(wave)
        assert planes.shape[1:] == (4, (8000 - length) // (length // 4) + 1, length // 2 + 1)
        assert 0.9 < planes[..., 1:-1].square().mean() * 2 < 1.1
        hann = torch.hann_window(length)
        expected = torch.fft.rfft(wave[1, 1, :length] * hann) / hann.square().sum().sqrt()
        torch.testing.assert_close(planes[1, 1, 0], expected.real, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(planes[1, 3, 0], expected.imag, rtol=1e-4, atol=1e-5)


def test_scales_are_means_of_the_scale_before() -> None:
    discriminator = MultiScaleDiscriminator(scales=3, channels=4)
    wave = torch.randn(1, 1, 800)
    outputs = discriminator(wave)
    for member, output in zip(discriminator.members, outputs, strict=True):
        torch.testing.assert_close(member(wave).logits, output.logits)
        padded = torch.nn.functional.pad(wave, (2, 2))
        wave = padded.unfold(-1, 4, 2).mean(-1)


def test_octaves_do_not_see_each_other() -> None:
    (member, _) = build(MultiScaleSubBandCQTDiscriminator).members
    seen: list[torch.Tensor] = []
    member.octaves[0].register_forward_hook(lambda layer, args, output: seen.append(output))
    time = torch.arange(8000) / 16000
    low, high = (torch.sin(2 * torch.pi * frequency * time)[None, None] for frequency in (700, 3000))
    member(low)
    member(low + high)
    quiet, loud = seen
    assert (quiet - loud).norm() < 0.02 * quiet.norm()  # what leaks through the windows
    member(low + 0.1 * torch.sin(2 * torch.pi * 800 * time))
    assert (quiet - seen[2]).norm() > 0.02 * quiet.norm()


# ------------------------------------------------------------------ what holds for all


@each
def test_every_subdiscriminator_answers_with_logits_and_hidden_features(kind) -> None:
    outputs = build(kind)(torch.randn(3, 1, 1000))
    assert len(outputs) == (3 if kind is MultiPeriodDiscriminator else 2)
    for output in outputs:
        assert output.logits.ndim == 2 and output.logits.shape[0] == 3
        assert len(output.features) == FEATURES.get(kind, 5)
        assert all(feature.shape[0] == 3 for feature in output.features)
    features = torch.cat([feature.flatten() for output in outputs for feature in output.features])
    assert -features.clamp(max=0).sum() < 0.4 * features.clamp(min=0).sum()  # they are behind the leaky rectifier


@each
def test_gradient_reaches_all_parameters_and_all_samples(kind) -> None:
    discriminator = build(kind, 2)
    wave = torch.randn(2, 2, 1024).requires_grad_()
    sum(output.logits.square().mean() for output in discriminator(wave)).backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    edge = 0 if kind is MultiPeriodDiscriminator else 16
    assert (wave.grad[..., edge : 1024 - edge] != 0).float().mean() > 0.95


@each
@pytest.mark.parametrize("samples", [1, 2, 63, 257])
def test_takes_any_length_silence_and_stereo(kind, samples: int) -> None:
    discriminator = build(kind, 2)
    wave = torch.zeros(1, 2, samples, requires_grad=True)
    outputs = discriminator(wave)
    assert all(output.logits.numel() and output.logits.isfinite().all() for output in outputs)
    sum(output.logits.mean() for output in outputs).backward()
    assert wave.grad.isfinite().all()


@each
def test_items_of_a_batch_do_not_influence_each_other(kind) -> None:
    discriminator = build(kind)
    wave = torch.randn(3, 1, 700)
    together, alone = discriminator(wave), discriminator(wave[1:2])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many.logits[1:2], one.logits, rtol=1e-4, atol=1e-6)


@each
def test_stereo_channels_are_judged_together(kind) -> None:
    discriminator = build(kind, 2)
    wave = torch.randn(1, 2, 700)
    swapped = discriminator(wave.flip(1))
    assert any((a.logits - b.logits).abs().max() > 1e-4 for a, b in zip(discriminator(wave), swapped, strict=True))


@each
def test_runs_under_bfloat16_autocast(kind) -> None:
    discriminator = build(kind)
    wave = torch.randn(2, 1, 700)
    plain = discriminator(wave)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = discriminator(wave.bfloat16())
    for exact, rounded in zip(plain, cast, strict=True):
        assert rounded.logits.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.logits.float(), exact.logits, rtol=0.1, atol=0.01)


@each
def test_refuses_other_channels_and_shapes(kind) -> None:
    discriminator = build(kind)
    for shape in ((1, 2, 100), (1, 100), (1, 1, 0)):
        with pytest.raises(ValueError, match=re.escape(f"batch has shape {shape}, expected (batch, 1, samples)")):
            discriminator(torch.zeros(shape))


test_bad_arguments_are_refused = refused(
    (lambda: MultiPeriodDiscriminator(0), "in_channels=0"),
    (lambda: MultiPeriodDiscriminator(periods=[]), "periods="),
    (lambda: MultiPeriodDiscriminator(periods=[2, 0]), "1 sample or more"),
    (lambda: MultiPeriodDiscriminator(channels=0), "channels=0"),
    (lambda: MultiScaleSTFTDiscriminator(window_lengths=[]), "window_lengths is empty"),
    (lambda: MultiScaleSTFTDiscriminator(window_lengths=[2]), "window_length=2"),
    (lambda: MultiScaleSTFTDiscriminator(channels=0), "channels=0"),
    (lambda: MultiBandSTFTDiscriminator(window_lengths=[]), "window_lengths is empty"),
    (lambda: MultiBandSTFTDiscriminator(bands=[0.0, 0.5]), "from 0 to 1"),
    (lambda: MultiBandSTFTDiscriminator(bands=[0.0, 0.5, 0.25, 1.0]), "at least 1 in each"),
    (lambda: MultiBandSTFTDiscriminator(window_lengths=[16]), "lengthen the window"),
    (lambda: MultiBandSTFTDiscriminator(channels=0), "channels=0"),
    (lambda: MultiScaleDiscriminator(scales=0), "scales=0"),
    (lambda: MultiScaleDiscriminator(channels=0), "channels=0"),
    (lambda: MultiScaleSubBandCQTDiscriminator(24000, hop_lengths=[]), "one number of bins for each hop"),
    (lambda: MultiScaleSubBandCQTDiscriminator(24000, bins_per_octave=[12]), "one number of bins for each hop"),
    (lambda: MultiScaleSubBandCQTDiscriminator(24000, hop_lengths=[128] * 3), "hop_length=128 is no multiple of 256"),
    (lambda: MultiScaleSubBandCQTDiscriminator(16000), "reach up to 17725 Hz, above 15200 Hz"),
    (lambda: MultiScaleSubBandCQTDiscriminator(24000, min_frequency=0), "expected positive numbers"),
    (lambda: MultiScaleSubBandCQTDiscriminator(24000, channels=0), "channels=0"),
)
