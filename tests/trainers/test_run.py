"""What a run is: one id, one choice of weights, a folder that nothing replaces unasked, and settings that are used."""

import errno
import hashlib
import json
import os
import runpy
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from wandb.proto import wandb_internal_pb2

from tests.trainers.conftest import ROOT, TINY, run_command
from tests.trainers.tiny import Images, assert_equal, make_image_task, make_trainer
from trainers.run.changes import changes
from trainers.run.cli import main
from trainers.run.folders import identity
from trainers.run.origin import Origin
from trainers.run.run import Run
from vqkit import Quantizer, RotationTrick, Tokenizer, TokenShards, codebook_hash
from vqkit.saving.files import NotWritten
from vqkit.surgery import shrink, with_quantizer


@pytest.fixture(scope="module")
def finished(tmp_path_factory, pictures):
    """The folder of a run of three steps, which no test changes."""
    runs = tmp_path_factory.mktemp("runs")
    options = {"config": "configs/image/quickstart.yaml", "data.root": pictures, "name": "run", "runs": runs, **TINY}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.chdir(ROOT)
        run_command("fit", **options)
    return runs / "run"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of it, where `cli` looks for a run."""
    return shutil.copytree(finished, tmp_path / "run")


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def loaded(path):
    return torch.load(path, weights_only=True)


# ---------------------------------------------------------------------- nothing left to train


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "last.ckpt has reached trainer.max_steps=3; to go on, give a larger --trainer.max_steps"),
        pytest.param(
            {"trainer.max_steps": -1, "trainer.max_epochs": 1},
            "larger --trainer.max_epochs",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"trainer.max_steps": 9, "trainer.max_time": "00:00:00:00"},
            "larger --trainer.max_time",
            marks=pytest.mark.slow,
        ),
        ({"ckpt_path": "best", "trainer.max_steps": 2}, "best.ckpt has reached"),
    ],
    ids=["steps", "epochs", "time", "best"],
)
def test_a_fit_that_has_nothing_left_changes_no_file(cli, run, options, how):
    """Schedulers start a run again after its end. The average would be replaced by the weights it is made of."""
    before = content(run)
    output = cli.done("fit", **{"ckpt_path": "last", **options})
    assert "nothing is left to train" in output and how in output
    assert content(run) == before


def test_a_tokenizer_that_is_missing_is_saved_from_the_last_weights(cli, run):
    before = content(run)
    shutil.rmtree(run / "tokenizer")
    cli.done("fit", ckpt_path="last")
    after = content(run)
    record = Path("tokenizer/weights.json")
    assert [json.loads(files.pop(record))["step"] for files in (before, after)] == [3, 3]
    assert after == before


def test_a_new_run_of_weights_that_are_trained_enough_gets_their_tokenizer(cli, run, tmp_path):
    checkpoint = run / "checkpoints/last.ckpt"
    cli.done("fit", ckpt_path=checkpoint, name="new")
    assert content(run / "tokenizer").keys() == content(tmp_path / "new/tokenizer").keys()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes").write_text("mine")
    code, _, errors = cli("fit", ckpt_path=checkpoint, name="newer", **{"save_tokenizer.folder": tmp_path / "taken"})
    assert code == 1 and "holds something else" in errors and "Traceback" not in errors


# ---------------------------------------------------------------------- a folder that is taken


def test_a_folder_of_checkpoints_alone_goes_on(cli, run):
    for path in run.iterdir():
        if path.name != "checkpoints":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    written_by = loaded(run / "checkpoints/last.ckpt")["run"]
    cli.done("fit", ckpt_path="last", **{"trainer.max_steps": 4})
    assert identity(run) == written_by and loaded(run / "checkpoints/last.ckpt")["global_step"] == 4


def test_what_was_best_of_another_run_is_not_best_of_this_one(cli, run, tmp_path):
    """Though it lies in the place of its own, until training starts."""
    other = shutil.copytree(run, tmp_path / "other")
    (other / "run.json").write_text(json.dumps({"id": "0" * 8}))
    last = loaded(other / "checkpoints/last.ckpt")
    for name, state in last["callbacks"].items():
        if "BestCheckpoint" in name:
            state["best_model_score"] = torch.tensor(99.0)
            state["best_k_models"] = {path: torch.tensor(99.0) for path in state["best_k_models"]}
            state["kth_value"] = torch.tensor(99.0)
    torch.save(last | {"run": "0" * 8}, other / "checkpoints/last.ckpt")
    given = {"ckpt_path": other / "checkpoints/last.ckpt", "trainer.max_steps": 4}
    cli.done("fit", "--overwrite", **given)
    assert loaded(run / "checkpoints/best.ckpt")["global_step"] == 4


@pytest.mark.slow
def test_a_second_fit_replaces_a_run_only_when_it_is_told_to(cli, run, pictures):
    (run / "notes.txt").write_text("mine")
    (run / "tokens").mkdir()
    before = content(run)
    code, _, errors = cli("fit")
    assert code == 2 and "--ckpt_path last" in errors and "--overwrite" in errors
    code, _, errors = cli(
        "fit", "--overwrite", **{"data.root": run / "tokens"}
    )  # what fails before training takes nothing away
    assert code == 2 and "no usable image" in errors
    code, _, errors = cli("fit", "--overwrite", ckpt_path="last")
    assert code == 2 and "give one" in errors
    assert content(run) == before
    output = cli.done("fit", "--overwrite", **{"trainer.max_steps": 1})
    assert "is replaced when training starts" in output
    assert identity(run) != json.loads(before[Path("run.json")])["id"]
    assert (run / "notes.txt").is_file() and not (run / "tokens").exists()
    assert loaded(run / "checkpoints/last.ckpt")["global_step"] == 1
    assert "overwrite" not in yaml.safe_load((run / "config.yaml").read_text())


def test_a_run_is_not_replaced_by_the_weights_of_another(cli, run, tmp_path):
    other = shutil.copytree(run, tmp_path / "other")
    (other / "run.json").write_text(json.dumps({"id": "0" * 8}))
    checkpoint = loaded(other / "checkpoints/last.ckpt")
    torch.save(checkpoint | {"run": "0" * 8}, other / "checkpoints/last.ckpt")
    before = content(run)
    code, _, errors = cli("fit", ckpt_path=other / "checkpoints/last.ckpt", **{"trainer.max_steps": 5})
    assert code == 2 and "holds an earlier run" in errors
    assert content(run) == before


@pytest.mark.slow
def test_a_folder_of_an_earlier_version_has_an_id_and_gets_it_written(cli, run):
    (run / "run.json").unlink()
    torch.save({**loaded(run / "checkpoints/last.ckpt"), "run": None}, run / "checkpoints/last.ckpt")
    found = identity(run)
    cli.done("test")
    assert json.loads((run / "metrics.json").read_text())["protocol"]["run"] == found
    cli.done("fit", ckpt_path="last", **{"trainer.max_steps": 4})
    assert json.loads((run / "run.json").read_text())["id"] == identity(run) == found
    assert loaded(run / "checkpoints/last.ckpt")["run"] == found


# ---------------------------------------------------------------------- what is asked for is used


def test_a_resumed_run_uses_the_settings_that_it_records(cli, run):
    moments = loaded(run / "checkpoints/last.ckpt")["optimizer_states"][0]["state"]
    asked = {"learning_rate": 1e-4, "weight_decay": 0.5, "betas": "[0.8, 0.95]", "final_learning_rate_ratio": 1.0}
    options = {f"model.{name}": value for name, value in asked.items()} | {"trainer.max_steps": 5}
    output = cli.done("fit", ckpt_path="last", **options)
    assert "  model.init_args.learning_rate: 0.002 -> 0.0001\n" in output
    assert "  model.init_args.betas.0: 0.9 -> 0.8\n" in output and "  trainer.max_steps: 3 -> 5\n" in output
    recorded = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    state = loaded(run / "checkpoints/last.ckpt")["optimizer_states"][0]
    groups = {group["name"]: group for group in state["param_groups"]}
    for group in groups.values():
        assert group["lr"] == group["initial_lr"] == recorded["learning_rate"] == 1e-4
        assert list(group["betas"]) == recorded["betas"] == [0.8, 0.95]
    assert groups["weights"]["weight_decay"] == recorded["weight_decay"] == 0.5
    assert groups["biases and norms"]["weight_decay"] == 0
    assert all(state["state"][index]["step"] == moments[index]["step"] + 2 for index in moments)


@pytest.mark.parametrize("removed", [False, True])
def test_options_that_are_newer_than_a_run_are_no_change_at_their_defaults(cli, run, removed):
    record = yaml.safe_load((run / "config.yaml").read_text())
    for name in ("class_folders", "group_by", "crop", "tiles", "max_aspect_ratio"):
        del record["data"]["init_args"][name]
    del record["model"]["init_args"]["schedules"], record["best_checkpoint"]
    if removed:  # of a version that had an option which is no more
        record["model"]["init_args"]["no_more"] = 1
    (run / "config.yaml").write_text(yaml.safe_dump(record))
    options = {"data.max_aspect_ratio": 20.0, "trainer.max_steps": 4}
    output = cli.done("fit", ckpt_path="last", **options)
    lines = [line for line in output.splitlines() if line.startswith("  ") and " -> " in line]
    expected = {"  data.init_args.max_aspect_ratio: not recorded -> 20.0", "  trainer.max_steps: 3 -> 4"}
    assert set(lines) == expected or (removed and set(lines) > expected), lines


def test_a_value_that_none_stands_for_is_no_change():
    """Earlier versions recorded the default of the ratio, where None is recorded now."""
    for old, new, expected in ((0.05, None, []), (None, 0.05, []), (0.1, None, ["0.1 -> None"])):
        ratio = {value: {"model": {"init_args": {"final_learning_rate_ratio": value}}} for value in (old, new)}
        lines = changes(ratio[old], ratio[new], initialized=True)
        assert [line.partition(": ")[2] for line in lines] == expected


@pytest.mark.parametrize("option", ["seed_everything", "model.seed", "model.initialization_samples"])
def test_what_was_settled_when_training_began_is_refused(cli, run, option):
    before = content(run)
    code, _, errors = cli("fit", ckpt_path="last", **{option: 7, "trainer.max_steps": 5})
    assert code == 2 and f"{option.rpartition('.')[2]}: " in errors and "-> 7: settled when training began" in errors
    assert content(run) == before


def test_a_checkpoint_changes_no_configuration(cli, run):
    path = run / "checkpoints/last.ckpt"
    checkpoint = loaded(path)
    assert "hyper_parameters" not in checkpoint
    torch.save(checkpoint | {"hyper_parameters": {"learning_rate": 123.0}}, path)
    output = cli.done("fit", ckpt_path=path, **{"trainer.max_steps": 4})
    assert "learning_rate" not in output
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["learning_rate"] == 2e-3
    assert loaded(path)["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 2e-3


# ---------------------------------------------------------------------- one choice of weights


def change_best(run, by=0.5):
    """Another `best.ckpt`; a run of three steps has none of its own that differs."""
    path = run / "checkpoints/best.ckpt"
    checkpoint = loaded(run / "checkpoints/last.ckpt")
    state = {
        name: value + by if "codebook" in name and value.is_floating_point() else value
        for name, value in checkpoint["state_dict"].items()
    }
    torch.save(checkpoint | {"state_dict": state, "global_step": 2}, path)
    return path


@pytest.mark.slow
def test_everything_is_made_with_the_last_weights_and_says_so(cli, run):
    change_best(run)
    weights = {"checkpoint": str(run / "checkpoints/last.ckpt"), "step": 3, "run": identity(run)}
    saved = Tokenizer.from_pretrained(run / "tokenizer")
    assert json.loads((run / "tokenizer/weights.json").read_text()).items() >= {"step": 3, "run": identity(run)}.items()
    code, output, _ = cli("predict")
    assert code == 0
    assert f"last.ckpt, step 3 of run {identity(run)}" in output
    shards = TokenShards(run / "tokens")
    beside = Tokenizer.from_pretrained(run / "tokens" / shards.tokenizer)
    assert codebook_hash(beside.quantizer) == codebook_hash(saved.quantizer) == shards.codebook_hash
    (manifest,) = (json.loads(path.read_text()) for path in (run / "tokens").glob("manifest-*.json"))
    assert (manifest["tokenizer"], manifest["weights"]) == ("tokenizer", weights)
    code, _, errors = cli("predict", ckpt_path="best")
    assert code == 1 and "was filled by another tokenizer" in errors
    for asked, expected in (("best", 2), (None, 3)):
        cli.done("test", ckpt_path=asked)
        assert json.loads((run / "metrics.json").read_text())["protocol"]["step"] == expected
    assert content(run)[Path("tokens/tokenizer/model.safetensors")] == content(run)[Path("tokenizer/model.safetensors")]


def export(capsys, *words):
    try:
        main(["export", *map(str, words)])
    except SystemExit as exit:
        return exit.code, capsys.readouterr().err
    return 0, capsys.readouterr().out


def test_export_writes_the_tokenizer_of_any_checkpoint(run, tmp_path, capsys):
    best = change_best(run)
    target = tmp_path / "new" / "exported"
    code, output = export(capsys, run, "--to", target)
    assert code == 0
    assert (
        output.splitlines()[-1]
        == f"from vqkit import Tokenizer; tokenizer = Tokenizer.from_pretrained({str(target)!r})"
    )
    assert (target / "model.safetensors").read_bytes() == (run / "tokenizer/model.safetensors").read_bytes()
    assert json.loads((target / "weights.json").read_text())["run"] == identity(run)
    moved = shutil.copy(best, tmp_path / "mine.ckpt")
    for asked in ("best", moved):
        code, output = export(capsys, run, "--checkpoint", asked, "--to", target)
        assert code == 0 and "step 2 of run" in output
        expected = {name.removeprefix("tokenizer."): value for name, value in loaded(best)["state_dict"].items()}
        found = load_file(target / "model.safetensors")
        assert all(value.equal(expected[name]) for name, value in found.items())
        Tokenizer.from_pretrained(target)
    checkpoint = loaded(best)
    checkpoint["tokenizer"] = None  # as before version 0.2; config.yaml says it
    torch.save(checkpoint, best)
    assert export(capsys, run, "--checkpoint", "best", "--to", target)[0] == 0
    (run / "config.yaml").unlink()
    code, errors = export(capsys, run, "--checkpoint", "best", "--to", target)
    assert code == 2 and "does not say what its tokenizer is made of" in errors


def test_a_run_is_found_by_its_name_and_recorded_by_a_path_that_holds_from_anywhere(
    finished, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("runs").symlink_to(finished.parent)
    for asked in (finished.name, f"runs/{finished.name}"):
        assert export(capsys, asked, "--to", "exported")[0] == 0
        origins = [Origin.of(asked), Origin.of(f"{asked}:last")]
        for checkpoint in (recorded(Path("exported")), *(origin.file for origin in origins)):
            assert checkpoint.samefile(finished / "checkpoints/last.ckpt")
    assert recorded(Path("exported")) == tmp_path / "runs" / finished.name / "checkpoints/last.ckpt"
    assert recorded(finished / "tokenizer") == finished / "checkpoints/last.ckpt"
    code, errors = export(capsys, os.fsdecode(b"caf\xe9"), "--to", "new")
    assert code == 2 and errors.startswith(r"error: caf\xe9 is not UTF-8")
    code, errors = export(capsys, "another", "--to", "new")
    assert code == 2 and "run='another' is not a folder: expected a run folder, such as runs/mine, or its" in errors


def recorded(tokenizer):
    return Path(json.loads((tokenizer / "weights.json").read_text())["checkpoint"])


def test_export_writes_all_or_nothing(run, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text('{"model_type": "another"}')
    for folder, words, message in (
        ("full", [], "holds something else than a saved tokenizer"),
        ("new", ["--checkpoint", "nowhere.ckpt"], "checkpoint='nowhere.ckpt': nowhere.ckpt does not exist"),
    ):
        code, errors = export(capsys, run, "--to", tmp_path / folder, *words)
        assert code == 2 and message in errors and "Traceback" not in errors

    def full(path, _):
        raise NotWritten(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("trainers.core.checkpoints.write_json", full)
    code, errors = export(capsys, run, "--to", tmp_path / "new")
    assert code == 2 and f"{tmp_path / 'new/weights.json'} was not written (No space left on device)" in errors
    assert {path.name for path in tmp_path.iterdir()} == {"full", "run"}


# ---------------------------------------------------------------------- its history


def write_history(folder, run_id, steps, *, job_type="fit", figure="train/loss"):
    """A W&B file with a figure at each step."""
    described = wandb_internal_pb2.Record()
    described.run.job_type = job_type
    records = [described]
    for step in steps:
        records.append(wandb_internal_pb2.Record())
        for key, value in (("trainer/global_step", step), (figure, 1.0)):
            records[-1].history.item.add(key=key, value_json=json.dumps(value))
    contents = [record.SerializeToString() for record in records]
    parts = b"".join(struct.pack("<IHB", 0, len(data), 1) + data for data in contents)
    folder = folder / "wandb" / f"offline-run-20260101_0000{len(steps):02}-{run_id}"
    folder.mkdir(parents=True)
    (folder / f"run-{run_id}.wandb").write_bytes(bytes(7) + parts)


def test_the_log_is_of_this_run_alone(tmp_path, monkeypatch, capsys):
    write_history(tmp_path, "aaaaaaaa", range(50))
    write_history(tmp_path, "bbbbbbbb", range(3))
    write_history(tmp_path, "bbbbbbbb", range(2, 6))
    write_history(tmp_path, "cccccccc", range(70), job_type="test")
    write_history(tmp_path, "cccccccc", range(80), job_type="", figure="test/psnr")  # of an earlier version
    monkeypatch.setattr(sys, "argv", ["export_log.py", str(tmp_path), str(tmp_path / "log.csv")])
    for record, rows, said in (
        (None, 50, "3 histories are joined"),
        ({"id": "bbbbbbbb"}, 6, "1 histories are left out"),
    ):
        if record:
            (tmp_path / "run.json").write_text(json.dumps(record))
        runpy.run_path(str(ROOT / "scripts/export_log.py"), run_name="__main__")
        errors = capsys.readouterr().err
        assert said in errors and ("run-aaaaaaaa.wandb" in errors) == bool(record) and "cccccccc" not in errors
        assert len((tmp_path / "log.csv").read_text().splitlines()) == 1 + rows


# ---------------------------------------------------------------------- a new run from trained weights


def state_of(checkpoint):
    """The tokenizer's weights: the average, which measures and saved tokenizers use."""
    return {name: value for name, value in loaded(checkpoint)["state_dict"].items() if name.startswith("tokenizer.")}


