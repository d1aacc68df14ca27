"""Terms of the discriminators' loss, and augmentation, against their equations."""

import numpy
import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from trainers.core import (
    R1,
    Adversary,
    Augmentation,
    BalancedConsistency,
    Discriminator,
    DiscriminatorOutput,
    LeCAM,
    UnclippedHinge,
)
from trainers.image import Color, Cutout, DiffAugment, GaussianBlur, PatchGAN, Translation


class Patches(Discriminator):
    """Logits w x^3 of each pixel, and w x of each of them as features; both weights are trained."""

    axes = ("height", "width")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__(1)
        self.scale = nn.Parameter(torch.tensor(scale))

    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        return [DiscriminatorOutput((self.scale * batch**3).flatten(1), [self.scale * batch])]


class Negative(Augmentation):
    """1 - x."""

    def forward(self, reference: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - reference, 1 - reconstruction


def adversary(*discriminators: Discriminator, **arguments) -> Adversary:
    return Adversary(discriminators or [Patches()], loss=UnclippedHinge(), **({"feature_matching": 0.0} | arguments))


def added(regularizer, real: Tensor, fake: Tensor, *discriminators: Discriminator, **more) -> tuple[Tensor, Adversary]:
    """The weighted term, as the difference that it makes, and the adversary with its gradients."""
    plain = adversary(*discriminators)(real, fake, **more).discriminator
    judge = adversary(*discriminators, regularizers=[regularizer])
    output = judge(real, fake, **more)
    if regularizer.name in output.figures:
        weighted = regularizer.weight * output.figures[regularizer.name]
        torch.testing.assert_close(weighted, (output.discriminator - plain).detach(), rtol=1e-4, atol=1e-5)
    (output.discriminator - plain).backward()
    return output.discriminator.detach() - plain.detach(), judge


# ------------------------------------------------------------------ LeCAM


def test_lecam_is_the_published_equation() -> None:
    torch.manual_seed(0)
    batches = [tuple(torch.randn(2, 3, 1, 4, 4)) for _ in range(3)]
    regularizer, discriminator = LeCAM(weight=0.3, decay=0.75), Patches(0.5)
    sums, count = numpy.zeros(2), 0.0
    for real, fake in batches:
        discriminator.zero_grad()
        got, judge = added(regularizer, real, fake, discriminator)
        logits = [0.5 * side.double() ** 3 for side in (real, fake)]
        if count == 0:
            assert got == 0 and not discriminator.scale.grad
        else:
            average = sums / count
            parts = [(logits[0] - average[1]).clamp(min=0), (average[0] - logits[1]).clamp(min=0)]
            expected = 0.3 * sum(part.square().mean() for part in parts)
            torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-6)
            slopes = [
                2 * part * sign * side.double() ** 3
                for part, sign, side in zip(parts, (1, -1), (real, fake), strict=True)
            ]
            gradient = 0.3 * sum(slope.mean() for slope in slopes)
            torch.testing.assert_close(discriminator.scale.grad.double(), gradient, rtol=1e-4, atol=1e-6)
        judge.fold()
        sums, count = 0.75 * sums + [float(side.mean()) for side in logits], 0.75 * count + 1


def test_lecam_ignores_what_is_not_finite_and_is_quiet_between_steps() -> None:
    regularizer = LeCAM(weight=1.0)
    judge = adversary(regularizers=[regularizer])
    images = torch.rand(2, 1, 4, 4)
    judge(images, images)
    assert not regularizer.averages.any()
    judge.fold()
    before = regularizer.averages.clone()
    assert before.all()
    judge.fold()
    assert torch.equal(regularizer.averages, before)
    judge(images * torch.nan, images)
    judge.fold()
    assert torch.equal(regularizer.averages, before)


# ------------------------------------------------------------------ R1 and consistency


