"""What a frozen network says of a picture, predicted from its codes."""

from functools import partial

import pytest
import torch
from torch import nn

from tests.conversion.fqgan import FQGANDual
from tests.refusals import refused
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_tokenizer, make_trainer
from trainers.core import LossBalancer
from trainers.image import L2, BilinearResize, FeaturePrediction, FrozenNetwork, RandomWeights
from vqkit import GroupedQuantizer, Quantizer
from vqkit.conversion.fqgan import transformer_parts
from vqkit.saving.weights import no_download

pytestmark = LIGHTNING_REMARKS
WIDTH = 16


class Tokens(nn.Module):
    """Two tokens of an image, that of the whole image first."""

    def forward(self, x):
        return torch.stack([x, -x], dim=1)


def make_network(*last):
    def build(state):
        return nn.Sequential(nn.Conv2d(3, WIDTH, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *last)

    options = {"weights": RandomWeights(), "download": no_download, "resize": BilinearResize(8)}
    return FrozenNetwork(build, **options)


def make_prediction(network=None, **arguments):
    torch.manual_seed(0)
    options = {"channels": (4, 8), "grid_size": (4, 4), "depth": 3, "num_heads": 8}
    return FeaturePrediction(network or make_network(), **options | arguments)


def published(objective: FeaturePrediction, vectors: torch.Tensor) -> torch.Tensor:
    """The prediction by FQGAN's equations, whose weights the objective takes over."""
    model = FQGANDual()
    predicted = model.predict("head", vectors, WIDTH)[:, 0]
    theirs = {name.removeprefix("head."): value.double() for name, value in model.state.items()}
    ours = {f"enter.{number}.{kind}": theirs[f"upscale.{number}.{kind}"] for number in (0, 2) for kind in KINDS}
    ours["token"] = theirs["class_embedding"][0] + theirs["positional_embedding"][0]
    ours["positions.table"] = theirs["positional_embedding"][1:].unflatten(0, (4, 4))
    parts = transformer_parts(3).items()
    ours |= {f"blocks.{own}{kind}": theirs[other + kind] for own, other in parts for kind in KINDS}
    objective.load_state_dict(ours)
    return predicted


KINDS = ("weight", "bias")


def test_it_is_the_loss_of_the_release() -> None:
    objective = make_prediction().double()
    images, quantized = torch.rand(5, 3, 16, 16).double() * 2 - 1, torch.randn(5, 10, 4, 4).double()
    predicted = published(objective, quantized[:, 4:8])
    features = objective.features(images)
    similar = torch.exp(
        torch.einsum("id,jd->ij", *(x / x.square().sum(1, keepdim=True).sqrt() for x in (predicted, features)))
    )
    expected = -(similar.diag() / similar.sum(1)).log().mean()
    torch.testing.assert_close(objective(images, quantized), expected, rtol=0, atol=1e-12)


def test_features_are_told_apart_in_float32_under_autocast() -> None:
    """The transformer may run in 16 bits; what it predicts is compared in 32, to a few of their roundings."""
    objective = make_prediction()
    images, quantized = torch.rand(6, 3, 16, 16) * 2 - 1, torch.randn(6, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, predicted = objective(images, quantized), objective.predict(quantized).double()
    units = [nn.functional.normalize(found, dim=-1) for found in (predicted, objective.features(images).double())]
    expected = nn.functional.cross_entropy(units[0] @ units[1].T, torch.arange(6))
    torch.testing.assert_close(loss.double(), expected, rtol=0, atol=32 * 2**-24)


def test_the_first_token_is_the_feature() -> None:
    objective, plain = make_prediction(make_network(Tokens())), make_prediction()
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(objective.features(images), plain.features(images))


def test_only_its_own_channels_are_trained_by_it_and_nothing_of_the_network() -> None:
    objective = make_prediction()
    quantized = torch.randn(3, 10, 4, 4, requires_grad=True)
    objective(torch.rand(3, 3, 16, 16), quantized).backward()
    assert quantized.grad[:, 4:8].any() and not quantized.grad[:, :4].any() and not quantized.grad[:, 8:].any()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert not any("network" in name for name in objective.state_dict())


def grouped():
    return GroupedQuantizer(partial(Quantizer, "vq", dim=4, codebook_size=16, normalize=True), 2, channel_dim=1)


def test_it_is_trained_with_the_tokenizer_and_weighs_in_the_total() -> None:
    task = make_image_task(make_tokenizer(grouped()), objectives=[L2(), make_prediction(weight=0.5)], warmup_steps=0)
    before = {name: value.clone() for name, value in task.objectives.state_dict().items()}
    trainer = make_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(task, datamodule=Images(4))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    terms = [logged[f"train/quantizer/{name}"] for name in ("codebook", "commitment")]
    total = logged["train/l2"] + 0.5 * logged["train/prediction"] + terms[0] + 0.25 * terms[1]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)
    assert logged["gradient_norm/objectives"] > 0
    after = task.objectives.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "bias" not in name)


def test_objectives_of_vectors_alone_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights of objectives {}: expected one of them above 0"):
        make_image_task(objectives=[make_prediction()])


def test_beside_a_balancer_of_pictures_vectors_and_the_head_have_their_gradient() -> None:
    task = make_image_task(objectives=[L2(), make_prediction()], balancer=LossBalancer(), learning_rate=1e-3)
    before = {name: value.clone() for name, value in task.objectives.state_dict().items()}
    make_trainer(max_steps=1, limit_val_batches=0).fit(task, datamodule=Images(4))
    after = task.objectives.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before if "bias" not in name)


test_what_does_not_fit_is_refused = refused(
    ({"channels": (8, 8)}, r"channels=\(8, 8\): expected the first one, and the one behind the last"),
    ({"num_heads": 3}, "num_heads=3: expected a divisor of the width 16"),
    ({"weight": -1.0}, "weight=-1.0 of the objective 'prediction': expected a number of at least 0"),
    ({"network": make_network(nn.Unflatten(1, (4, 2, 2)))}, r"gives \[\(1, 4, 2, 2\)\]: expected \(B, F\)"),
    by=lambda arguments: make_prediction(**arguments),
)


test_vectors_that_do_not_fit_are_refused = refused(
    ((2, 7, 4, 4), r"\(2, 7, 4, 4\): expected \(B, D, h, w\) with channels 4 to 7"),
    ((2, 8, 4, 5), "a grid of 4 x 5"),
    by=lambda shape: make_prediction()(torch.zeros(2, 3, 16, 16), torch.zeros(shape)),
)
