"""Discriminators of images: layers as published, and what holds for all of them."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.refusals import refused
from tests.trainers.tiny import Images, make_image_task, make_trainer
from trainers.core import Adversary, Discriminator, UnclippedHinge
from trainers.image import (
    BilinearResize,
    BlurPatchGAN,
    BlurResidualDiscriminator,
    FrozenNetwork,
    GroupNorm,
    NoNorm,
    PatchGAN,
    ProjectedDiscriminator,
    RandomWeights,
    StyleGAN2Discriminator,
)
from trainers.image.discriminators.blur import Blur, BlurPool
from vqkit.saving.weights import no_download

KINDS = {
    "PatchGAN batch": lambda **more: PatchGAN(num_layers=2, channels=4, **more),
    "PatchGAN group": lambda **more: PatchGAN(num_layers=2, channels=4, norm=GroupNorm(2), **more),
    "PatchGAN none": lambda **more: PatchGAN(num_layers=2, channels=4, norm=NoNorm(), **more),
    "BlurPatchGAN": lambda **more: BlurPatchGAN(num_stages=2, channels=4, norm=GroupNorm(2), pooled_side=None, **more),
    "BlurPatchGAN pooled": lambda **more: BlurPatchGAN(num_stages=2, channels=4, norm=NoNorm(), pooled_side=8, **more),
    "BlurResidual": lambda **more: BlurResidualDiscriminator(resolution=32, channel_base=128, channel_max=8, **more),
    "StyleGAN2": lambda **more: StyleGAN2Discriminator(resolution=32, channel_base=128, channel_max=8, **more),
}
each = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
COUPLED = ("PatchGAN batch", "StyleGAN2")


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
        (lambda: BlurPatchGAN(), 75 * 128 + 9 * (128**2 + 128 * 256 + 256 * 512) + 512**2 + 25 * 512 + 128
            + 3 * (128 + 256 + 512) + 512 + 1),
        # Layers of 128, 64 ... 4 pixels: two convolutions and the skip without bias; then the head.
        (lambda: BlurResidualDiscriminator(), 28 * 64 + sum(9 * a * (a + b) + a + b + a * b for a, b in
            ((64, 128), (128, 256), (256, 512), (512, 512), (512, 512), (512, 512))) + 25 * 512**2 + 2 * 512 + 513),
        # Totals that NVIDIA's code prints for its configurations `paper256`, `stylegan2` and FFHQ at 1024 pixels.
        (lambda: StyleGAN2Discriminator(channel_base=16384), 24_001_089),
        (lambda: StyleGAN2Discriminator(), 28_864_129),
        (lambda: StyleGAN2Discriminator(resolution=1024), 29_012_513),
    ],
    ids=["PatchGAN", "group", "none", "six layers", "BlurPatchGAN", "BlurResidual", "256", "config F", "1024"],
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


def blurred(x: torch.Tensor, before: int, behind: int, stride: int) -> torch.Tensor:
    """1, 3, 3, 1 along each axis of zero-padded maps, tap by tap."""
    x = F.pad(x, (before, behind, before, behind))
    for axis in (2, 3):
        size = x.shape[axis] - 3
        x = sum(tap / 8 * x.narrow(axis, number, size) for number, tap in enumerate((1, 3, 3, 1)))
    return x[:, :, ::stride, ::stride]


@pytest.mark.parametrize("side", [1, 2, 7, 8])
def test_blurs_are_binomial_filters(side: int) -> None:
    x = torch.rand(2, 3, side, side, dtype=torch.float64)
    pooled = BlurPool().double()(x)
    assert pooled.shape == (2, 3, -(-side // 2), -(-side // 2))
    torch.testing.assert_close(pooled, blurred(x, 1, 1 + side % 2, 2))
    torch.testing.assert_close(Blur(padding=2).double()(x), blurred(x, 2, 2, 1))
    assert not BlurPool().state_dict()


def test_blur_patchgan_is_convolutions_and_blurs() -> None:
    discriminator = BlurPatchGAN(num_stages=2, channels=4, norm=GroupNorm(2), pooled_side=3).double()
    images = torch.rand(2, 3, 20, 20, dtype=torch.float64)
    p = dict(discriminator.named_parameters())

    def leaky(x):
        return torch.where(x > 0, x, 0.1 * x)

    x = leaky(F.conv2d(images, p["layers.0.weight"], p["layers.0.bias"], padding=2))
    for number in (1, 2):
        x = F.conv2d(x, p[f"layers.{number}.0.weight"], p[f"layers.{number}.0.bias"], padding=1)
        x = blurred(x, 1, 1, 2)
        grouped = x.unflatten(1, (2, -1)).flatten(2)
        normed = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        x = leaky(normed.reshape(x.shape) * p[f"layers.{number}.2.weight"][:, None, None])
    areas = ((0, 2), (1, 4), (3, 5))
    maxima = [[x[:, :, top:end, left:right].amax((2, 3)) for left, right in areas] for top, end in areas]
    x = torch.stack([torch.stack(row, -1) for row in maxima], -2)
    x = leaky(F.conv2d(x, p["mix.weight"], p["mix.bias"]))
    x = F.conv2d(x, p["to_logits.weight"], p["to_logits.bias"], padding=2)
    torch.testing.assert_close(judged(discriminator, images)[0], x.flatten(1))


def test_blur_residual_is_maskgits() -> None:
    discriminator = BlurResidualDiscriminator(resolution=8, channel_base=16, channel_max=4).double()
    images = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    first, up, through, skip, last, hidden, out = (q for q in discriminator.parameters() if q.ndim > 1)

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    x = leaky(F.conv2d(images, first, padding=1))
    branch = blurred(leaky(F.conv2d(x, up, padding=1)), 1, 1, 2)
    branch = leaky(F.conv2d(branch, through, padding=1))
    x = (F.conv2d(blurred(x, 1, 1, 2), skip) + branch) / 2**0.5
    x = leaky(F.conv2d(x, last, padding=1)).flatten(1)
    torch.testing.assert_close(judged(discriminator, images)[0], leaky(x @ hidden.T) @ out.T)
    for kernel in (first, up, through, skip, last, hidden, out):
        receptive = kernel[0, 0].numel()
        assert kernel.abs().max() <= (6 / (receptive * (kernel.shape[0] + kernel.shape[1]))) ** 0.5
        assert kernel.numel() < 50 or kernel.abs().max() > 0.9 * (6 / (receptive * sum(kernel.shape[:2]))) ** 0.5
    assert not any(q.any() for q in discriminator.parameters() if q.ndim == 1)


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (3, 3), (6, 3), (8, 4)])
def test_stylegan2_is_the_published_network(batch: int, group: int) -> None:
    torch.manual_seed(0)
    discriminator = StyleGAN2Discriminator(resolution=8, channel_base=16, channel_max=4).double()
    images = torch.rand(batch, 3, 8, 8, dtype=torch.float64)
    kernels = [q / q[0].numel() ** 0.5 for q in discriminator.parameters() if q.ndim > 1]
    first, up, down, skip, last, hidden, out = kernels

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x) * 2**0.5

    x = leaky(F.conv2d(images, first))
    branch = leaky(F.conv2d(x, up, padding=1))
    branch = leaky(F.conv2d(blurred(branch, 2, 2, 1), down, stride=2))
    x = (branch + F.conv2d(blurred(x, 1, 1, 1), skip, stride=2)) / 2**0.5
    count = batch // group
    plane = torch.empty(batch, 1, 4, 4, dtype=torch.float64)
    for number in range(count):
        members = x[number::count]
        plane[number::count] = ((members - members.mean(0)).square().mean(0) + 1e-8).sqrt().mean()
    x = leaky(F.conv2d(torch.cat([x, plane], 1), last, padding=1)).flatten(1)
    torch.testing.assert_close(judged(discriminator, images)[0], leaky(x @ hidden.T) @ out.T, rtol=1e-5, atol=1e-7)


class Tokens(nn.Module):
    """Patches of 4 x 4 pixels as tokens of 4 channels behind a class token, and a layer over them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 4, 4, stride=4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(images).flatten(2).mT
        return self.second(self.first(torch.cat([tokens.mean(1, keepdim=True), tokens], 1)).tanh())