def test_r1_is_the_published_equation_every_n_turns() -> None:
    """D(x) is the mean of w x^3 over 16 pixels: |grad|^2 = sum (3 w x^2 / 16)^2."""
    real, fake = torch.rand(2, 3, 1, 4, 4)
    terms = []
    for step in range(6):
        discriminator = Patches(0.5)
        got, _ = added(R1(weight=4.0, every_n_turns=3), real, fake, discriminator, step=step)
        norms = (3 * 0.5 * real**2 / 16).square().sum((1, 2, 3)).mean()
        expected = 3 * 4.0 / 2 * norms
        if step in (2, 5):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(discriminator.scale.grad, 2 * expected / 0.5, rtol=1e-4, atol=1e-6)
        terms.append(bool(got))
    assert terms == [False, False, True, False, False, True]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_r1_passes_through_a_network_in_full_precision(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    discriminator = PatchGAN(num_layers=1, channels=4)
    real, fake = torch.rand(2, 2, 3, 8, 8)
    regularizer = R1(every_n_turns=1)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        found = adversary(discriminator, regularizers=[regularizer])(real, fake)
    images = real.clone().requires_grad_()
    discriminator(images)[0].logits.mean(1).sum().backward()
    torch.testing.assert_close(found.figures["r1"], images.grad.square().sum((1, 2, 3)).mean() / 2)
    assert not found.generator["adversarial"].requires_grad


def test_consistency_is_the_published_equation() -> None:
    real, fake = torch.rand(2, 3, 1, 4, 4)
    got, _ = added(BalancedConsistency(Negative(), weight=4.0), real, fake)
    expected = 4.0 * sum((side**3 - (1 - side) ** 3).square().mean() for side in (real, fake))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [lambda: LeCAM(weight=1.0), lambda: R1(every_n_turns=1), lambda: BalancedConsistency(Negative())],
    ids=["LeCAM", "R1", "BalancedConsistency"],
)
def test_terms_are_means_over_discriminators_and_leave_the_generator_alone(make) -> None:
    real, fake = torch.rand(2, 3, 1, 4, 4)
    fake.requires_grad_()
    found = []
    for discriminators in ([Patches(2.0)], [Patches(2.0), Patches(2.0)]):
        judge = adversary(*discriminators, regularizers=[make()])
        for _ in range(2):  # LeCAM has nothing to say at first
            output = judge(real, fake)
            judge.fold()
        output.discriminator.backward()
        found.append(output.discriminator.detach())
    torch.testing.assert_close(*found)
    assert fake.grad is None


# ------------------------------------------------------------------ steps in which discriminators wait


@pytest.mark.parametrize("matching", [0.0, 2.0])
def test_a_step_without_learning_costs_what_the_generator_needs(matching: float) -> None:
    judge, passes = adversary(feature_matching=matching, every_n_steps=2, regularizers=[R1(every_n_turns=1)]), []
    keep = Patches.judge
    real, fake = torch.rand(2, 3, 1, 4, 4)
    fake.requires_grad_()
    outputs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Patches, "judge", lambda self, batch: (passes.append(1), keep(self, batch))[1])
        for step in (0, 1):
            outputs[step] = judge(fake.detach() + real, fake, step=step)
            passes.append(0)
    assert "".join(map(str, passes)) == ("110" if matching else "10") + "11110"
    assert outputs[0].discriminator == 0 and not outputs[0].figures and outputs[1].figures
    for name, term in outputs[0].generator.items():
        assert torch.equal(term, outputs[1].generator[name])
    outputs[0].discriminator.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in judge.parameters())


# ------------------------------------------------------------------ augmentation


