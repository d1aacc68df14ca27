"""Schedules: numbers that are functions of the optimizer step."""

import math
import re

import pytest
import yaml

from tests.trainers.conftest import ROOT
from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Images,
    make_adversary,
    make_audio_task,
    make_image_task,
    make_trainer,
)
from trainers.core import Constant, Cosine, EntropyAnnealing, Linear, StepDrops

pytestmark = LIGHTNING_REMARKS


def test_the_curves_are_the_published_ones():
    values = {
        Constant(): lambda step: 2.0,
        Linear(1.0, steps=10, delay=5): lambda step: 2 - min(1, max(0, step - 5) / 10),
        Linear(2.0, start=0.0, steps=4): lambda step: min(2, step / 2),
        Cosine(1.0, steps=40): lambda step: 1.5 + math.cos(math.pi * min(step, 40) / 40) / 2,
        Cosine(1.0): lambda step: 1.5 + math.cos(math.pi * step / 100) / 2,
        StepDrops([10, 30]): lambda step: 2.0 if step < 10 else 0.2 if step < 30 else 0.02,
        EntropyAnnealing(steps=20): lambda step: 2 * (1 + 3 * max(0, 1 - step / 20)),
    }
    for schedule, expected in values.items():
        for step in (0, 4, 5, 9, 10, 11, 19, 20, 30, 40, 99):
            assert schedule.value(step, configured=2.0, last=100) == pytest.approx(expected(step), rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        (None, [1, 0.05 + 0.95 * 0.75, 0.05 + 0.95 * 0.25]),  # half a cosine over the three steps behind the warm-up
        (Constant(), [1, 1, 1]),
        (StepDrops([3, 4], factor=0.5), [1, 0.5, 0.25]),
        (Cosine(0.0, steps=2), [1, 0.5, 0]),
    ],
    ids=["default", "constant", "drops", "cosine"],
)
def test_learning_rates_warm_up_and_follow_their_schedule(schedule, after):
    """Those of the discriminators lie on the same curve."""
    task = make_image_task(schedule=schedule, warmup_steps=2, learning_rate=1e-3)
    factors = [task.learning_rate_factor(step, 5) for step in range(5)]
    assert factors == pytest.approx([0.5, 1, *after], rel=1e-12)
    rates = []
    task.on_train_batch_end = lambda *_: rates.append(task.trainer.optimizers[0].param_groups[0]["lr"])
    make_trainer(max_steps=4).fit(task, datamodule=Images(4))
    assert rates == pytest.approx([1e-3 * task.learning_rate_factor(step, 4) for step in range(1, 5)], rel=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learning_rates_grow_with_the_batch_where_they_hold_for_another(accumulate):
    """taming's learning rate: accumulated batches x devices x samples x base_learning_rate."""
    task = make_image_task(learning_rate=4.5e-6, learning_rate_batch_size=1, schedule=Constant(), warmup_steps=0)
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=accumulate)
    trainer.fit(task, datamodule=Images(4))
    rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates == pytest.approx([accumulate * 4 * 4.5e-6] * len(rates), rel=1e-12)
    adversary = make_adversary(learning_rate=1e-4)
    codec = make_audio_task(adversary=adversary, learning_rate=2e-4, learning_rate_batch_size=8)
    codec.trainer = trainer
    groups = {group["name"]: group["initial_lr"] for group in codec.configure_optimizers()["optimizer"].param_groups}
    share = accumulate * 4 / 8
    assert groups["discriminators"] == pytest.approx(share * 1e-4) and groups["weights"] == pytest.approx(share * 2e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(0.0, steps=0), "steps=0, delay=0: expected at least 1 step or null"),
        (lambda: Linear(0.0, delay=-1), "steps=None, delay=-1"),
        (lambda: StepDrops([]), r"at=\[\]: expected optimizer steps that rise"),
        (lambda: StepDrops([20, 10]), r"at=\[20, 10\]: expected optimizer steps that rise"),
        (lambda: StepDrops([1], factor=0), "factor=0: expected a positive number"),
        (lambda: EntropyAnnealing(ratio=-1), "ratio=-1, steps=2000"),
        (
            lambda: make_image_task(learning_rate_batch_size=0),
            "learning_rate_batch_size=0: expected samples, 1",
        ),
        (lambda: make_image_task(schedule=Constant(), final_learning_rate_ratio=0.1), "null where there is a schedule"),
    ],
)
def test_what_no_schedule_can_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_only_a_schedule_that_ends_with_the_training_needs_its_end():
    endless = {"max_steps": -1, "max_epochs": -1, "max_time": {"seconds": 0}}
    with pytest.raises(ValueError, match=r"a Cosine schedule without steps needs an end: set trainer\.max_steps or"):
        make_trainer(**endless).fit(make_image_task(), datamodule=Images(4))
    make_trainer(**endless).fit(make_image_task(schedule=Constant()), datamodule=Images(4))


def examples():
    """The examples of the guide, in YAML."""
    return re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/runs.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
def test_examples_of_the_guide_are_read(cli, tmp_path, number):
    asked = yaml.safe_load(examples()[number])["model"]["init_args"]
    (tmp_path / "example.yaml").write_text(examples()[number])
    code, output, errors = cli("fit", f"--config={tmp_path / 'example.yaml'}", "--print_config")
    assert code == 0, errors
    taken = yaml.safe_load(output)["model"]["init_args"]
    assert taken | asked == taken
