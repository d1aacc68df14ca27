import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from trainers.audio import MultiBandSTFTDiscriminator, MultiPeriodDiscriminator, MultiScaleSTFTDiscriminator
from trainers.core import (
    AdversarialLoss,
    Adversary,
    Discriminator,
    DiscriminatorOutput,
    FeatureMatching,
    Hinge,
    HingeNonSaturating,
    LeastSquares,
    NonSaturating,
    RelativeFeatureMatching,
    UnclippedHinge,
    Vanilla,
)


def discriminators() -> list[Discriminator]:
    return [
        MultiPeriodDiscriminator(periods=[2, 3], channels=2),
        MultiBandSTFTDiscriminator(window_lengths=[64], bands=[0, 0.5, 1], channels=4),
    ]


def codec() -> nn.Module:
    return nn.Sequential(nn.Conv1d(1, 4, 9, padding=4), nn.Tanh(), nn.Conv1d(4, 1, 9, padding=4))


GAMES = [LeastSquares(), Hinge(), UnclippedHinge(), HingeNonSaturating(), NonSaturating(), Vanilla()]
games = pytest.mark.parametrize("loss", GAMES, ids=lambda loss: type(loss).__name__)
matchings = pytest.mark.parametrize(
    "matching", [FeatureMatching(), RelativeFeatureMatching()], ids=lambda matching: type(matching).__name__
)


# ------------------------------------------------------------------ equations


def test_least_squares() -> None:
    real, fake = torch.randn(50), torch.randn(50)
    game = LeastSquares()
    torch.testing.assert_close(game.discriminator(real, fake), ((real - 1) ** 2).mean() + (fake**2).mean())
    torch.testing.assert_close(game.generator(fake), ((fake - 1) ** 2).mean())


def test_hinge() -> None:
    real, fake = torch.tensor([-1.0, 0.5, 3.0]), torch.tensor([-3.0, 0.5, 2.0])
    game = Hinge()
    torch.testing.assert_close(game.discriminator(real, fake), torch.tensor((2 + 0.5 + 0) / 3 + (0 + 1.5 + 3) / 3))
    torch.testing.assert_close(game.generator(fake), torch.tensor((4 + 0.5 + 0) / 3))


def test_unclipped_hinge() -> None:
    """The discriminator's side is that of `Hinge`; a reconstruction beyond the margin still feels the whole pull."""
    real, fake = torch.randn(20), torch.tensor([-3.0, 0.5, 2.0], requires_grad=True)
    game = UnclippedHinge()
    assert torch.equal(game.discriminator(real, fake), Hinge().discriminator(real, fake))
    loss = game.generator(fake)
    loss.backward()
    torch.testing.assert_close(loss.detach(), torch.tensor((3 - 0.5 - 2) / 3))
    torch.testing.assert_close(fake.grad, torch.full((3,), -1 / 3))


def test_hinge_with_a_non_saturating_generator() -> None:
    real, fake = torch.randn(2, 4, 6, dtype=torch.float64)
    game = HingeNonSaturating()
    assert torch.equal(game.discriminator(real, fake), Hinge().discriminator(real, fake))
    expected = sum(-torch.log((sum(item) / 6).sigmoid()) for item in fake) / 4
    torch.testing.assert_close(game.generator(fake), expected)


def test_non_saturating() -> None:
    real, fake = torch.randn(2, 50, dtype=torch.float64)
    game = NonSaturating()
    both = -torch.log(real.sigmoid()).mean() - torch.log(1 - fake.sigmoid()).mean()
    torch.testing.assert_close(game.discriminator(real, fake), both)
    torch.testing.assert_close(game.generator(fake), -torch.log(fake.sigmoid()).mean())
    assert game.generator(torch.tensor([-200.0])) == 200  # the logarithm of the sigmoid would be -inf


def test_vanilla() -> None:
    real, fake = torch.randn(2, 50, dtype=torch.float64)
    both = -torch.log(real.sigmoid()).mean() - torch.log(1 - fake.sigmoid()).mean()
    torch.testing.assert_close(Vanilla().discriminator(real, fake), both)
    torch.testing.assert_close(Vanilla().generator(fake), -sum(fake) / 50)


def test_feature_matching_and_its_relative_form() -> None:
    real, fake = torch.tensor([[2.0, -4.0]]), torch.tensor([[1.0, -4.0]])
    assert FeatureMatching().distance(real, fake) == 0.5
    torch.testing.assert_close(RelativeFeatureMatching().distance(real, fake), torch.tensor(0.5 / 3))
    torch.testing.assert_close(RelativeFeatureMatching().distance(8 * real, 8 * fake), torch.tensor(0.5 / 3))
    silence = torch.zeros(2, 2)
    assert RelativeFeatureMatching().distance(silence, silence) == 0