def test_colors_change_as_published() -> None:
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64) * 2 - 1
    uniform = torch.tensor([[0.75, 0.25, 1.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    found = Color().apply(images, uniform)
    torch.testing.assert_close(found[1], images[1])
    x = images[0].numpy() + 0.25
    x = 0.5 * x + 0.5 * x.mean(0)
    torch.testing.assert_close(found[0].numpy(), 1.5 * x - 0.5 * x.mean())


@pytest.mark.parametrize(
    ("uniform", "rows", "columns"),
    [((0.0, 0.999), -1, 2), ((0.5, 0.5), 0, 0), ((0.999, 0.0), 1, -2)],
)
def test_translation_shifts_by_up_to_an_eighth(uniform, rows: int, columns: int) -> None:
    images = torch.rand(1, 2, 8, 16) + 1
    found = Translation().apply(images, torch.tensor([uniform]))
    expected = numpy.zeros((2, 8, 16), numpy.float32)
    for i in range(8):
        for j in range(16):
            if 0 <= i + rows < 8 and 0 <= j + columns < 16:
                expected[:, i, j] = images[0, :, i + rows, j + columns]
    assert numpy.array_equal(found[0], expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (1, 2)])
@pytest.mark.parametrize("uniform", [(0.0, 0.0), (0.3, 0.6), (0.9999, 0.9999)])
def test_cutout_covers_half_of_the_sides_around_its_centre(height: int, width: int, uniform) -> None:
    found = Cutout().apply(torch.ones(1, 2, height, width), torch.tensor([uniform], dtype=torch.float64))
    expected = numpy.ones((height, width))
    sizes = [int(side / 2 + 0.5) for side in (height, width)]
    centres = [int(u * (side + (1 - s % 2))) for u, side, s in zip(uniform, (height, width), sizes, strict=True)]
    for i in range(sizes[0]):
        for j in range(sizes[1]):
            row = min(max(centres[0] + i - sizes[0] // 2, 0), height - 1)
            column = min(max(centres[1] + j - sizes[1] // 2, 0), width - 1)
            expected[row, column] = 0
    assert numpy.array_equal(found[0, 1], expected) and torch.equal(found[0, 0], found[0, 1])


def test_pairs_share_a_draw_and_gradients_pass() -> None:
    augmentation = DiffAugment(seed=3)
    images = torch.rand(4, 3, 16, 16)
    copies = images.clone().requires_grad_()
    real, fake = augmentation(images, copies)
    assert torch.equal(real, fake) and not torch.equal(real, images)
    fake.sum().backward()
    assert copies.grad.any()
    again, _ = augmentation(images, images)
    assert not torch.equal(again, real)  # the next call has draws of its own
    first = DiffAugment(seed=3)
    assert torch.equal(first(images, images)[0], real)
    assert not torch.equal(DiffAugment(seed=4)(images, images)[0], real)
    assert not torch.equal(*first(images[:1].expand(2, -1, -1, -1), images[:2])[0])  # each image has its own


def test_only_training_counts_calls() -> None:
    augmentation, images = DiffAugment().eval(), torch.rand(2, 3, 8, 8)
    augmentation(images, images)
    assert augmentation.calls == 0


def draws(rank: int, world: int) -> Tensor:
    images = torch.linspace(0, 1, 4 * 3 * 64).reshape(4, 3, 8, 8).chunk(world)[rank]
    return DiffAugment()(images, images)[0]


def test_two_processes_draw_as_one(rank_pair) -> None:
    assert torch.equal(torch.cat(rank_pair(draws, 2)), draws(0, 1))


test_bad_arguments_are_refused = refused(
    (lambda: LeCAM(weight=0.0), "lecam: weight=0.0"),
    (lambda: LeCAM(weight=1.0, decay=1.0), "decay=1.0"),
    (lambda: R1(every_n_turns=0), "every_n_turns=0"),
    (lambda: BalancedConsistency(Negative(), weight=-1.0), "consistency: weight=-1.0"),
    (lambda: DiffAugment([]), "transformations is empty"),
    (lambda: Translation(1.5), "ratio=1.5"),
    (lambda: Cutout(-0.1), "ratio=-0.1"),
    (lambda: adversary(every_n_steps=0), "every_n_steps=0"),
    (lambda: adversary(weight_decay=-1.0), "weight_decay=-1.0"),
    (lambda: adversary(regularizers=[R1(), R1()]), "r1"),
)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_blur_is_a_gaussian_over_reflected_borders(sigma: float) -> None:
    pair = torch.rand(2, 2, 3, 9, 12, dtype=torch.float64)
    reach = int(numpy.ceil(3 * sigma))
    weights = numpy.exp(-(numpy.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    padded = numpy.pad(pair.numpy(), ((0, 0), (0, 0), (0, 0), (reach, reach), (reach, reach)), "reflect")
    expected = numpy.zeros(pair.shape)
    for i, row in enumerate(weights):
        for j, column in enumerate(weights):
            expected += row * column * padded[..., i : i + 9, j : j + 12]
    found = torch.stack(GaussianBlur(sigma)(*pair))
    # The weights are made in float32: each of the two passes errs by its relative rounding of a few 2^-24.
    torch.testing.assert_close(found.numpy(), expected, rtol=2**-20, atol=0)


def test_what_a_blur_takes_away_is_not_judged() -> None:
    """A checkerboard has the highest frequency: behind a blur by two pixels nothing of it reaches the discriminator."""
    board = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2.0 - 1
    reconstruction = torch.full((1, 1, 16, 16), 0.25).requires_grad_()
    judge = adversary(augmentation=GaussianBlur(2.0))
    output = judge(torch.zeros(1, 1, 16, 16), reconstruction)
    (gradient,) = torch.autograd.grad(output.generator["adversarial"], reconstruction)
    assert gradient.abs().sum() > 0.1
    assert (gradient * board).sum().abs() < 1e-3 * gradient.abs().sum()


def test_a_blur_of_nothing_changes_nothing_and_bad_ones_are_refused() -> None:
    pair = torch.rand(2, 1, 3, 8, 8).unbind()
    assert all(found is given for found, given in zip(GaussianBlur(0.0)(*pair), pair, strict=True))
    for sigma in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"sigma={sigma}: expected a number of pixels"):
            GaussianBlur(sigma)
    with pytest.raises(ValueError, match="sides of more than 9 pixels"):
        GaussianBlur(3.0)(*pair)
