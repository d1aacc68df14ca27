"""Objectives of images: their equations, their gradients, and the parameters that some of them train."""

import hashlib
import importlib.util
import math
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.distributions import Laplace, SigmoidTransform, TransformedDistribution

from tests.refusals import refused
from tests.trainers.conftest import examples_of
from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Images,
    assert_equal,
    make_frozen,
    make_image_task,
    make_trainer,
    saving,
    state_of,
)
from trainers.callbacks import WeightEMA
from trainers.core import LossBalancer, Objective
from trainers.core.checkpoints import read_checkpoint
from trainers.image import (
    L1,
    L2,
    LPIPS,
    VGG16LPIPS,
    VGG16STLPIPS,
    AlexNetLPIPS,
    AlexNetSTLPIPS,
    FeatureDistance,
    GramDistance,
    LearnedVariance,
    LogitLaplace,
    PackagedWeights,
    RandomWeights,
    WeightsFile,
)
from vqkit.saving.weights import read_state

pytestmark = LIGHTNING_REMARKS


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and noisy copies, some of whose values lie outside."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator) * 2 - 1
    return images, images + 0.1 * torch.randn(shape, generator=generator)


def heads(folder: Path, *widths: int) -> WeightsFile:
    generator = torch.Generator().manual_seed(2)
    state = {f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator) for n, c in enumerate(widths)}
    torch.save(state, folder / "heads.pth")
    return WeightsFile(str(folder / "heads.pth"))


def everything() -> list[Objective]:
    with TemporaryDirectory() as folder:
        lpips = LPIPS(make_frozen(layers=["1", "2"]), heads(Path(folder), 8, 8))
    return [
        L1(),
        L2(),
        LogitLaplace(),
        LearnedVariance([L1(), L2(weight=2.0)]),
        FeatureDistance(make_frozen()),
        FeatureDistance(make_frozen(layers=["1", "2"]), exponent=1.0, normalized=True),
        GramDistance(make_frozen(layers=["1", "2"])),
        lpips,
    ]


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


@pytest.mark.parametrize(("exponent", "normalized"), [(1.0, False), (2.0, False), (2.0, True)])
def test_feature_distance_is_the_mean_over_layers(exponent: float, normalized: bool) -> None:
    reference, reconstruction = pair(2, 3, 16, 16)
    network = make_frozen(layers=["0", "2"])
    expected = []
    for one, other in zip(network(reference), network(reconstruction), strict=True):
        if normalized:
            one, other = F.normalize(one), F.normalize(other)
        expected.append(F.l1_loss(one, other) if exponent == 1 else F.mse_loss(one, other))
    found = FeatureDistance(network, exponent=exponent, normalized=normalized)(reference, reconstruction)
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2)


def test_feature_distance_of_logits() -> None:
    reference, reconstruction = pair(2, 3, 20, 20)
    network = make_frozen()
    expected = F.mse_loss(network(reference)[0], network(reconstruction)[0])
    torch.testing.assert_close(FeatureDistance(network)(reference, reconstruction), expected)


def test_gram_distance_is_the_published_equation() -> None:
    reference, reconstruction = pair(2, 3, 16, 16)
    network = make_frozen(layers=["0", "2"])
    expected = 0.0
    for one, other in zip(network(reference), network(reconstruction), strict=True):
        grams = [torch.einsum("bchw,bdhw->bcd", f, f) / (8 * 16 * 16) for f in (one, other)]
        expected += (grams[0] - grams[1]).square().sum() / 2 / 2  # images, layers
    torch.testing.assert_close(GramDistance(network)(reference, reconstruction), expected)
    moved = [torch.roll(f, 3, dims=2) for f in network(reference)]
    objective = GramDistance(lambda images: moved if images is reconstruction else network(images))
    assert objective(reference, reconstruction) < 1e-9


def test_channels_of_tokens() -> None:
    """A transformer gives (B, N, C): the same features in another order have the same distances."""
    reference, reconstruction = pair(2, 3, 16, 16)
    network = make_frozen(layers=["2"])

    def tokens(images: Tensor) -> list[Tensor]:
        return [features.flatten(2).mT for features in network(images)]

    for build in (lambda n, **axis: FeatureDistance(n, normalized=True, **axis), GramDistance):
        expected = build(network)(reference, reconstruction)
        torch.testing.assert_close(build(tokens, channel_dim=-1)(reference, reconstruction), expected)


def test_lpips_is_the_published_equation(tmp_path) -> None:
    reference, reconstruction = pair(3, 3, 16, 16)
    network, weights = make_frozen(layers=["1", "2"]), heads(tmp_path, 8, 8)
    objective = LPIPS(network, weights)
    expected = torch.zeros(3)
    for one, other, head in zip(
        network(reference), network(reconstruction), read_state(weights.path).values(), strict=True
    ):
        expected += F.conv2d((F.normalize(one) - F.normalize(other)).square(), head).mean((1, 2, 3))
    torch.testing.assert_close(objective.of_each(reference, reconstruction), expected)
    torch.testing.assert_close(objective(reference, reconstruction), expected.mean())
    assert objective.heads_sha256 == hashlib.sha256(weights.path.read_bytes()).hexdigest()


def test_features_of_length_0_have_a_finite_gradient() -> None:
    """The root of a sum of squares has an infinite slope at 0, of which 0 times is NaN."""
    network = make_frozen(layers=["0"])
    with torch.no_grad():
        for parameter in network._held[0].network[0].parameters():
            parameter.zero_()
    reference, reconstruction = pair(1, 3, 16, 16)
    reconstruction.requires_grad_()
    FeatureDistance(network, normalized=True)(reference, reconstruction).backward()
    assert not reconstruction.grad.any()  # NaN would count