def test_a_new_run_starts_from_trained_weights(cli, run, tmp_path):
    """At step 0, with the trained codes; its record says whence."""
    source, new = run / "checkpoints/last.ckpt", tmp_path / "new"
    sha = hashlib.sha256(source.read_bytes()).hexdigest()
    still = {"name": "new", "init_from": run, "trainer.max_steps": 2, "model.learning_rate": 1e-30}
    output = cli.done("fit", **still, **{"model.freeze": "[quantizer]"})
    assert f"starting from all parts of {source}, step 3 of run {identity(run)}, SHA-256 {sha}\n" in output
    assert "initializing the quantizer" not in output and "; frozen: quantizer\n" in output
    assert_equal(state_of(new / "checkpoints/last.ckpt"), state_of(source))
    assert loaded(new / "checkpoints/last.ckpt")["global_step"] == 2
    record = json.loads((new / "run.json").read_text())
    assert record["id"] == identity(new) != identity(run)
    assert record["init_from"] == {
        "file": str(source),
        "sha256": sha,
        "parts": None,
        "run": identity(run),
        "step": 3,
    }
    config = yaml.safe_load((new / "config.yaml").read_text())
    assert (config["init_from"], config["init_parts"], config["init_hash"]) == (str(run), None, sha)


@pytest.mark.slow
def test_a_run_goes_on_with_a_codebook_that_was_cut(cli, run, tmp_path):
    """At the new size, with the encoder at rest and the codes that surgery left, and its checkpoint resumes."""
    trained = Tokenizer.from_pretrained(run / "tokenizer")
    surgery = shrink(trained.quantizer, 5)
    with_quantizer(trained, surgery.quantizer).save_pretrained(tmp_path / "cut")
    options = {"model.tokenizer.quantizer.codebook_size": 5, "model.freeze": "[encoder,quantizer]"}
    output = cli.done("fit", **options, **{"name": "new", "init_from": tmp_path / "cut"})
    assert "initializing the quantizer" not in output
    cli.done("fit", **options, **{"name": "new", "ckpt_path": "last", "trainer.max_steps": 4})
    went_on = Tokenizer.from_pretrained(tmp_path / "new/tokenizer")
    assert torch.equal(went_on.quantizer.codebook(), surgery.quantizer.codebook())
    assert loaded(tmp_path / "new/checkpoints/last.ckpt")["global_step"] == 4
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    before, after = trained.eval().encode(images), went_on.eval().encode(images)
    assert after.max() < 5 and torch.equal(went_on.encoder(images), trained.encoder(images))
    assert torch.equal(after, surgery.quantizer.encode(trained.encoder(images))) and before.shape == after.shape


