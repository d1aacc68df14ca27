"""What W&B is told, read from the files that it writes without a network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger

import vqkit
from tests.trainers.tiny import (
    LIGHTNING_REMARKS,
    Images,
    Sounds,
    make_audio_task,
    make_image_task,
    make_trainer,
)
from trainers.callbacks import (
    CodebookReport,
    LastCheckpoint,
    Reconstructions,
    SaveTokenizer,
    Tracking,
    ValidationSchedule,
)
from trainers.run.history import STEP, history, records
from trainers.run.tracking import RunLogger, finish
from vqkit import codebook_hash

pytestmark = [
    *LIGHTNING_REMARKS,
    pytest.mark.filterwarnings("ignore:Checkpoint directory", "ignore:You're resuming from a checkpoint that ended"),
]


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network; what waits for an upload lies in the test's folder too."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staged"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    yield
    finish(0)


class Part:
    """One part of a run: what its file holds."""

    def __init__(self, file: Path):
        self.file = file
        found = list(records(file))
        kinds = {
            kind: [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]
            for kind in ("run", "summary", "artifact", "exit", "config")
        }
        self.run = kinds["run"][-1]
        self.whole = bool(kinds["exit"])
        self.config = {
            update.key: json.loads(update.value_json) for record in kinds["config"] for update in record.update
        }
        self.summary = {
            ".".join(update.nested_key) or update.key: json.loads(update.value_json)
            for record in kinds["summary"]
            for update in record.update
        }
        self.artifacts = {artifact.type: artifact for artifact in kinds["artifact"]}
        self.history = list(history(file))

    def steps(self, name):
        return [row[STEP] for row in self.history if name in row]

    def table(self, key):
        (entry,) = [entry for entry in self.artifacts["run_table"].manifest.contents if entry.path.startswith(key)]
        return json.loads(Path(entry.local_path).read_text())


def parts_of(folder):
    return [Part(file) for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"))]


def fit(folder, task, data, *, ckpt_path=None, id="0a1b2c3d", **arguments):
    """A part of a run, from its first step or a checkpoint."""
    logger = RunLogger(folder, name="tried", id=id)
    tracking = Tracking({"model": {"depth": [1, None]}})
    callbacks = [ValidationSchedule(4), Reconstructions(2), SaveTokenizer(), LastCheckpoint(), tracking]
    options = {"callbacks": callbacks, "default_root_dir": folder, "enable_checkpointing": True}
    trainer = make_trainer(logger=logger, **options, **arguments)
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    finish(0)
    return trainer


# ---------------------------------------------------------------------- one run


def test_all_parts_of_a_fit_are_one_run_whose_steps_do_not_go_back(offline, tmp_path):
    """A run is killed after step 6, resumed from step 4, and not one of its rows is there twice."""
    constant = {"warmup_steps": 0, "final_learning_rate_ratio": 1.0}
    fit(tmp_path, make_image_task(**constant), Images(4), max_steps=4)
    fourth = shutil.copy(tmp_path / "checkpoints/last.ckpt", tmp_path)
    for last in (6, 8):
        fit(tmp_path, make_image_task(**constant), Images(4), max_steps=last, ckpt_path=fourth)
    parts = parts_of(tmp_path)
    assert len(parts) == 3
    for part in parts:
        assert part.whole
        assert (part.run.run_id, part.run.run_group, part.run.job_type) == ("0a1b2c3d", "0a1b2c3d", "fit")
        assert part.run.display_name == "tried"
        assert part.run.resume
    assert [part.steps("train/loss") for part in parts] == [[0, 1, 2, 3], [4, 5], [6, 7]]
    assert [part.steps("validation/psnr") for part in parts] == [[3], [5], [7]]
    best = max(row["validation/psnr"] for part in parts for row in part.history if "validation/psnr" in row)
    assert parts[-1].summary["validation/psnr"]["max"] == pytest.approx(best)


@pytest.mark.slow
def test_a_value_that_differs_is_logged_again(offline, tmp_path):
    fit(tmp_path, make_image_task(warmup_steps=1), Images(4), max_steps=4)
    fourth = shutil.copy(tmp_path / "checkpoints/last.ckpt", tmp_path)
    for last in (6, 7):  # with another end, the cosine is another
        fit(tmp_path, make_image_task(warmup_steps=1), Images(4), max_steps=last, ckpt_path=fourth)
    assert parts_of(tmp_path)[-1].steps("train/loss") == [5, 6]


def _unreadable(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = {
    "records": (lambda file: file.write_bytes(file.read_bytes().replace(b"\x06figure", b"\x7efigure")), [0, 1]),
    "a number": (lambda file: file.write_bytes(file.read_bytes().replace(b"0.25", b"0.2{")), [1]),
    "the file": (_unreadable, [0, 1]),
}


@pytest.mark.parametrize(("damage", "again"), DAMAGES.values(), ids=DAMAGES)
def test_what_is_damaged_of_an_earlier_part_is_left_out_and_named(offline, tmp_path, damage, again):
    def part():
        logger = RunLogger(tmp_path, name="tried", id="0a1b2c3d")
        for step, figure in enumerate((0.5, 0.25)):
            logger.log_metrics({"figure": figure}, step)
        finish(0)

    part()
    (earlier,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    damage(earlier)
    with pytest.warns(UserWarning, match=f"{earlier}: .* cannot be read, and are left out"):
        part()
    assert Part(max(tmp_path.glob("wandb/offline-run-*/*.wandb"))).steps("figure") == again


def test_a_damaged_file_of_this_part_does_not_hide_how_the_run_ended(offline, tmp_path, monkeypatch):
    logger = RunLogger(tmp_path, name="tried")
    logger.log_metrics({"figure": 1.0}, 0)
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    teardown = wandb.teardown
    monkeypatch.setattr(wandb, "teardown", lambda: (teardown(), file.unlink()))
    with pytest.warns(UserWarning, match="ends before the run|cannot be read"):
        finish(1)


def test_other_commands_are_runs_of_the_group(offline, tmp_path):
    task = make_image_task()
    fit(tmp_path, task, Images(4), max_steps=1)
    for command in ("validate", "test"):
        logger = RunLogger(tmp_path, name="tried", id="0a1b2c3d", job_type=command)
        trainer = make_trainer(logger=logger, callbacks=[Tracking({})], default_root_dir=tmp_path)
        getattr(trainer, command)(task, datamodule=Images(4), verbose=False)
        finish(0)
    parts = {part.run.job_type: part for part in parts_of(tmp_path)}
    for command in ("validate", "test"):
        part = parts[command]
        assert part.run.run_id != "0a1b2c3d"
        assert (part.run.run_group, part.run.job_type, part.run.display_name) == ("0a1b2c3d", command, "tried")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert parts["test"].summary["test/psnr"] == pytest.approx(metrics["psnr"])
    assert parts["validate"].summary["validation/psnr"]["last"] == pytest.approx(metrics["psnr"])


# ---------------------------------------------------------------------- what is shown


@pytest.mark.parametrize("modality", ["image", pytest.param("audio", marks=pytest.mark.slow)])
def test_what_a_fit_shows(offline, tmp_path, modality):
    task, data = (make_image_task(), Images(4)) if modality == "image" else (make_audio_task(), Sounds(4))
    fit(tmp_path, task, data, max_steps=2)
    (part,) = parts_of(tmp_path)
    assert part.config["model"] == {"depth": [1, None]}
    assert part.config["vqkit"]["version"] == vqkit.__version__
    assert (part.config["device"], part.config["devices"], part.config["precision"]) == ("cpu", 1, "32-true")
    assert list(part.run.tags) == [modality, "ema"]
    assert part.summary["codes"] == [16]
    assert part.summary["bits_per_token"] == 4
    assert part.summary["parameters"]["total"] == sum(weight.numel() for weight in task.parameters())
    tokenizer = part.artifacts["model"]
    assert (tokenizer.name, set(tokenizer.aliases)) == ("tokenizer-0a1b2c3d", {"latest", "last"})
    metadata = {"run": "0a1b2c3d", "step": 2, "codebook_hash": codebook_hash(task.tokenizer.quantizer)}
    assert json.loads(tokenizer.metadata) == metadata
    assert {entry.path for entry in tokenizer.manifest.contents} == {"config.json", "model.safetensors", "weights.json"}
    assert "originals above" in part.summary["reconstructions.caption"]
    table = part.table("worst_validation")
    measured = [row[table["columns"].index("psnr" if modality == "image" else "si_sdr")] for row in table["data"]]
    assert measured == sorted(measured)
    if modality == "image":
        assert len(measured) == 16
        assert table["columns"] == ["name", "psnr", "ssim", "reconstructions"]
    else:
        assert table["columns"] == ["name", "si_sdr", "reconstructions", "original", "reconstruction"]
        assert {row[0] for row in table["data"]} == {"0", "1", "2"}
        assert table["data"][0][-1]["_type"] == "audio-file"
        assert part.summary["samples/00_original.caption"] == "0, original"
        assert part.summary["kbps"] == pytest.approx(task.tokenizer.kbps)


def test_the_worst_samples_are_those_of_the_least_figures(offline, tmp_path):
    """Beside them, what each sample has: a figure of one sample is that of a set of one."""
    task, images = make_image_task().eval(), Images(4)
    logger = RunLogger(tmp_path, name="tried", job_type="test")
    trainer = make_trainer(logger=logger, callbacks=[Tracking({}, worst=5)], default_root_dir=tmp_path)
    trainer.test(task, datamodule=images, verbose=False)
    finish(0)
    (part,) = parts_of(tmp_path)
    assert part.run.run_group == "tried"
    expected = []
    for image in images.images:
        metrics = task.new_metrics("test")
        output = task.tokenizer(image[None])
        metrics.update(image[None], output.reconstruction, output.quantizer.indices)
        expected.append(metrics.compute()["psnr"])
    assert [row[1] for row in part.table("worst_test")["data"]] == pytest.approx(sorted(expected)[:5], rel=1e-5)


def test_a_split_without_measures_has_no_worst_samples(offline, tmp_path):
    logger = RunLogger(tmp_path, name="tried", job_type="test")
    trainer = make_trainer(logger=logger, callbacks=[Tracking({})], default_root_dir=tmp_path)
    trainer.test(make_audio_task(test_measures=[]), datamodule=Sounds(4), verbose=False)
    finish(0)
    (part,) = parts_of(tmp_path)
    assert "run_table" not in part.artifacts and part.summary["test/utterances"] == 3


# ---------------------------------------------------------------------- where it cannot be shown


@pytest.mark.parametrize("kind", ["csv", "none", "disabled"])
def test_other_loggers_take_the_same_callbacks(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = {
        "csv": lambda: CSVLogger(tmp_path),
        "none": lambda: False,
        "disabled": lambda: RunLogger(tmp_path, name="tried", id="0a1b2c3d"),
    }[kind]()
    callbacks = [Reconstructions(2), SaveTokenizer(), CodebookReport(1), Tracking({})]
    trainer = make_trainer(logger=logger, callbacks=callbacks, default_root_dir=tmp_path, max_steps=4)
    trainer.fit(make_image_task(), datamodule=Images(4))
    finish(0)
    assert (tmp_path / "reconstructions.png").is_file()
    assert not list(tmp_path.glob("wandb/*run-*/*.wandb"))
    assert ("validation/psnr" in next(tmp_path.rglob("metrics.csv")).read_text()) if kind == "csv" else True


def test_a_folder_that_takes_no_files_ends_tracking_and_not_training(offline, tmp_path):
    (tmp_path / "wandb").write_text("")
    with pytest.warns(UserWarning, match="nothing is tracked, because W&B cannot start in .*Not a directory"):
        trainer = fit(tmp_path, make_image_task(), Images(4), max_steps=2)
    assert trainer.global_step == 2


@pytest.mark.slow
def test_a_full_disk_is_told_at_the_end(tmp_path):
    """The limit on the size of files is that of W&B's own process; it loses rows without a word."""
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from trainers.run.tracking import RunLogger, finish\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "logger = RunLogger(sys.argv[1], name='tried')\n"
        "for step in range(2000):\n"
        "    logger.log_metrics({'figure': step}, step)\n"
        "finish(0)\n"
        "print('done')\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "done" in done.stdout
    assert "ends before the run: the disk was full" in done.stderr


@pytest.mark.slow
def test_the_command_that_is_printed_takes_all_parts(offline, tmp_path):
    for _ in range(2):
        logger = RunLogger(tmp_path, name="tried", id="0a1b2c3d")
        logger.log_metrics({"figure": 1.0}, 0)
        printed = logger.whereabouts
        finish(0)
    command = printed.partition("wandb sync ")[2]
    assert command.endswith("/wandb/*-0a1b2c3d*")
    dry = f"{sys.executable} -m wandb sync --dry-run {command}"
    done = subprocess.run(dry, shell=True, capture_output=True, text=True, check=True)
    assert all(part.file.parent.name in done.stdout + done.stderr for part in parts_of(tmp_path))
