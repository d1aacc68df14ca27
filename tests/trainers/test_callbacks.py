"""Callbacks one by one, on a run of a few steps."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torchvision.io import read_image

from tests.trainers.test_stops import behind, set_should_stop
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, Spy, make_image_task, make_tokenizer, make_trainer, state_of
from trainers.callbacks import (
    BestCheckpoint,
    CodebookReport,
    LastCheckpoint,
    Reconstructions,
    SaveTokenizer,
    ValidationSchedule,
    WeightEMA,
)
from trainers.callbacks.report import usage_histogram
from trainers.core.checkpoints import Progress, read_checkpoint
from vqkit import Quantizer, Tokenizer

pytestmark = LIGHTNING_REMARKS


def make_task(quantizer=None, **arguments):
    return make_image_task(make_tokenizer(quantizer), **arguments)


# ---------------------------------------------------------------------- CodebookReport


def module_of(level_sizes, level_books):
    """What the report asks of a task."""
    levels = {"level_sizes": level_sizes, "level_books": level_books, "by_level": lambda indices: indices}
    tokenizer = SimpleNamespace(quantizer=SimpleNamespace(**levels, health=dict))
    return SimpleNamespace(tokenizer=tokenizer, device=torch.device("cpu"), log=lambda *_, **__: None)


def test_age_counts_batches_since_a_code_was_used():
    batches = [torch.tensor([0, 1]), torch.tensor([1, -1]), torch.tensor([1, 1]), torch.tensor([2, 1])]

    report, module, steps = CodebookReport(every_n_steps=100), module_of((4,), (0,)), SimpleNamespace(global_step=0)
    report.on_train_start(steps, module)
    for indices in batches[:2]:
        report.on_train_batch_end(steps, module, {"indices": indices}, None, 0)
    resumed = CodebookReport(every_n_steps=100)
    resumed.load_state_dict(report.state_dict())
    resumed.on_train_start(steps, module)
    for indices in batches[2:]:
        resumed.on_train_batch_end(steps, module, {"indices": indices}, None, 0)
    assert (resumed.batches - resumed.last_used).tolist() == [[3, 0, 0, 4]]


@pytest.mark.parametrize(("books", "never"), [((0, 1), 0), ((0, 0), 0), ((0, 1), 3), ((0, 0), 3)])
def test_levels_of_other_sizes_have_no_codes_beyond_their_own(books, never):
    """Nor is a code of a shared codebook dead that some level uses: of level 1 code 0 may never be chosen."""
    logged = {}
    module = module_of((2, 5), books)
    logger = SimpleNamespace(log_metrics=lambda metrics, step: logged.update(metrics))
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, loggers=[logger])
    report = CodebookReport(every_n_steps=2)
    report.on_train_start(trainer, module)
    for step, code in enumerate(
        (torch.tensor([[0, 4], [1, 3], [0, 2]]), torch.tensor([[1, 1], [0, 4], [-1, never]])), 1
    ):
        trainer.global_step = step
        report.on_train_batch_end(trainer, module, {"indices": code}, None, 0)
    dead = never != 0 and books == (0, 1)
    assert logged["codebook/dead_codes"] == dead
    ages = logged["codebook/dead_age_mean"], logged["codebook/dead_age_max"]
    assert ages == ((2, 2) if dead else (0, 1))
    assert (logged["codebook/usage_level_0"], logged["codebook/usage_level_1"]) == (1, 1 if never == 0 else 0.8)
    histogram = usage_histogram([torch.tensor([1, 1]), torch.tensor([0, 1, 1, 1, 2])]).histogram
    assert sum(histogram) == 7
    assert histogram[0] == 1


@pytest.mark.parametrize("trained", [0, 4])
def test_report_describes_a_window_as_a_set(trained, tmp_path):
    """The logged usage is that of all the tokens of a window, computed a second time; also behind a resume."""
    seen, logged = [], []
    logger = CSVLogger(tmp_path)
    logger.log_metrics = lambda metrics, step=None: logged.append(dict(metrics))
    spy = Spy(lambda trainer, module, outputs: seen.append(outputs["indices"].flatten()))
    checkpoint = None
    if trained:
        trainer = make_trainer(max_steps=trained, callbacks=[CodebookReport(every_n_steps=2)])
        trainer.fit(make_task(), datamodule=Images(4))
        trainer.save_checkpoint(checkpoint := tmp_path / "last.ckpt")
    make_trainer(max_steps=trained + 4, callbacks=[spy, CodebookReport(every_n_steps=2)], logger=logger).fit(
        make_task(), datamodule=Images(4), ckpt_path=checkpoint
    )
    reports = [entry for entry in logged if "codebook/usage" in entry]
    assert len(reports) == 2
    for report, window in zip(reports, (seen[:2], seen[2:]), strict=True):
        used = torch.cat(window).unique()
        assert report["codebook/usage"] == len(used) / 16
        assert report["codebook/dead_codes"] == 16 - len(used)
        assert math.isfinite(report["codebook/health/scale_ratio"])


def test_usage_histogram_counts_every_code():
    counts = torch.tensor([[0, 0, 1, 99]])
    values, edges = usage_histogram(counts).histogram, usage_histogram(counts).bins
    assert sum(values) == 4
    assert values[0] == 2
    assert values[-1] == 0
    assert edges[0] == pytest.approx(0.01)


# ---------------------------------------------------------------------- WeightEMA


@pytest.mark.parametrize("method", ["ema", "vq", "simvq"])
def test_weights_are_averaged_and_codebook_state_is_not(method, tmp_path):
    history = []
    spy = Spy(lambda trainer, module, _: history.append(state_of(module)))
    ema = WeightEMA(decay=0.5)
    task = make_task(Quantizer(method, dim=8, codebook_size=16, channel_dim=1))
    trainer = make_trainer(max_steps=3, callbacks=[spy, ema])
    spy.on_train_epoch_end = lambda trainer, module: trainer.save_checkpoint(tmp_path / "now.ckpt")
    trainer.fit(task, datamodule=Images(4))
    saved = torch.load(tmp_path / "now.ckpt", weights_only=True)
    buffers = {name for name, _ in task.named_buffers()}
    first, second, third = history
    for name, value in saved["state_dict"].items():
        if name in buffers or name.endswith("_extra_state"):
            assert torch.equal(value, third[name]), name
        else:
            # The average starts at the first model it sees.
            expected = 0.25 * first[name] + 0.25 * second[name] + 0.5 * third[name]
            torch.testing.assert_close(value, expected, msg=name)
        assert torch.equal(saved["current_model_state"][name], third[name])
        assert torch.equal(task.state_dict()[name], value)  # after training the model is the average


def test_validation_sees_the_average_and_training_goes_on_with_the_model():
    seen, after = [], []

    class Look(Callback):
        def on_validation_batch_start(self, trainer, pl_module, *_):
            seen.append(next(pl_module.parameters()).clone())

        def on_train_batch_start(self, trainer, pl_module, *_):
            assert not after or torch.equal(next(pl_module.parameters()), after[-1])

        def on_train_batch_end(self, trainer, pl_module, *_):
            after.append(next(pl_module.parameters()).clone())

    callbacks = [WeightEMA(decay=0.9), Look()]
    trainer = make_trainer(max_steps=4, callbacks=callbacks, limit_val_batches=1, val_check_interval=1)
    trainer.fit(make_task(), datamodule=Images(4))
    expected = after[0]
    for weights in after[1:]:
        expected = 0.9 * expected + 0.1 * weights
    torch.testing.assert_close(seen[-1], expected)
    assert not torch.equal(seen[-1], after[-1])


def test_a_sanity_check_before_training_sees_the_initialized_quantizer():
    seen, look = [], Callback()
    look.on_validation_batch_start = lambda *_: seen.append(task.tokenizer.quantizer.codebook.vectors.clone())
    task = make_task()
    untrained = task.tokenizer.quantizer.codebook.vectors.clone()
    make_trainer(max_steps=1, num_sanity_val_steps=1, callbacks=[WeightEMA(), look]).fit(task, datamodule=Images(4))
    assert not torch.equal(seen[0], untrained)


@pytest.mark.parametrize("arguments", [{"decay": 1.0}, {"decay": -0.1}, {"every_n_steps": 0}])
def test_weight_ema_refuses(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
        WeightEMA(**arguments)


# ---------------------------------------------------------------------- ValidationSchedule


@pytest.mark.parametrize(
    ("every", "options", "steps"),
    [
        (6, {"max_steps": 14}, [6, 12, 14]),
        (6, {"max_steps": 14, "accumulate_grad_batches": 2}, [6, 12, 14]),
        (6, {"max_epochs": 2}, [6, 8]),
        (100, {"max_steps": 3}, [3]),
        (1, {"max_steps": 10}, [4, 8, 10]),  # an epoch has four steps
        (6, {"max_steps": 10, "val_check_interval": 2}, [2, 4, 6, 8, 10]),
        (6, {"max_steps": 11, "check_val_every_n_epoch": 2}, [8]),
    ],
)
def test_short_epochs_validate_by_steps_and_every_fit_at_its_end(every, options, steps):
    validated, look = [], Callback()
    look.on_validation_end = lambda trainer, _: validated.append(trainer.global_step)
    make_trainer(callbacks=[ValidationSchedule(every), look], limit_val_batches=1, **options).fit(
        make_task(), datamodule=Images(4)
    )
    assert validated == steps


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"limit_val_batches": 0}, "trainer.limit_val_batches is 0"),
        ({"check_val_every_n_epoch": 5}, "trainer.check_val_every_n_epoch is 5"),
        ({}, None),
    ],
)
def test_a_fit_without_validation_says_so(options, reason, capsys):
    make_trainer(callbacks=[ValidationSchedule()], max_steps=2, **options).fit(make_task(), datamodule=Images(4))
    said = capsys.readouterr().out
    assert ("no best.ckpt" in said) == (reason is not None)
    assert reason is None or reason in said
    assert ("validation every 100 steps" in said) == (not options)


# ---------------------------------------------------------------------- what a run leaves behind


def test_checkpoints_and_the_tokenizer(tmp_path):
    last, best = LastCheckpoint(str(tmp_path), every_n_steps=3), BestCheckpoint(str(tmp_path))
    written = []
    keep = last._save_topk_checkpoint
    last._save_topk_checkpoint = lambda trainer, _: (written.append(trainer.global_step), keep(trainer, _))
    task = make_task()
    callbacks = [last, best, SaveTokenizer(str(tmp_path / "tokenizer"))]
    make_trainer(max_steps=5, enable_checkpointing=True, callbacks=callbacks).fit(task, datamodule=Images(4))
    assert written == [3, 4, 5]  # step 4 is validated
    assert {path.name for path in tmp_path.glob("*.ckpt")} == {"last.ckpt", "best.ckpt"}
    saved = Tokenizer.from_pretrained(tmp_path / "tokenizer")
    images = Images(4).images
    assert torch.equal(saved.encode(images), task.tokenizer.eval().encode(images))


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 3},
        {"max_epochs": 2},
        {"callbacks": [behind(3, set_should_stop)]},  # as `trainer.max_time` does
        {"callbacks": [behind(4, set_should_stop)]},
    ],
)
def test_a_resumed_run_knows_what_was_best_at_the_end(options, tmp_path):
    """What it validates afterwards replaces `best.ckpt` only if it is better."""
    files = [LastCheckpoint(str(tmp_path)), BestCheckpoint(str(tmp_path))]
    callbacks = [*options.get("callbacks", ()), ValidationSchedule(), *files]
    limits = {"max_steps": -1 if "max_epochs" in options else 9} | options
    trainer = make_trainer(**limits | {"callbacks": callbacks, "enable_checkpointing": True})
    trainer.fit(make_task(), datamodule=Images(4))
    last, best = (torch.load(tmp_path / f"{name}.ckpt") for name in ("last", "best"))
    (score,) = (state["best_model_score"] for name, state in best["callbacks"].items() if "BestCheckpoint" in name)
    (known,) = (state["best_model_score"] for name, state in last["callbacks"].items() if "BestCheckpoint" in name)
    assert known == score


def test_the_last_epoch_is_counted_where_nothing_is_validated(tmp_path):
    trainer = make_trainer(
        max_epochs=2, limit_val_batches=0, enable_checkpointing=True, callbacks=[LastCheckpoint(str(tmp_path))]
    )
    trainer.fit(make_task(), datamodule=Images(4))
    assert Progress.of(read_checkpoint(tmp_path / "last.ckpt")).limit(trainer) == "max_epochs=2"


@pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:You're resuming from a checkpoint that ended before")
def test_a_resumed_run_writes_nothing_before_its_first_step(tmp_path):
    """With accumulation, a file written before the next optimizer step would lack the gradients gathered so far."""
    arguments = {"enable_checkpointing": True, "accumulate_grad_batches": 2}
    make_trainer(max_steps=2, callbacks=[LastCheckpoint(str(tmp_path), every_n_steps=2)], **arguments).fit(
        make_task(), datamodule=Images(4)
    )
    last = LastCheckpoint(str(tmp_path), every_n_steps=2)
    batches = []
    keep = last._save_topk_checkpoint
    last._save_topk_checkpoint = lambda trainer, _: (
        batches.append(trainer.fit_loop.total_batch_idx + 1),
        keep(trainer, _),
    )
    make_trainer(max_steps=4, callbacks=[last], **arguments).fit(
        make_task(), datamodule=Images(4), ckpt_path=tmp_path / "last.ckpt"
    )
    assert set(batches) == {8}


def test_reconstructions_show_originals_above(tmp_path):
    task = make_task()
    make_trainer(max_epochs=1, callbacks=[Reconstructions(examples=3)], default_root_dir=tmp_path).fit(
        task, datamodule=Images(4)
    )
    picture = read_image(str(tmp_path / "reconstructions.png"))
    assert picture.shape == (3, 2 * 18 + 2, 3 * 18 + 2)
    original = ((Images(4).images[1] + 1) * 127.5).round().to(torch.uint8)
    assert torch.equal(picture[:, 2:18, 20:36], original)
