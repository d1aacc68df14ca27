"""Objectives of images: their equations, their gradients, and the parameters that some of them train."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.distributions import Laplace, SigmoidTransform, TransformedDistribution

from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_trainer
from trainers.core import LossBalancer, Objective
from trainers.image import L1, L2, LearnedVariance, LogitLaplace

pytestmark = LIGHTNING_REMARKS

ROOT = Path(__file__).parents[2]


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and noisy copies, some of whose values lie outside."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator) * 2 - 1
    return images, images + 0.1 * torch.randn(shape, generator=generator)


def everything() -> list[Objective]:
    return [L1(), L2(), LogitLaplace(), LearnedVariance([L1(), L2(weight=2.0)])]


each = pytest.mark.parametrize("objective", everything(), ids=lambda objective: type(objective).__name__)


# ------------------------------------------------------------------ equations


def test_pixel_distances() -> None:
    reference, reconstruction = pair(2, 3, 5, 7)
    difference = reconstruction - reference
    torch.testing.assert_close(L1()(reference, reconstruction), difference.abs().mean())
    torch.testing.assert_close(L2()(reference, reconstruction), difference.square().mean())


def test_logit_laplace_is_the_density_of_the_distribution() -> None:
    """A Laplace variable through a sigmoid, as torch has both."""
    reference, reconstruction = (x.double().clamp(-1, 1) for x in pair(2, 3, 5, 7))
    p, location = (0.8 * (x + 1) / 2 + 0.1 for x in (reference, reconstruction))
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    distribution = TransformedDistribution(Laplace(location.logit(), scale), SigmoidTransform())
    expected = -distribution.log_prob(p).mean()
    objective = LogitLaplace(initial_scale=0.3).double()
    value = objective(reference, reconstruction)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)  # the logarithm of the scale was made in float32
    value.backward()
    expected.backward()
    torch.testing.assert_close(objective.log_scale.grad, scale.grad * scale.detach(), rtol=1e-6, atol=0)


def test_logit_laplace_pulls_values_back_from_outside() -> None:
    reference = torch.zeros(1, 1, 1, 4)
    reconstruction = torch.tensor([-3.0, -1.25, 1.25, 3.0]).reshape(1, 1, 1, 4).requires_grad_()
    LogitLaplace()(reference, reconstruction).backward()
    slope = 0.4 / (0.1 * 0.9)  # of the logit at the end of the range
    torch.testing.assert_close(reconstruction.grad.flatten(), slope / 4 * torch.tensor([-1.0, -1.0, 1.0, 1.0]))


def test_the_variance_settles_at_the_distance() -> None:
    reference, reconstruction = pair(2, 3, 5, 7)
    objective = LearnedVariance([L1(weight=0.5), L2(weight=2.0)], initial_log_variance=-1.0)
    difference = (reconstruction - reference).abs()
    distance = 0.5 * difference.mean() + 2.0 * difference.square().mean()
    torch.testing.assert_close(objective(reference, reconstruction), distance * math.e - 1)
    with torch.no_grad():
        objective.log_variance.fill_(distance.log())
    objective(reference, reconstruction).backward()
    assert abs(float(objective.log_variance.grad)) < 1e-6


# ------------------------------------------------------------------ what all of them do


@each
def test_gradients_reach_the_reconstruction_in_full_precision(objective: Objective) -> None:
    reference, reconstruction = pair(2, 3, 32, 32)
    expected = objective(reference, reconstruction)
    low = [x.bfloat16() for x in (reference, reconstruction)]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(objective(reference, reconstruction), expected)
        assert objective(*low).dtype == torch.float32
    leaf = reconstruction.clone().requires_grad_()
    objective(reference, leaf).backward()
    assert leaf.grad.isfinite().all() and leaf.grad.flatten(1).norm(dim=1).min() > 0


@each
def test_images_of_two_sizes_are_refused(objective: Objective) -> None:
    with pytest.raises(ValueError, match=r"expected the same \(batch, channels, height, width\)"):
        objective(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 31))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: L1(weight=-1.0), "weight=-1.0"),
        (lambda: LogitLaplace(epsilon=0.5), "epsilon=0.5: expected a number in"),
        (lambda: LogitLaplace(initial_scale=0.0), "initial_scale=0.0: expected a positive number"),
        (lambda: LearnedVariance([]), "expected one of them above 0"),
        (lambda: LearnedVariance([L1(weight=0.0)]), r"weights \[0.0\]: expected one of them above 0"),
        (
            lambda: make_image_task(objectives=[LogitLaplace()], balancer=LossBalancer()),
            "balancer with an objective that trains parameters",
        ),
    ],
)
def test_wrong_arguments_are_refused(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_examples_of_the_guide_are_built() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/images.md").read_text(), re.DOTALL)
    assert blocks
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objectives", type=list[Objective])
    for block in blocks:
        config = parser.parse_object({"objectives": yaml.safe_load(block)["model"]["init_args"]["objectives"]})
        assert all(part.class_path.startswith("trainers.image.") for part in config.objectives)


# ------------------------------------------------------------------ what is trained


def test_what_objectives_train_is_trained_saved_and_resumed(tmp_path) -> None:
    def task():
        objectives = [LearnedVariance([L1()], weight=0.5), LogitLaplace(weight=0.1)]
        return make_image_task(objectives=objectives, weight_decay=0.1, warmup_steps=0, final_learning_rate_ratio=1.0)

    whole, first, second = task(), task(), task()
    groups = {group["name"]: group for group in whole.parameter_groups()}
    assert len(groups["objectives"]["params"]) == 2 and groups["objectives"]["weight_decay"] == 0
    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in whole.parameters())

    trainer = make_trainer(max_steps=4)
    trainer.fit(whole, datamodule=Images(8))
    assert trainer.logged_metrics["gradient_norm/objectives"] > 0
    half = make_trainer(max_steps=2)
    half.fit(first, datamodule=Images(8))
    half.save_checkpoint(tmp_path / "half.ckpt")
    make_trainer(max_steps=4).fit(second, datamodule=Images(8), ckpt_path=tmp_path / "half.ckpt")
    for name, expected in whole.objectives.named_parameters():
        assert expected != 0 and expected != first.objectives.get_parameter(name)
        assert torch.equal(expected, second.objectives.get_parameter(name))
    for expected, found in zip(whole.tokenizer.parameters(), second.tokenizer.parameters(), strict=True):
        assert torch.equal(expected, found)