@games
@matchings
def test_terms_are_means_over_subdiscriminators_and_layers(loss: AdversarialLoss, matching: FeatureMatching) -> None:
    adversary = Adversary(discriminators(), loss=loss, matching=matching)
    reference, reconstruction = torch.randn(2, 1, 500), torch.randn(2, 1, 500)
    output = adversary(reference, reconstruction)
    real, fake = ([o for d in adversary.discriminators for o in d(wave)] for wave in (reference, reconstruction))
    pairs = list(zip(real, fake, strict=True))
    assert len(pairs) == 3
    expected = sum(loss.discriminator(r.logits, f.logits) for r, f in pairs) / 3
    torch.testing.assert_close(output.discriminator, expected)
    torch.testing.assert_close(output.generator["adversarial"], sum(loss.generator(f.logits) for f in fake) / 3)
    layers = [matching.distance(a, b) for r, f in pairs for a, b in zip(r.features, f.features, strict=True)]
    assert len(layers) == 5 + 5 + 10
    torch.testing.assert_close(output.generator["feature_matching"], sum(layers) / 20)


def test_the_number_of_discriminators_does_not_change_the_terms() -> None:
    one = MultiPeriodDiscriminator(periods=[2, 3], channels=2)
    reference, reconstruction = torch.randn(2, 1, 500), torch.randn(2, 1, 500)
    alone = Adversary([one])(reference, reconstruction)
    thrice = Adversary([one, one, copy.deepcopy(one)])(reference, reconstruction)
    torch.testing.assert_close(thrice.discriminator, alone.discriminator)
    for name, term in alone.generator.items():
        torch.testing.assert_close(thrice.generator[name], term)


# ------------------------------------------------------------------ gradients


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


def in_two_steps(adversary: Adversary, generator: nn.Module, wave: Tensor) -> tuple[dict, dict]:
    """What alternating training does: the discriminators on a detached batch, then the generator against frozen
    discriminators.
    """
    reconstruction = generator(wave)

    def judge(x: Tensor) -> list:
        return [output for discriminator in adversary.discriminators for output in discriminator(x)]

    real, fake = judge(wave), judge(reconstruction.detach())
    terms = [adversary.loss.discriminator(r.logits.float(), f.logits.float()) for r, f in zip(real, fake, strict=True)]
    torch.stack(terms).mean().backward()
    theirs = gradients(adversary)
    adversary.requires_grad_(False)
    real, fake = judge(wave), judge(reconstruction)
    adversarial = torch.stack([adversary.loss.generator(f.logits.float()) for f in fake]).mean()
    layers = [
        adversary.matching.distance(a.float(), b.float())
        for r, f in zip(real, fake, strict=True)
        for a, b in zip(r.features, f.features, strict=True)
    ]
    (0.7 * adversarial + 2.0 * torch.stack(layers).mean()).backward()
    adversary.requires_grad_(True)
    return theirs, gradients(generator)


@games
@matchings
@pytest.mark.parametrize("precision", ["float32", "bfloat16 autocast"])
def test_one_backward_gives_the_gradients_of_two(loss: AdversarialLoss, matching: FeatureMatching, precision) -> None:
    adversary, generator = Adversary(discriminators(), loss=loss, matching=matching), codec()
    wave = torch.randn(3, 1, 400)
    with nullcontext() if precision == "float32" else torch.autocast("cpu", dtype=torch.bfloat16):
        theirs, ours = in_two_steps(adversary, generator, wave)
        adversary.zero_grad()
        generator.zero_grad()
        output = adversary(wave, generator(wave))
        terms = output.generator
        (0.7 * terms["adversarial"] + 2.0 * terms["feature_matching"] + output.discriminator).backward()
    assert all(term.dtype == torch.float32 for term in (output.discriminator, *terms.values()))
    rounding = {"rtol": 1e-4, "atol": 1e-7} if precision == "float32" else {"rtol": 2e-2, "atol": 1e-4}
    for expected, module in ((theirs, adversary), (ours, generator)):
        assert sum(gradient.abs().sum() for gradient in expected.values()) > 0
        for name, gradient in gradients(module).items():
            torch.testing.assert_close(gradient, expected[name], **rounding)


def test_neither_side_sends_gradients_to_the_other() -> None:
    adversary, generator = Adversary(discriminators()), codec()
    wave = torch.randn(2, 1, 400)
    output = adversary(wave, generator(wave))
    sum(output.generator.values()).backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in adversary.parameters())
    assert all(parameter.grad is not None for parameter in generator.parameters())
    generator.zero_grad()
    output.discriminator.backward()
    assert all(parameter.grad is not None for parameter in adversary.parameters())
    assert all(parameter.grad is None for parameter in generator.parameters())


def test_a_call_changes_nothing_but_gradients() -> None:
    adversary = Adversary(discriminators())
    before = copy.deepcopy(adversary.state_dict())
    adversary(torch.randn(2, 1, 400), torch.randn(2, 1, 400))
    assert all(parameter.requires_grad for parameter in adversary.parameters())
    assert all(torch.equal(value, before[name]) for name, value in adversary.state_dict().items())