def projected(*layers: str, **more) -> ProjectedDiscriminator:
    resize = BilinearResize(16)
    network = FrozenNetwork(
        lambda _: Tokens(), weights=RandomWeights(), download=no_download, layers=layers, resize=resize
    )
    return ProjectedDiscriminator(network, **({"norm": GroupNorm(2), "kernel_size": 3} | more))


def test_projected_heads_are_the_published_ones() -> None:
    """Rings written out by rolling, and spectral norms by singular values, once the power iteration has converged."""
    torch.manual_seed(0)
    discriminator, images = projected("first", "second"), torch.rand(2, 3, 16, 16)
    for _ in range(300):
        discriminator(images)
    outputs = discriminator.eval()(images)
    assert [output.logits.shape for output in outputs] == [(2, 16), (2, 16)]
    kinds = {"parametrizations.weight.original", "bias", "weight"}
    for head, tokens, output in zip(discriminator.heads, discriminator.network(images), outputs, strict=True):
        p = dict(head.named_parameters())
        assert {name.split(".", 2 if "to_logits" not in name else 1)[-1] for name in p} == kinds

        def ring(x: torch.Tensor, name: str, p=p) -> torch.Tensor:
            kernel = p[f"{name}.parametrizations.weight.original"]
            kernel = kernel / torch.linalg.svdvals(kernel.flatten(1))[0]
            taps = kernel.shape[-1]
            return p[f"{name}.bias"][:, None] + sum(
                kernel[:, :, 0, tap] @ x.roll(taps // 2 - tap, dims=2) for tap in range(taps)
            )

        def block(x: torch.Tensor, name: str, ring=ring) -> torch.Tensor:
            x = F.group_norm(ring(x, f"{name}.0"), 2)
            return torch.where(x > 0, x, 0.2 * x)

        x = block((tokens[:, 1:] + tokens[:, :1]).mT, "first")
        x = (block(x, "second") + x) / 2**0.5
        torch.testing.assert_close(output.logits, ring(x, "to_logits").flatten(1), rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*is deprecated, use `isinstance")
def test_only_the_heads_of_a_projected_discriminator_are_trained() -> None:
    """Images of another size than the network's; its weights are in no checkpoint, and gradients reach the images."""
    discriminator = projected("second")
    network = [parameter.clone() for parameter in discriminator.network._held[0].network.parameters()]
    task = make_image_task(adversary=Adversary([discriminator], loss=UnclippedHinge(), feature_matching=0.0))
    start = {name: value.clone() for name, value in task.adversary.named_parameters()}
    make_trainer(max_steps=2).fit(task, datamodule=Images(4))
    moved = [name for name, value in task.adversary.named_parameters() if not torch.equal(value, start[name])]
    assert set(moved) >= {name for name, value in start.items() if value.ndim == 4}
    assert not any("network" in name for name in task.state_dict())
    assert all(map(torch.equal, network, discriminator.network._held[0].network.parameters()))
    images = torch.rand(1, 3, 20, 12).requires_grad_()
    discriminator(images)[0].logits.square().sum().backward()
    assert images.grad.any()


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
    images = torch.rand(2, 1, 32, 32).requires_grad_()
    discriminator = kind(in_channels=1)
    logits, features = judged(discriminator, images)
    assert logits.ndim == 2 and all(feature.shape[0] == 2 for feature in features)
    (logits * torch.randn_like(logits)).sum().backward()
    for name, parameter in discriminator.named_parameters():
        assert parameter.grad.any(), name
    assert (images.grad != 0).float().mean() > 0.95


@pytest.mark.parametrize("kind", [name for name in KINDS if name not in COUPLED])
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


test_bad_arguments_are_refused = refused(
    (lambda: PatchGAN(0), "in_channels=0"),
    (lambda: PatchGAN(num_layers=0), "num_layers=0"),
    (lambda: PatchGAN(channels=0), "channels=0"),
    (lambda: GroupNorm(0), "num_groups=0"),
    (lambda: PatchGAN(channels=24, norm=GroupNorm(32)), "num_groups=32 does not divide the 48 channels"),
    (lambda: PatchGAN(channels=2)(torch.zeros(1, 3, 23, 64)), "sides of at least 24 pixels"),
    (lambda: projected("first", kernel_size=4), "kernel_size=4"),
    (lambda: projected(), "network names no layers"),
    (lambda: projected("patches"), r"layer 'patches' of the network gives \(1, 4, 4, 4\)"),
    (lambda: BlurPatchGAN(num_stages=0), "num_stages=0"),
    (lambda: BlurPatchGAN(pooled_side=0), "pooled_side=0"),
    (lambda: BlurPatchGAN(channels=16), "num_groups=32 does not divide the 16 channels"),
    (lambda: BlurResidualDiscriminator(resolution=4), "resolution=4"),
    (lambda: BlurResidualDiscriminator(resolution=48), "resolution=48"),
    (lambda: BlurResidualDiscriminator(channel_base=128), "channel_base=128"),
    (lambda: StyleGAN2Discriminator(channel_max=0), "channel_max=0"),
    (lambda: StyleGAN2Discriminator(resolution=8, channel_max=2)(torch.zeros(1, 3, 8, 16)), "images of 8 x 8 pixels"),
)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_least_size_is_one_patch(num_layers: int) -> None:
    logits, _ = judged(PatchGAN(num_layers=num_layers, channels=2), torch.rand(2, 3, 3 * 2**num_layers, 64))
    assert logits.numel()