@pytest.mark.slow
def test_a_resumed_run_keeps_the_record_of_its_first_weights_and_loads_none(cli, run, tmp_path):
    new = tmp_path / "new"
    options = {"name": "new", "trainer.max_steps": 2, "model.freeze": "[quantizer]"}
    cli.done("fit", **options, init_from=run)
    record = json.loads((new / "run.json").read_text())
    sha = record["init_from"]["sha256"]
    shutil.rmtree(run)
    on = options | {"ckpt_path": "last", "trainer.max_steps": 3}
    for options in (on, on | {"init_from": run, "trainer.max_steps": 4}):
        output = cli.done("fit", **options)
        assert "starting from" not in output and "  init_" not in output
        assert yaml.safe_load((new / "config.yaml").read_text())["init_hash"] == sha
        assert json.loads((new / "run.json").read_text()) == record
    code, _, errors = cli("fit", **on, init_from=new)
    assert code == 2 and "starts a new run, and --ckpt_path last goes on with one" in errors


def test_each_kind_of_weights_is_found(finished):
    files = {
        "": "checkpoints/last.ckpt",
        ":best": "checkpoints/best.ckpt",
        "/checkpoints/best.ckpt": "checkpoints/best.ckpt",
        "/tokenizer": "tokenizer/model.safetensors",
    }
    for end, file in files.items():
        origin = Origin.of(f"{finished}{end}")
        assert (origin.file, origin.run, origin.step) == (finished / file, identity(finished), 3)
        task = make_image_task(saved(finished, codebook_size=32))
        origin.load(task)
        assert task.keeps_quantizer
        expected = load_file(finished / "tokenizer/model.safetensors")
        assert torch.equal(task.tokenizer.quantizer.codebook.vectors, expected["quantizer.codebook.vectors"])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*is deprecated, use `isinstance")
@pytest.mark.parametrize("parts", [["encoder"], ["encoder", "quantizer"]])
def test_only_the_parts_that_are_named_are_taken(finished, parts):
    """A quantizer that is not among them is initialized from data."""
    task = make_image_task(saved(finished, codebook_size=32), learning_rate=1e-30)
    for part in (task.tokenizer.encoder, task.tokenizer.decoder):
        torch.nn.init.constant_(next(part.parameters()), 0.5)
    before = load_file(finished / "tokenizer/model.safetensors")
    changed = {name: value.clone() for name, value in task.tokenizer.decoder.state_dict().items()}
    Origin.of(str(finished), parts=parts).load(task)
    initialized = []
    task.tokenizer.initialize = lambda *_, **__: initialized.append(True)
    make_trainer(max_steps=1).fit(task, datamodule=Images(4))
    assert initialized == [True][: "quantizer" not in parts]
    for name, value in task.tokenizer.encoder.state_dict().items():
        assert torch.equal(value, before[f"encoder.{name}"]), name
    assert_equal(task.tokenizer.decoder.state_dict(), changed)


def saved(finished, **quantizer):
    """The tokenizer of the run, with another quantizer."""
    tokenizer = Tokenizer.from_pretrained(finished / "tokenizer")
    return Tokenizer(tokenizer.encoder, Quantizer("ema", dim=32, channel_dim=1, **quantizer), tokenizer.decoder)


@pytest.mark.parametrize("end", ["", "/tokenizer"])
def test_weights_that_do_not_fit_are_refused_with_the_names(finished, end):
    origin = Origin.of(f"{finished}{end}")
    counts = r"\.codebook\.pending_counts is \(32,\) there and \(64,\) here, .*"
    for trains, advice in {True: "take the parts that fit by --init_parts", False: "give the --config and "}.items():
        with pytest.raises(ValueError, match=f"{counts}{advice}"):
            origin.load(make_image_task(saved(finished, codebook_size=64)), trains=trains)
    with pytest.raises(ValueError, match=r"tokenizer\.quantizer\.init_args\.normalize is False, not True"):
        origin.load(make_image_task(saved(finished, codebook_size=32, normalize=True)))
    with pytest.raises(ValueError, match=r"pretraining_steps=1: .* has it initialized; set pretraining_steps to 0"):
        origin.load(make_image_task(saved(finished, codebook_size=32), pretraining_steps=1))
    origin.load(make_image_task(saved(finished, codebook_size=32, estimator=RotationTrick())))
    part = Origin.of(f"{finished}{end}", parts=["encodr"])
    with pytest.raises(ValueError, match=r"init_parts=\['encodr'\]: tokenizer has no part 'encodr'"):
        part.load(make_image_task(saved(finished, codebook_size=32)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"init_from": "nowhere"},
            r"init_from='nowhere': expected the folder of a run \(runs/mine, or ",
        ),
        ({"init_from": "RUN", "init_hash": "0a"}, "init_hash='0a': .*/checkpoints/last.ckpt has [0-9a-f]{64}; it was"),
        ({"init_parts": ["encoder"]}, r"init_parts=\['encoder'\], init_hash=None: of which weights\? Give --init_from"),
    ],
)
def test_weights_that_are_not_there_are_refused(finished, options, message):
    options = {name: str(finished) if value == "RUN" else value for name, value in options.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Run.of("fit", runs="runs", name="new", project="vqkit", ckpt_path=None, dry=True, **options)
