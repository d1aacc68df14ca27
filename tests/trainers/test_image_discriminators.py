"""Discriminators of images: layers as published, and what holds for all of them."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainers.core import Adversary, Discriminator
from trainers.image import GroupNorm, NoNorm, PatchGAN

KINDS = {
    "PatchGAN batch": lambda **more: PatchGAN(num_layers=2, channels=4, **more),
    "PatchGAN group": lambda **more: PatchGAN(num_layers=2, channels=4, norm=GroupNorm(2), **more),
    "PatchGAN none": lambda **more: PatchGAN(num_layers=2, channels=4, norm=NoNorm(), **more),
}
each = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
NORMALIZED_OVER_THE_BATCH = ("PatchGAN batch",)


def judged(discriminator: Discriminator, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    (output,) = discriminator(images)
    return output.logits, output.features


# ------------------------------------------------------------------ as published


@pytest.mark.parametrize(
    ("discriminator", "expected"),
    [
        # The second is CycleGAN's, whose norms have no gains: 2,764,737 and twice the 896 channels of the norms.
        (lambda: PatchGAN(), 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) + 64 + 2 * (128 + 256 + 512) + 1),
        (lambda: PatchGAN(norm=GroupNorm()), 2_764_737 + 2 * 896),
        (lambda: PatchGAN(norm=NoNorm()), 2_764_737),
        # GQ's six layers: no more than eight times the first channels.
        (lambda: PatchGAN(num_layers=6, channels=8), 16 * (3 * 8 + 8 * 16 + 16 * 32 + 32 * 64 + 3 * 64**2 + 64) + 8
            + 2 * (16 + 32 + 4 * 64) + 1),
    ],
    ids=["PatchGAN", "group", "none", "six layers"],
)  # fmt: skip
def test_published_sizes(discriminator, expected: int) -> None:
    with torch.device("meta"):
        parameters = discriminator().parameters()
    assert sum(parameter.numel() for parameter in parameters) == expected


def test_patchgan_is_strided_convolutions_with_norms_between() -> None:
    """Written out from the paper's C64-C128-C256-C512, in float64."""
    torch.manual_seed(0)
    discriminator = PatchGAN(channels=4).double()
    images = torch.rand(3, 3, 40, 64, dtype=torch.float64)
    kernels = [parameter for parameter in discriminator.parameters() if parameter.ndim == 4]
    biases = [discriminator.layers[0].bias, None, None, None, discriminator.to_logits.bias]
    x = images
    for number, (kernel, bias, stride) in enumerate(zip(kernels, biases, (2, 2, 2, 1, 1), strict=True)):
        x = F.conv2d(x, kernel, bias, stride, padding=1)
        if number in (1, 2, 3):
            gain, shift = discriminator.layers[number][1].parameters()
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            x = (x - mean) / (variance + 1e-5).sqrt() * gain[:, None, None] + shift[:, None, None]
        if number < 4:
            x = torch.where(x > 0, x, 0.2 * x)
    assert x.shape == (3, 1, 3, 6)
    torch.testing.assert_close(judged(discriminator, images)[0], x.flatten(1))


def test_patchgan_sees_patches_of_70_pixels() -> None:
    images = torch.rand(1, 3, 256, 256).requires_grad_()
    logits, _ = judged(PatchGAN(channels=2, norm=NoNorm()), images)
    assert logits.shape == (1, 30 * 30)
    logits[0, 15 * 30 + 15].backward()
    for axis in (2, 3):
        seen = images.grad.abs().sum([a for a in range(4) if a != axis]).nonzero()
        assert len(seen) == seen.max() - seen.min() + 1 == 70


def test_patchgan_starts_from_the_published_distributions() -> None:
    """Means and deviations of n samples, within five of their standard errors."""
    discriminator = PatchGAN()
    kernels = torch.cat([p.flatten() for p in discriminator.parameters() if p.ndim == 4])
    gains = torch.cat([m.weight for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d)])
    for values, mean in ((kernels.detach(), 0.0), (gains.detach(), 1.0)):
        error = 5 * 0.02 / len(values) ** 0.5
        assert abs(float(values.mean()) - mean) < error and abs(float(values.std()) - 0.02) < error
    assert not any(m.bias.any() for m in discriminator.modules() if isinstance(m, nn.BatchNorm2d))


def test_batch_norm_has_no_memory_and_sees_each_call_alone() -> None:
    """Training on other images leaves no trace in what the next call says, and nothing in checkpoints."""
    adversary = Adversary([PatchGAN(num_layers=1, channels=4)])
    real, fake = torch.rand(2, 4, 3, 16, 16)
    names = {name.rpartition(".")[2] for name in adversary.state_dict()}
    assert names == {"weight", "bias"}
    before = adversary(real, fake)
    adversary(10 * real, fake - 3)
    again = adversary(real, fake)
    assert torch.equal(before.discriminator, again.discriminator)
    alone = judged(adversary.discriminators[0], fake)[0]
    torch.testing.assert_close(before.figures["logits_fake"], alone.mean().detach())
    torch.testing.assert_close(before.generator["adversarial"], (1 - alone).square().mean())


# ------------------------------------------------------------------ what holds for all


@each
def test_gradient_reaches_all_parameters_and_pixels(kind) -> None:
    images = torch.rand(2, 1, 32, 24).requires_grad_()
    discriminator = kind(in_channels=1)
    logits, features = judged(discriminator, images)
    assert logits.ndim == 2 and all(feature.shape[0] == 2 for feature in features)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad.any(), name
    assert (images.grad != 0).float().mean() > 0.95


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in NORMALIZED_OVER_THE_BATCH])
def test_items_of_a_batch_do_not_influence_each_other(kind: str) -> None:
    discriminator = KINDS[kind]()
    images = torch.rand(3, 3, 32, 32)
    together, alone = judged(discriminator, images)[0], judged(discriminator, images[1:2])[0]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-6)


@each
def test_runs_under_bfloat16_autocast(kind) -> None:
    torch.manual_seed(0)
    discriminator, images = kind(), torch.rand(2, 3, 32, 32)
    exact = judged(discriminator, images)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = judged(discriminator, images)[0]
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.05 * float(exact.detach().abs().max()))


@each
def test_refuses_other_channels_and_shapes(kind) -> None:
    for shape in ((1, 1, 32, 32), (3, 32, 32), (0, 3, 32, 32)):
        with pytest.raises(ValueError, match=re.escape(f"batch has shape {shape}, expected (batch, 3, height, width)")):
            kind()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: PatchGAN(0), "in_channels=0"),
        (lambda: PatchGAN(num_layers=0), "num_layers=0"),
        (lambda: PatchGAN(channels=0), "channels=0"),
        (lambda: GroupNorm(0), "num_groups=0"),
        (lambda: PatchGAN(channels=24, norm=GroupNorm(32)), "num_groups=32 does not divide the 48 channels"),
        (lambda: PatchGAN(channels=2)(torch.zeros(1, 3, 23, 64)), "sides of at least 24 pixels"),
    ],
)
def test_bad_arguments_are_refused(act, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_least_size_is_one_patch(num_layers: int) -> None:
    logits, _ = judged(PatchGAN(num_layers=num_layers, channels=2), torch.rand(2, 3, 3 * 2**num_layers, 64))
    assert logits.numel()
