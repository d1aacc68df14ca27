"""Image tokenizers against discriminators: steps, resumed runs, two processes, and the guide."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from tests.trainers.test_audio_task import Bitwise, Started
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_tokenizer, make_trainer
from trainers.core import AdaptiveWeight, Adversary, UnclippedHinge
from trainers.image import GroupNorm, PatchGAN

pytestmark = LIGHTNING_REMARKS

GUIDE = (Path(__file__).parents[2] / "docs/image_adversary.md").read_text()


def make_adversary(**arguments):
    torch.manual_seed(1)
    discriminator = PatchGAN(num_layers=1, channels=4, norm=GroupNorm(2))
    options = {"loss": UnclippedHinge(), "feature_matching": 0.0, "betas": (0.5, 0.9), "weight": 0.8}
    return Adversary([discriminator], **(options | arguments))


def make_task(**arguments):
    adversary = make_adversary(start_step=1, **arguments)
    return make_image_task(make_tokenizer(), adversary=adversary, balancer=AdaptiveWeight(), warmup_steps=2)


def state_of(module):
    return {name: value.clone() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}


def test_some_steps_train_both_sides():
    task = make_task()
    start = state_of(task)
    trainer = make_trainer(max_steps=4)
    trainer.fit(task, datamodule=Images(4))
    moved = {name for name, value in state_of(task).items() if not torch.equal(value, start[name])}
    kernels = {name for name, parameter in task.named_parameters() if parameter.ndim == 4}
    assert moved >= kernels and any("adversary" in name for name in kernels)
    logged = trainer.logged_metrics
    assert 0 < logged["train/adaptive_weight"] < 1e4
    assert {"train/adversarial", "train/discriminator_loss", "train/logits_real"} <= set(logged)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("at", [1, 2])
def test_resumed_equals_uninterrupted(tmp_path, at):
    def run(*callbacks, **more):
        task, data = make_task(), Images(4)
        data.images = data.images[:4].repeat(4, 1, 1, 1)  # the place in the data is not the matter
        make_trainer(max_steps=4, callbacks=[*callbacks]).fit(task, datamodule=data, weights_only=True, **more)
        return task.state_dict()

    whole = run(Bitwise(tmp_path / "some.ckpt", at))
    resumed = run(ckpt_path=tmp_path / "some.ckpt")
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]) if isinstance(value, torch.Tensor) else value == resumed[name], name


def make_pair(rank, world):
    """Four steps in float64, on this rank's share of each batch of 8."""
    torch.manual_seed(0)
    task = make_task()
    task.tokenizer.initialize = lambda *_, **__: None  # k-means takes its samples in another order
    data = Images(8 // world)
    if world > 1:
        data.images = data.images.unflatten(0, (2, world, -1))[:, rank].flatten(0, 1)
    devices = {"devices": world, "strategy": "ddp", "plugins": [Started(rank, world)]} if world > 1 else {}
    trainer = make_trainer(max_steps=4, precision="64-true", use_distributed_sampler=False, **devices)
    trainer.fit(task, datamodule=data)
    return state_of(task)


def test_two_processes_are_one_with_the_joined_batch(rank_pair):
    alone = make_pair(0, 1)
    first, second = rank_pair(make_pair, 2)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        if value.is_floating_point():
            torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL))
def test_the_guide_builds(block):
    arguments = yaml.safe_load(block)["model"]["init_args"]
    parser = ArgumentParser()
    parser.add_argument("--adversary", type=Adversary | None, default=None)
    parser.add_argument("--balancer", type=AdaptiveWeight | None, default=None)
    built = parser.instantiate(parser.parse_object(arguments))
    output = built.adversary(torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64))
    assert output.discriminator.isfinite()