def test_runs_without_gradients() -> None:
    adversary = Adversary(discriminators())
    with torch.no_grad():
        output = adversary(torch.randn(2, 1, 400), torch.randn(2, 1, 400))
    assert output.discriminator.isfinite() and not output.discriminator.requires_grad


def test_idle_is_a_zero_with_a_graph_through_every_parameter() -> None:
    adversary = Adversary(discriminators())
    zero = adversary.idle()
    zero.backward()
    assert zero == 0 and zero.shape == ()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in adversary.parameters())


def test_the_game_is_learned() -> None:
    """Discriminators tell noise from a tone; then the generator's terms turn the noise into what passes for a tone."""
    adversary = Adversary([MultiScaleSTFTDiscriminator(window_lengths=[32], channels=4)])
    optimizer = torch.optim.Adam(adversary.parameters(), 2e-2)
    tone = torch.sin(0.3 * torch.arange(200)).expand(2, 1, -1)
    noise = 0.5 * torch.randn(2, 1, 200)
    for _ in range(20):
        optimizer.zero_grad()
        output = adversary(tone, noise)
        output.discriminator.backward()
        optimizer.step()
    assert output.figures["accuracy"] > 0.9
    assert output.figures["logits_real"] > output.figures["logits_fake"] + 0.5
    noise.requires_grad_()
    optimizer = torch.optim.Adam([noise], 5e-2)
    first = adversary(tone, noise).generator
    for _ in range(15):
        optimizer.zero_grad()
        terms = adversary(tone, noise).generator
        sum(terms.values()).backward()
        optimizer.step()
    assert all(terms[name] < 0.7 * first[name] for name in terms)


# ------------------------------------------------------------------ figures, schedule, arguments


def test_figures() -> None:
    class Fixed(Discriminator):
        """Finds half of the real logits real, and three quarters of the fake ones fake."""

        axes = ("samples",)

        def judge(self, batch: Tensor):
            fake = batch.mean() < 0
            logits = torch.tensor([[-1.0, -1.0, -1.0, 3.0]] if fake else [[-1.0, -1.0, 0.25, 2.0]])
            return [DiscriminatorOutput(logits + 0 * batch.sum(), [batch])]

    adversary = Adversary([Fixed(1)], loss=Hinge())
    output = adversary(torch.ones(1, 1, 4), -torch.ones(1, 1, 4, requires_grad=True))
    figures = {name: float(value) for name, value in output.figures.items()}
    assert figures == pytest.approx(
        {"logits_real": 0.0625, "logits_fake": 0.0, "accuracy": 0.625, "discriminator_loss": 1.1875 + 1.0}
    )
    assert not any(value.requires_grad for value in output.figures.values())


def test_images_are_judged_too() -> None:
    class Patches(Discriminator):
        """One layer over patches of an image."""

        axes = ("height", "width")

        def __init__(self) -> None:
            super().__init__(3)
            self.layer = nn.Conv2d(3, 1, 4, stride=4)

        def judge(self, batch: Tensor):
            logits = self.layer(batch)
            return [DiscriminatorOutput(logits, [logits])]

    images = torch.rand(2, 3, 8, 12)
    copies = torch.rand(2, 3, 8, 12, requires_grad=True)
    output = Adversary([Patches()])(images, copies)
    sum(output.generator.values()).backward()
    assert copies.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"batch has shape \(2, 3, 96\), expected \(batch, 3, height, width\)"):
        Patches()(images.flatten(2))


def test_weights_start_late_and_rise_linearly() -> None:
    adversary = Adversary(discriminators(), weight=2.0, feature_matching=4.0, start_step=10, ramp_steps=3)
    assert [adversary.active(step) for step in (0, 9, 10, 99)] == [False, False, True, True]
    assert [adversary.weights(step)["adversarial"] for step in (0, 9, 10, 11, 12, 13, 99)] == [0, 0, 0.5, 1, 1.5, 2, 2]
    assert adversary.weights(10)["feature_matching"] == 1.0
    at_once = Adversary(discriminators(), start_step=5)
    assert [at_once.weights(step)["feature_matching"] for step in (4, 5, 6)] == [0, 2, 2]


test_bad_arguments_are_refused = refused(
    ({"discriminators": []}, "discriminators is empty"),
    ({"weight": -1.0}, "weight=-1.0"),
    ({"feature_matching": float("nan")}, "feature_matching=nan"),
    ({"start_step": -1}, "start_step=-1"),
    ({"ramp_steps": -1}, "ramp_steps=-1"),
    ({"learning_rate": 0.0}, "learning_rate=0.0"),
    ({"betas": (0.5, 1.0)}, "betas="),
    by=lambda arguments: Adversary(**{"discriminators": discriminators(), **arguments}),
)
test_different_shapes_are_refused = refused(
    (lambda: Adversary(discriminators())(torch.zeros(2, 1, 100), torch.zeros(2, 1, 99)), "expected the same"),
)
