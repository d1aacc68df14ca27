"""Schedules: numbers that are functions of the optimizer step."""

import math
import re

import pytest
import torch
import yaml
from lightning import Callback

from tests.refusals import refused
from tests.trainers.conftest import examples_of
from tests.trainers.tiny import (
    BACKBONE,
    LIGHTNING_REMARKS,
    Images,
    Sounds,
    make_adversary,
    make_audio_task,
    make_codec,
    make_image_task,
    make_tokenizer,
    make_trainer,
    saving,
)
from trainers.core import Constant, Cosine, EntropyAnnealing, EpochDrops, Linear, LossBalancer, StepDrops
from trainers.core.schedules import ScheduledNumbers
from vqkit import BitFlips, EMACodebook, GeometricLengths, Quantizer, RandomRestart, ResidualQuantizer, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d

pytestmark = LIGHTNING_REMARKS


def test_the_curves_are_the_published_ones():
    values = {
        Constant(): lambda step: 2.0,
        Linear(1.0, steps=10, delay=5): lambda step: 2 - min(1, max(0, step - 5) / 10),
        Linear(2.0, start=0.0, steps=4): lambda step: min(2, step / 2),
        Cosine(1.0, steps=40): lambda step: 1.5 + math.cos(math.pi * min(step, 40) / 40) / 2,
        Cosine(1.0): lambda step: 1.5 + math.cos(math.pi * step / 100) / 2,
        StepDrops([10, 30]): lambda step: 2.0 if step < 10 else 0.2 if step < 30 else 0.02,
        EpochDrops([2, 3], epochs=10): lambda step: 2.0 if step < 20 else 0.2 if step < 30 else 0.02,
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


test_what_no_schedule_can_be_is_refused = refused(
    (lambda: Cosine(0.0, steps=0), "steps=0, delay=0: expected at least 1 step or null"),
    (lambda: Linear(0.0, delay=-1), "steps=None, delay=-1"),
    (lambda: StepDrops([]), r"at=\[\]: expected optimizer steps that rise"),
    (lambda: StepDrops([20, 10]), r"at=\[20, 10\]: expected optimizer steps that rise"),
    (lambda: StepDrops([1], factor=0), "factor=0: expected a positive number"),
    (lambda: EpochDrops([5, 2], epochs=9), r"at=\[5, 2\]: expected epochs that rise"),
    (lambda: EpochDrops([2, 9], epochs=9), r"epochs=9: expected those of the whole training, .* at=\[2, 9\]"),
    (lambda: EntropyAnnealing(ratio=-1), "ratio=-1, steps=2000"),
    (lambda: make_image_task(learning_rate_batch_size=0), "learning_rate_batch_size=0: expected samples, 1"),
    (lambda: make_image_task(schedule=Constant(), final_learning_rate_ratio=0.1), "null where there is a schedule"),
)


def test_only_a_schedule_that_ends_with_the_training_needs_its_end():
    endless = {"max_steps": -1, "max_epochs": -1, "max_time": {"seconds": 0}}
    with pytest.raises(ValueError, match=r"a Cosine schedule without steps needs an end: set trainer\.max_steps or"):
        make_trainer(**endless).fit(make_image_task(), datamodule=Images(4))
    make_trainer(**endless).fit(make_image_task(schedule=Constant()), datamodule=Images(4))
    with pytest.raises(ValueError, match="a Linear schedule without steps needs an end"):
        task = make_image_task(schedule=Constant(), schedules={"objectives.l1.weight": Linear(0.0)})
        make_trainer(**endless).fit(task, datamodule=Images(4))


OUTSIDE = {
    "encoder.layers.*.branch.*.p": (
        Linear(1.2, steps=4),
        "Linear gives 1.2 at optimizer step 4, from 0.4: .* a probab",
    ),
    "quantizer.losses.entropy.weight": (Cosine(-0.5), "Cosine gives -0.0.* at optimizer step 2, .* at least 0"),
    "quantizer.losses.entropy.temperature": (Linear(0.0, steps=5), "gives 0 at optimizer step 5, .* above 0; change"),
    "objectives.l2.weight": (EntropyAnnealing(ratio=math.inf), "gives inf at optimizer step 0, .* at least 0"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_numbers_that_their_owners_cannot_use_are_refused_before_the_first_step(name):
    schedule, message = OUTSIDE[name]
    task, data = make("image", {name: schedule})
    with pytest.raises(ValueError, match=re.escape(f"schedules[{name!r}]: ") + f".*{message}"):
        make_trainer(max_steps=6).fit(task, datamodule=data)
    assert task.trainer.global_step == 0


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (BitFlips(), "probability"),
        (GeometricLengths(), "keep"),
        (LossBalancer(), "decay"),
        (EMACodebook(4, 2), "usage_decay"),
        (RandomRestart(), "threshold"),
    ],
)
def test_numbers_that_a_constructor_refuses_above_1_no_schedule_reaches(owner, attribute):
    with pytest.raises(ValueError, match=f"x: Linear gives 1.* at optimizer step .*{getattr(owner, attribute):g}: exp"):
        ScheduledNumbers(Linear(1.2, steps=4), owner, attribute, argument="x").check(last=6)


@pytest.mark.parametrize("end", [6, -1])
def test_learning_rates_below_0_are_refused_before_the_first_step(end):
    task = make_image_task(schedule=Linear(-1e-3, steps=5), learning_rate=1e-3, warmup_steps=0)
    with pytest.raises(
        ValueError, match=r"schedule of learning_rate: Linear gives -.* at optimizer step .*, from 0.001"
    ):
        make_trainer(max_steps=end, max_epochs=-1).fit(task, datamodule=Images(4))


NUMBERS = {
    "image": {
        "quantizer.losses.entropy.weight": EntropyAnnealing(steps=4),
        "quantizer.losses.0.weight": Linear(0.0),
        "encoder.layers.*.branch.*.p": StepDrops([1, 3], factor=0.5),
        "objectives.l1.weight": Cosine(2.0, start=1.0, steps=2),
    },
    "audio": {
        "quantizer.stages.*.losses.commitment.weight": Linear(1.0, steps=3),
        "quantizer.dropout": Linear(0.0, delay=1),
        "objectives.waveform_l1.weight": StepDrops([2]),
        "adversary.weight": Linear(1.0, start=0.0, steps=4),
    },
}


def make(kind, schedules=None):
    if kind == "audio":
        quantizer = ResidualQuantizer(lambda: Quantizer("ema", dim=8, codebook_size=16), 2, dropout=0.5, channel_dim=1)
        return make_audio_task(make_codec(quantizer), adversary=make_adversary(), schedules=NUMBERS[kind]), Sounds(4)
    torch.manual_seed(0)
    encoder = ConvEncoder2d(**BACKBONE, dropout=0.4)
    quantizer = Quantizer("ibq", dim=8, codebook_size=16, channel_dim=1)
    tokenizer = Tokenizer(encoder, quantizer, ConvDecoder2d(**BACKBONE))
    return make_image_task(tokenizer, schedules=schedules or NUMBERS[kind]), Images(4)


class Seen(Callback):
    """Where numbers lie, and what they are in each batch."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.values = []

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.values.append([getattr(owner, name) for owner, name in self.numbers])


def numbers_of(task):
    """The first layer's dropout, and for each other name what it means, found by hand."""
    tokenizer, terms = task.tokenizer, {objective.name: objective for objective in task.objectives}
    if "mel" in terms:
        stages = [(stage.losses[0], "weight") for stage in tokenizer.quantizer.stages]
        others = [(tokenizer.quantizer, "dropout"), (terms["waveform_l1"], "weight"), (task.adversary, "weight")]
        return [*stages, *others]
    dropout = next(layer for layer in tokenizer.encoder.modules() if isinstance(layer, torch.nn.Dropout))
    losses = tokenizer.quantizer.losses
    entropy = next(loss for loss in losses if loss.name == "entropy")
    return [(entropy, "weight"), (losses[0], "weight"), (dropout, "p"), (terms["l1"], "weight")]


EXPECTED = {  # of the steps 0 to 3 of four, from what is configured
    "image": lambda entropy, first: [
        [entropy * (1 + 3 * (1 - step / 4)), first * (1 - step / 4), [0.4, 0.2, 0.2, 0.1][step], [1, 1.5, 2, 2][step]]
        for step in range(4)
    ],
    "audio": lambda commitment, _: [
        [
            *[commitment + (1 - commitment) * step / 3] * 2,
            [0.5, 0.5, 1 / 3, 1 / 6][step],
            [1, 1, 0.1, 0.1][step],
            step / 4,
        ]
        for step in range(4)
    ],
}


@pytest.mark.parametrize(("kind", "accumulate"), [("image", 2), ("audio", 1)])
def test_any_number_follows_the_optimizer_steps(kind, accumulate):
    task, data = make(kind)
    numbers = numbers_of(task)
    configured = [getattr(owner, name) for owner, name in numbers]
    for _ in range(2):  # a second fit begins with what is configured again
        seen = Seen(numbers)
        trainer = make_trainer(max_steps=4, accumulate_grad_batches=accumulate, callbacks=[seen])
        trainer.fit(task, datamodule=data)
        expected = EXPECTED[kind](*configured[:2])
        assert [seen.values[batch] for batch in range(len(seen.values))] == [pytest.approx(row) for row in expected]
    logged = {name.removeprefix("schedule/"): float(value) for name, value in trainer.logged_metrics.items()}
    last = expected[-1][1:] if kind == "audio" else expected[-1]
    assert [logged[name] for name in NUMBERS[kind]] == pytest.approx(last)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_resumed_run_has_the_numbers_of_its_step(kind, tmp_path):
    rows = []
    for path in (None, tmp_path / "two.ckpt"):
        task, data = make(kind)
        seen = Seen(numbers_of(task))
        callbacks = [seen, saving(tmp_path / "two.ckpt", at=2)]
        make_trainer(max_steps=4, callbacks=callbacks).fit(task, datamodule=data, ckpt_path=path)
        rows.append(seen.values)
    assert len(rows[0]) == 4 and rows[1] == rows[0][2:]


test_a_name_that_is_not_there_is_refused_with_those_that_are = refused(
    ("quantizer.losses.entrop.weight", r"quantizer\.losses has no 'entrop'; the numbers there are quantizer"),
    ("quantizer.losses.entropy.wait", r"entropy has no 'wait'; .*losses\.entropy\.weight, .*entropy\.temperature"),
    ("quantizer.method", r"quantizer has no 'method'; the numbers"),
    ("quantiser.dropout", r"the task has no 'quantiser'; .*quantizer\.losses\..*objectives\.l1\.weight"),
    ("encoder.layers.*.nowhere", r"encoder\.layers\.\* has no 'nowhere'; .*encoder\.layers\.\*\.branch\.\*\.p"),
    by=lambda name: make_image_task(
        make_tokenizer(Quantizer("ibq", dim=8, codebook_size=16, channel_dim=1)), schedules={name: Constant()}
    ),
)


def test_examples_of_the_guide_are_read(cli, tmp_path):
    examples = examples_of("runs")
    files = [tmp_path / f"{number}.yaml" for number in range(len(examples))]
    for file, example in zip(files, examples, strict=True):
        file.write_text(example)
    output = cli.done("fit", *(f"--config={file}" for file in files), "--print_config")
    taken = yaml.safe_load(output)["model"]["init_args"]
    asked = {}
    for example in examples:
        asked |= yaml.safe_load(example)["model"]["init_args"]
    assert asked.keys() >= {"freeze", "schedule", "schedules"}
    assert {name: taken[name] for name in asked} == asked
