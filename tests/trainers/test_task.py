"""The training step: one forward, what is summed is what is logged, and the optimizer boundary."""

import math

import pytest
import torch

from tests.refusals import refused
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_tokenizer, make_trainer
from trainers.image import L1, L2
from vqkit import FSQ, Commitment, Quantizer, ResidualQuantizer, RotationTrick

pytestmark = LIGHTNING_REMARKS


def test_what_is_summed_is_what_is_logged(monkeypatch):
    task = make_image_task(
        make_tokenizer(Quantizer("vq", dim=8, codebook_size=16, channel_dim=1)),
        objectives=[L1(weight=0.5), L2(weight=2.0)],
    )
    monkeypatch.setattr(type(task), "logs_this_step", False)
    logged, forwards = {}, []
    monkeypatch.setattr(task, "log", lambda name, value, **_: logged.update({name: float(value)}))
    monkeypatch.setattr(task, "log_dict", lambda values, **_: logged.update({k: float(v) for k, v in values.items()}))
    task.tokenizer.register_forward_hook(lambda *_: forwards.append(1))
    images = Images(4).images
    step = task.training_step({"image": images}, 0)
    assert len(forwards) == 1
    assert set(step["terms"]) == {"l1", "l2", "quantizer/commitment", "quantizer/codebook"}
    for name, term in step["terms"].items():
        assert logged[f"train/{name}"] == float(term.detach())
    weights = {"l1": 0.5, "l2": 2.0, "quantizer/commitment": 0.25, "quantizer/codebook": 1.0}
    expected = sum(weights[name] * float(term.detach()) for name, term in step["terms"].items())
    assert float(step["loss"].detach()) == pytest.approx(expected, rel=1e-6)
    assert logged["train/loss"] == float(step["loss"].detach())
    assert float(step["terms"]["l1"].detach()) == pytest.approx(
        float((step["reconstruction"] - images).abs().mean().detach()), rel=1e-6
    )


@pytest.mark.parametrize(
    ("quantizer", "codebooks"),
    [
        (Quantizer("vq", dim=8, codebook_size=16, channel_dim=1), 1),
        (Quantizer("simvq", dim=8, codebook_size=16, channel_dim=1), 2),
        (Quantizer("ema", dim=8, codebook_size=16, channel_dim=1), 0),
        (FSQ([5, 5], dim=8, channel_dim=1), 0),
        (ResidualQuantizer(lambda: Quantizer("vq", dim=8, codebook_size=16), 3, channel_dim=1), 3),
    ],
    ids=["vq", "simvq", "ema", "fsq", "residual"],
)
def test_codebooks_have_no_weight_decay(quantizer, codebooks):
    task = make_image_task(make_tokenizer(quantizer), weight_decay=0.1)
    groups = {group["name"]: group for group in task.parameter_groups()}
    assert len(groups.get("codebooks", {"params": []})["params"]) == codebooks
    assert {name: group["weight_decay"] for name, group in groups.items() if name != "codebooks"} == {
        "weights": 0.1,
        "biases and norms": 0.0,
    }
    assert all(parameter.ndim > 1 for parameter in groups["weights"]["params"])
    assert all(parameter.ndim <= 1 for parameter in groups["biases and norms"]["params"])
    if codebooks:
        assert groups["codebooks"]["weight_decay"] == 0.0
    ids = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in task.parameters())


def test_schedule_steps_with_the_optimizer():
    task = make_image_task(warmup_steps=2, final_learning_rate_ratio=0.5)
    trainer = make_trainer(max_steps=4, accumulate_grad_batches=2)
    trainer.fit(task, datamodule=Images(4))
    assert trainer.global_step == 4
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * task.learning_rate_factor(4, 4))


def test_statistics_are_folded_before_anything_is_saved():
    task = make_image_task()
    make_trainer(max_steps=1).fit(task, datamodule=Images(4))
    assert task.tokenizer.quantizer.codebook.pending_counts.sum() == 0


def test_the_quantizer_starts_from_data_but_not_when_resuming(tmp_path):
    task = make_image_task()
    trainer = make_trainer(max_steps=1)
    trainer.fit(task, datamodule=Images(4))
    expected = make_tokenizer()
    expected.initialize(Images(4).initialization_dataloader(), samples=256)
    moved = (task.tokenizer.quantizer.codebook.vectors - expected.quantizer.codebook.vectors).norm(dim=1)
    assert moved.max() < expected.quantizer.codebook.vectors.norm(dim=1).mean()
    trainer.save_checkpoint(tmp_path / "one.ckpt")

    resumed = make_image_task()
    called = []
    resumed.tokenizer.initialize = lambda *_, **__: called.append(1)
    make_trainer(max_steps=1).fit(resumed, datamodule=Images(4), ckpt_path=tmp_path / "one.ckpt")
    assert not called
    torch.testing.assert_close(
        resumed.tokenizer.quantizer.codebook.vectors, task.tokenizer.quantizer.codebook.vectors, rtol=0, atol=0
    )


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_a_checkpoint_of_other_parts_is_refused_where_its_weights_fit(tmp_path):
    """Rotation trick and straight-through have no weights; another weight of a loss is another number alone."""

    def task_with(**parts):
        return make_image_task(make_tokenizer(Quantizer("ema", dim=8, codebook_size=16, channel_dim=1, **parts)))

    path = tmp_path / "one.ckpt"
    trainer = make_trainer(max_steps=1)
    trainer.fit(task_with(estimator=RotationTrick(), losses=[Commitment(0.25)]), datamodule=Images(4))
    trainer.save_checkpoint(path)
    resumed = task_with(estimator=RotationTrick(), losses=[Commitment(0.5)])
    make_trainer(max_steps=2).fit(resumed, datamodule=Images(4), ckpt_path=path)
    message = r"one\.ckpt: holds another model .*\.estimator is vqkit\.RotationTrick, not None"
    for run in (make_trainer(max_steps=2).fit, make_trainer().test):
        with pytest.raises(ValueError, match=message):
            run(task_with(losses=[Commitment(0.25)]), datamodule=Images(4), ckpt_path=path)


def test_gradient_norms_are_logged():
    task = make_image_task()
    trainer = make_trainer(max_steps=1)
    trainer.fit(task, datamodule=Images(4))
    norms = {name: float(value) for name, value in trainer.logged_metrics.items() if name.startswith("gradient_norm/")}
    parts = [norms[f"gradient_norm/{name}"] for name in ("encoder", "quantizer", "decoder")]
    assert norms["gradient_norm/total"] == pytest.approx(math.hypot(*parts), rel=1e-5)
    assert parts[0] > 0
    assert parts[2] > 0


def test_random_state_is_continued():
    checkpoint, task = {}, make_image_task()
    task.on_save_checkpoint(checkpoint)
    expected = torch.rand(3)
    torch.manual_seed(99)
    resumed = make_image_task()
    resumed.trainer = make_trainer()
    resumed.on_load_checkpoint(checkpoint)
    resumed.on_train_start()
    assert torch.equal(torch.rand(3), expected)


test_wrong_arguments_are_refused = refused(
    ({"learning_rate": 0.0}, "learning_rate=0.0: expected a positive number"),
    ({"final_learning_rate_ratio": 1.5}, "final_learning_rate_ratio=1.5"),
    ({"warmup_steps": -1}, "warmup_steps=-1"),
    ({"objectives": [L1(weight=0.0), L2(weight=0.0)]}, "one of them above 0"),
    ({"objectives": [L1(), L1()]}, "l1"),
    by=lambda arguments: make_image_task(**arguments),
)