@pytest.mark.parametrize(("name", "build"), [("alex", AlexNetLPIPS), ("vgg", VGG16LPIPS)])
@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
@pytest.mark.slow
def test_lpips_is_that_of_its_package(name: str, build) -> None:
    """On one backbone with random weights; the heads are the fitted ones on both sides."""
    lpips = pytest.importorskip("lpips", reason='pip install -e ".[perceptual]"')
    torch.manual_seed(3)
    theirs = lpips.LPIPS(net=name, pnet_rand=True, verbose=False)
    ours = build(backbone=RandomWeights(3))
    assert (
        read_state(ours.heads_file).keys()
        == read_state(Path(lpips.__file__).parent / f"weights/v0.1/{name}.pth").keys()
    )
    images = [pair(2, 3, 64, 64)[0], *(x.requires_grad_() for x in pair(2, 3, 64, 64)[1:] * 2)]
    value, expected = ours(images[0], images[1]), theirs(images[0], images[2]).mean()
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    gradients = [torch.autograd.grad(value, images[1])[0], torch.autograd.grad(expected, images[1])[0]]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[1].abs().max()))


@pytest.mark.parametrize(("name", "build"), [("alex", AlexNetSTLPIPS), ("vgg", VGG16STLPIPS)])
@pytest.mark.slow
def test_st_lpips_is_that_of_its_package(name: str, build, monkeypatch) -> None:
    reason = 'pip install -e ".[perceptual]"'
    if importlib.util.find_spec("stlpips_pytorch") is None:
        pytest.skip(reason)
    for module in ("IPython", "torchsummary"):  # which it imports, and does not use for this
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
        vars(sys.modules[module]).update(embed=None, summary=None)
    from stlpips_pytorch import stlpips

    theirs = stlpips.LPIPS(net=name, variant="shift_tolerant", verbose=False)
    reference, reconstruction = pair(2, 3, 64, 64)
    found = build().of_each(reference, reconstruction)
    torch.testing.assert_close(found, theirs(reference, reconstruction.clone()).flatten().detach(), rtol=1e-4, atol=0)


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


test_wrong_arguments_are_refused = refused(
    (lambda: L1(weight=-1.0), "weight=-1.0"),
    (lambda: LogitLaplace(epsilon=0.5), "epsilon=0.5: expected a number in"),
    (lambda: LogitLaplace(initial_scale=0.0), "initial_scale=0.0: expected a positive number"),
    (lambda: LearnedVariance([]), "expected one of them above 0"),
    (lambda: FeatureDistance(make_frozen(), exponent=0.5), "exponent=0.5: expected a number of at least 1"),
    (lambda: GramDistance(make_frozen())(*pair(1, 3, 16, 16)), "name layers of the network before its pooling"),
    (lambda: LPIPS(make_frozen(layers=["1"]), RandomWeights()), "heads: expected a file"),
    (lambda: LPIPS(make_frozen(layers=["1"]), WeightsFile("nowhere.pth")), "path='nowhere.pth' of weights"),
    (
        lambda: LPIPS(
            make_frozen(layers=["1"]), PackagedWeights("torchmetrics", "functional/image/lpips_models/alex.pth")
        ),
        r"alex\.pth: has heads for 5 layers: expected 1",
    ),
    (lambda: LearnedVariance([L1(weight=0.0)]), r"weights \[0.0\]: expected one of them above 0"),
    (
        lambda: make_image_task(objectives=[LogitLaplace()], balancer=LossBalancer()),
        "balancer with an objective that trains parameters",
    ),
)


def test_the_examples_of_the_guide_are_built() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--objectives", type=list[Objective])
    for block in examples_of("image_objectives"):
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
    assert second.weights["checkpoint"] is None  # what is measured now are no longer those of half.ckpt
    for name, expected in whole.objectives.named_parameters():
        assert expected != 0 and expected != first.objectives.get_parameter(name)
        assert torch.equal(expected, second.objectives.get_parameter(name))
    assert_equal(second.tokenizer.state_dict(), whole.tokenizer.state_dict())


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_a_network_is_neither_trained_nor_saved(tmp_path, precision: str) -> None:
    def task():
        objectives = [L2(), FeatureDistance(make_frozen(layers=["1", "2"]), weight=0.1)]
        return make_image_task(objectives=objectives, warmup_steps=0, final_learning_rate_ratio=1.0)

    def fit(task, *callbacks, **arguments) -> None:
        trainer = make_trainer(max_steps=4, precision=precision, callbacks=[WeightEMA(0.9), *callbacks])
        trainer.fit(task, datamodule=Images(8), **arguments)

    whole, second = task(), task()
    alone = make_image_task(objectives=[L2()])
    assert whole.state_dict().keys() == alone.state_dict().keys()
    grouped = sum(parameter.numel() for group in whole.parameter_groups() for parameter in group["params"])
    assert grouped == sum(parameter.numel() for parameter in alone.tokenizer.parameters())
    network = whole.terms[1].network
    before = state_of(network._held[0])
    fit(whole, saving(tmp_path / "half.ckpt", at=2))
    assert_equal(network._held[0].state_dict(), before)
    assert not [name for name in read_checkpoint(tmp_path / "half.ckpt")["state_dict"] if "objectives" in name]
    fit(second, ckpt_path=tmp_path / "half.ckpt")
    assert_equal(second.tokenizer.state_dict(), whole.tokenizer.state_dict())
