"""Image tokenizers against discriminators: steps, resumed runs, two processes, and the guide."""

import re

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from tests.trainers.conftest import ROOT, examples_of
from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Images,
    Spy,
    assert_equal,
    assert_two_ranks_are_one,
    fit_on_rank,
    make_image_adversary,
    make_image_task,
    make_tokenizer,
    make_trainer,
    saving,
    state_of,
)
from trainers import callbacks, core, image
from trainers.core import AdaptiveWeight, Adversary, LeCAM
from trainers.image import PatchGAN

pytestmark = LIGHTNING_REMARKS


def make_task(**arguments):
    """With all that can be added; the adversary starts at step 1."""
    adversary = make_image_adversary(**({"start_step": 1} | arguments))
    return make_image_task(make_tokenizer(), adversary=adversary, balancer=AdaptiveWeight(), warmup_steps=2)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "16-true"])
def test_some_steps_train_both_sides(precision):
    task = make_task()
    start = state_of(task)
    trainer = make_trainer(max_steps=4, precision=precision)
    trainer.fit(task, datamodule=Images(4))
    moved = {name for name, value in state_of(task).items() if not torch.equal(value, start[name])}
    kernels = {name for name, parameter in task.named_parameters() if parameter.ndim == 4}
    assert moved >= kernels and any("adversary" in name for name in kernels)
    logged = trainer.logged_metrics
    assert 0 < logged["train/adaptive_weight"] < 1e4
    names = {"adversarial", "discriminator_loss", "logits_real", "lecam", "r1", "consistency"}
    assert {f"train/{name}" for name in names} <= set(logged)
    assert task.adversary.regularizers[0].averages[2] == 1.75  # three steps of decay 0.5
    assert task.adversary.augmentation.calls == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"adversary": Adversary([PatchGAN(num_layers=3, channels=2)], start_step=9)}, "sides of at least 24 pixels"),
        ({"adversary": Adversary([PatchGAN(1, num_layers=1, channels=2)], start_step=9)}, "in_channels=1 of PatchGAN"),
        ({"balancer": AdaptiveWeight(last_layer="output")}, "last_layer=output: expected a layer of ConvDecoder2d"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(arguments, message):
    """And not at step 9, when it is the adversary's turn."""
    trainer = make_trainer(max_steps=1)
    with pytest.raises(ValueError, match=message):
        trainer.fit(make_image_task(**arguments), datamodule=Images(4))
    assert trainer.global_step == 0


def test_discriminators_learn_every_n_steps():
    """The generator has its terms at all steps; weights and moments of discriminators move at the second and fourth."""
    seen, averages = [], []

    def look(trainer, module, outputs):
        (optimizer,) = trainer.optimizers
        kernel = module.adversary.discriminators[0].to_logits.weight
        steps = optimizer.state.get(kernel, {}).get("step", torch.zeros(()))
        seen.append((kernel.detach().clone(), int(steps), outputs["terms"]))
        averages.append(float(module.adversary.regularizers[0].averages[2]))

    task = make_task(every_n_steps=2, weight_decay=0.1)
    make_trainer(max_steps=4, callbacks=[Spy(look)]).fit(task, datamodule=Images(4))
    assert [steps for _, steps, _ in seen] == [0, 1, 1, 2]
    assert averages == [0, 1, 1, 1.5]
    kernels = [kernel for kernel, _, _ in seen]
    assert torch.equal(kernels[1], kernels[2]) and not torch.equal(kernels[2], kernels[3])
    assert ["adversarial" in terms for *_, terms in seen] == [False, True, True, True]
    assert ["discriminator_loss" in terms for *_, terms in seen] == [False, True, False, True]


def test_weight_decay_of_the_discriminators_is_their_own():
    (group,) = [g for g in make_task(weight_decay=0.2).parameter_groups() if g["name"] == "discriminators"]
    assert group["weight_decay"] == 0.2


def test_accumulated_batches_move_the_averages_once():
    ends = []
    for batch_size, accumulate in ((8, 1), (2, 4)):
        regularizer = LeCAM(weight=0.1, decay=0.5)
        task = make_task(augmentation=None, regularizers=[regularizer], start_step=0)
        make_trainer(max_steps=1, accumulate_grad_batches=accumulate).fit(task, datamodule=Images(batch_size))
        ends.append(regularizer.averages)
    torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-6)
    assert ends[0][2] == 1 and ends[0][:2].all()


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("at", [1, 2])
def test_resumed_equals_uninterrupted(tmp_path, at):
    def run(*callbacks, **more):
        task, data = make_task(), Images(4)
        data.images = data.images[:4].repeat(4, 1, 1, 1)  # the place in the data is not the matter
        make_trainer(max_steps=4, callbacks=[*callbacks]).fit(task, datamodule=data, weights_only=True, **more)
        return task.state_dict()

    whole = run(saving(tmp_path / "some.ckpt", at=at))
    assert_equal(run(ckpt_path=tmp_path / "some.ckpt"), whole)


def four_steps(rank, world):
    torch.manual_seed(0)
    task = make_task()
    task.tokenizer.initialize = lambda *_, **__: None  # k-means takes its samples in another order
    return fit_on_rank(rank, world, task, Images(8), max_steps=4)


def test_two_processes_are_one_with_the_joined_batch(rank_pair):
    assert_two_ranks_are_one(four_steps, rank_pair, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("block", examples_of("image_adversary"))
def test_the_guide_builds(block):
    block = block.replace("HubWeights", "RandomWeights")  # nothing is downloaded
    arguments = yaml.safe_load(block)["model"]["init_args"]
    parser = ArgumentParser()
    parser.add_argument("--adversary", type=Adversary | None, default=None)
    parser.add_argument("--balancer", type=AdaptiveWeight | None, default=None)
    built = parser.instantiate(parser.parse_object(arguments))
    output = built.adversary(*torch.rand(2, 1, 3, 64, 64))
    assert output.discriminator.isfinite()


def test_every_switch_of_other_trainers_has_its_part_here() -> None:
    page = (ROOT / "docs/image_adversary.md").read_text()
    rows = page.partition("## Switches elsewhere")[2].splitlines()
    here = "".join(row.split("|")[4] for row in rows if row.count("|") == 5)
    names = set(re.findall(r"`([A-Z]\w+)`", here))
    assert {"AdaptiveWeight", "EpochDrops", "WeightEMA", "Vanilla"} <= names
    for name in names:
        assert any(hasattr(module, name) for module in (core, image, callbacks)), name
