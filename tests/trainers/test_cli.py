"""The command line as its users meet it: what it leaves behind, and what it says when something is wrong."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment
from safetensors.torch import save_file

from tests.trainers.conftest import TINY, recorded
from tests.trainers.recordings import write_recordings
from tests.trainers.test_resume import start
from tests.trainers.tiny import assert_equal
from trainers.run.announcement import codes_in_words
from trainers.run.cli import TokenizerCLI, main
from trainers.run.tracking import reason_to_stay_offline
from vqkit import AudioTokenizer, Tokenizer, TokenShards

MEASURES = """
model.init_args.test_measures:
  - class_path: trainers.image.FeatureMeasure
    init_args:
      name: lite
      network: {class_path: trainers.image.EfficientNetLite0, init_args: {weights: trainers.image.RandomWeights}}
      statistics: [{class_path: trainers.image.KernelDistance}]
"""

# ---------------------------------------------------------------------- what it leaves behind


@pytest.mark.slow
def test_fit_test_and_predict_from_the_run_folder_alone(cli, tmp_path, pictures):
    output = cli.done("fit", quantizer="simvq")
    assert "simvq: in place of ema" in output
    assert "12 images" in output
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} >= {"checkpoints", "config.yaml", "tokenizer"}
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["quantizer"] == "simvq"
    assert saved["model"]["init_args"]["tokenizer"]["init_args"]["quantizer"]["init_args"]["method"] == "simvq"
    assert saved["last_checkpoint"]["folder"] is None and saved["ckpt_path"] is None
    trained = (run / "config.yaml").read_bytes()

    alone = recorded(run)
    (tmp_path / "measures.yaml").write_text(MEASURES)
    output = cli.done("test", f"--config={tmp_path / 'measures.yaml'}", **alone)
    metrics = json.loads((run / "metrics.json").read_text())
    assert "lite_kernel_distance" in metrics
    assert metrics["protocol"]["measures"]["lite"]["weights"] == "random numbers"
    assert len(metrics["protocol"]["files_sha256"]) == 64
    assert metrics["bpp"] == pytest.approx(5 / 16)
    assert metrics["coded_bpp"] > 0 and "headers" in metrics["protocol"]["coded_bpp"]
    assert metrics["tokens_per_image"] == 16
    assert 0 < metrics["codebook_usage"] <= 1
    assert metrics["protocol"]["ms_ssim"].startswith("not measured")
    assert metrics["protocol"]["checkpoint"].endswith(".ckpt")
    preprocessing = metrics["protocol"]["preprocessing"]
    assert (preprocessing["resolution"], preprocessing["crop"], preprocessing["filter"]) == (
        16,
        "centre square",
        "bicubic",
    )
    assert f"{metrics['psnr']:.6g}" in output
    assert (run / "config.yaml").read_bytes() == trained

    # The same weights as a saved tokenizer have the same figures, and say where they come from.
    cli.done("test", "--model.pretraining_steps=2", **alone, ckpt_path=run / "tokenizer")
    saved_metrics = json.loads((run / "metrics.json").read_text())
    assert saved_metrics["psnr"] == metrics["psnr"]
    assert saved_metrics["protocol"]["checkpoint"].endswith("tokenizer/model.safetensors")
    assert saved_metrics["protocol"]["step"] == 3 and saved_metrics["protocol"]["run"] == metrics["protocol"]["run"]

    output = cli.done("predict", **alone)
    assert "the centre square of each is encoded: 10% of their area is left out, of one 10%" in output
    shards = TokenShards(run / "tokens")
    assert shards.names == [*(f"{number:03d}.png" for number in range(11)), r"caf\xe9\x0a.png"]
    assert shards[0]["indices"].shape == (4, 4)
    output = cli.done("predict", **alone, ckpt_path=run / "tokenizer")
    assert "12 samples are in" in output
    assert len(TokenShards(run / "tokens")) == 12

    tokenizer = Tokenizer.from_pretrained(run / "tokenizer")
    assert tokenizer.decode(shards[0]["indices"][None]).shape == (1, 3, 16, 16)


TINY_SOUND = {
    "data.segment_seconds": 0.2,
    "data.batch_size": 2,
    "model.tokenizer.encoder.channels": 4,
    "model.tokenizer.decoder.channels": 4,
    "model.tokenizer.quantizer.group": json.dumps(
        [
            {"class_path": "vqkit.Quantizer", "init_args": {"method": "ema", "dim": dim, "codebook_size": 16}}
            for dim in (5, 3, 6, 12, 16, 22)
        ]
    ),
    "model.initialization_samples": 256,
    "model.validation_measures": '["si_sdr"]',
    "model.test_measures": '["si_sdr", "mel_distance"]',
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
}


@pytest.mark.slow
def test_fit_test_and_predict_sound(cli, tmp_path):
    folder = tmp_path / "recordings"
    write_recordings(folder, 6, seconds=0.5)
    sound = {"config": "configs/audio/quickstart.yaml", "data.root": folder}
    output = cli.done("fit", **(dict.fromkeys(TINY) | sound | TINY_SOUND))
    assert "6 x 16 codes at 100 frames a second, 2.4 kbit/s" in output
    run = tmp_path / "run"
    alone = recorded(run)
    cli.done("test", **alone)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["kbps"] == pytest.approx(2.4)
    assert metrics["coded_kbps"] > 0 and "headers" in metrics["protocol"]["coded_kbps"]
    assert len(metrics["usage_per_level"]) == 6
    assert metrics["protocol"]["checkpoint"].endswith(".ckpt")
    cli.done("predict", **alone)
    shards = TokenShards(run / "tokens")
    tokenizer = AudioTokenizer.from_pretrained(run / "tokenizer")
    frames = sorted(len(shards[number]["indices"]) for number in range(6))
    assert frames[0] >= 50 and frames[0] < frames[-1]
    assert tokenizer.decode(shards[0]["indices"][None, :, :2]).shape[1] == 1


@pytest.mark.slow
def test_a_resumed_run_goes_on_and_a_repeated_one_starts_anew(cli, tmp_path):
    cli.done("fit")
    output = cli.done("fit", ckpt_path="last", **{"trainer.max_steps": 5})
    assert "initializing" not in output
    # The saved configuration repeats the run: under another name it writes nothing here, and it does not resume.
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*.ckpt"))
    output = cli.done("fit", **recorded(tmp_path / "run") | {"name": "again"})
    assert "initializing" in output
    assert (tmp_path / "again" / "checkpoints" / "last.ckpt").is_file()
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("*.ckpt")) == before
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


@pytest.mark.slow
def test_tracking_stays_in_the_run_folder_without_an_account(cli, tmp_path, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, output, errors = cli("fit")
    monkeypatch.delenv("WANDB_MODE", raising=False)  # Lightning sets it
    assert code == 0, errors
    assert "offline because there is no API key" in output
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))


def test_tracking_is_offline_when_the_server_cannot_be_reached(monkeypatch):
    settings = SimpleNamespace(base_url="http://127.0.0.1:9", api_key=None)
    monkeypatch.setattr("wandb.setup", lambda: SimpleNamespace(settings=settings))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert reason_to_stay_offline().startswith("127.0.0.1 cannot be reached")
    monkeypatch.setenv("WANDB_MODE", "online")
    assert reason_to_stay_offline() is None


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_precision(cli, precision):
    cli.done("fit", **{"trainer.precision": precision, "trainer.max_steps": 1})


@pytest.mark.slow
def test_two_ranks_end_in_the_same_weights(tmp_path, pictures):
    (tmp_path / "ranks.py").write_text(
        "import torch\n"
        "from lightning.pytorch import Callback\n"
        "class Ranks(Callback):\n"
        "    def on_train_end(self, trainer, pl_module):\n"
        f"        torch.save(pl_module.state_dict(), {str(tmp_path)!r} + f'/rank{{trainer.global_rank}}.pt')\n"
    )
    options = [f"--data.root={pictures}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = start(tmp_path, "pair", *options, "--trainer.callbacks+=ranks.Ranks", GLOO_SOCKET_IFNAME="lo")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.count("12 images") == 1
    assert_equal(*(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)))


@pytest.mark.slow
def test_a_run_goes_on_without_the_file_that_its_codebook_came_from(cli, tmp_path):
    features = tmp_path / "features.safetensors"
    save_file({"features": torch.randn(32, 6)}, features)
    quantizer = "model.tokenizer.quantizer"
    codebook = {"class_path": "vqkit.FeatureCodebook", "init_args": {"base_path": str(features), "base_dim": 6}}
    options = {f"{quantizer}.method": "vqgan_lc", f"{quantizer}.codebook": json.dumps(codebook)}
    cli.done("fit", **options)
    features.unlink()
    for command, more in (("fit", {"ckpt_path": "last", "trainer.max_steps": 5}), ("test", {}), ("predict", {})):
        cli.done(command, **options, **more)
    code, _, errors = cli("fit", name="new", **options)
    assert code == 2 and "features.safetensors" in errors
    cli.done("fit", name="new", init_from=tmp_path / "run", **options)


# ---------------------------------------------------------------------- what it says

QUANTIZER = "model.tokenizer.quantizer"

MISTAKES = [
    (
        {f"{QUANTIZER}.method": "simqv"},
        "model.tokenizer.quantizer.method: expected one of 'vq', 'ema', 'simvq', 'ibq', 'coda', 'gumbel', 'nsvq'",
    ),
    ({f"{QUANTIZER}.method": "simqv"}, "did you mean 'simvq'?"),
    (
        {f"{QUANTIZER}.codebok_size": "8"},
        "vqkit.Quantizer has no argument 'codebok_size'; did you mean 'codebook_size'?",
    ),
    (
        {QUANTIZER: "vqkit.Quantiser"},
        "did you mean 'Quantizer'?; choices: vqkit.BSQ, vqkit.CenteredFSQ, vqkit.CrossScaleQuantizer, vqkit.FSQ",
    ),
    (
        {f"{QUANTIZER}.estimator": "vqkit.RotationTrik"},
        "did you mean 'RotationTrick'?; choices: vqkit.DiVeQ, vqkit.EmbeddingStraightThrough",
    ),
    (
        {f"{QUANTIZER}.losses": '["vqkit.CodebookLoss"]'},
        "CodebookLoss sends a gradient to the codebook, but EMACodebook",
    ),
    ({f"{QUANTIZER}.dim": "16"}, "encoder.dim=32 and quantizer.dim=16"),
    ({"quantizer": "simqv"}, "did you mean 'simvq'?"),
    ({"config": "configs/quantizers/simvq.yaml"}, "write --quantizer simvq for it now"),
    ({"config": "configs/residual/single.yaml"}, "write --config configs/quantizers/single.yaml for it now"),
    (
        {"data": "trainers.audio.AudioFolderData", "data.downmix": "trainers.data.channels.LoudestChannel"},
        "is called trainers.audio.LoudestChannel now",
    ),
    ({"data": "trainers.data.images.ImageFolderData"}, "is called trainers.image.ImageFolderData now"),
    (
        {"trainer.callbacks": "trainers.callbacks.LinearSchedule"},
        "schedules: {NAME: {class_path: trainers.core.Linear, ",
    ),
    (
        {"trainer.callbacks": "[{class_path: trainers.callbacks.schedule.CosineSchedule, init_args: {batches: 9}}]"},
        "schedules: {NAME: {class_path: trainers.core.Cosine, ",
    ),
    ({"modle.learning_rate": "1"}, "did you mean 'model'?"),
    ({"trainer.max_stepps": "1"}, "did you mean 'trainer.max_steps'?"),
    ({"data.rsolution": "1"}, "did you mean 'resolution'?"),
    ({"data.repeat": "1"}, "did you mean 'repeats'?"),  # of a base class
    ({"data.root": "nowhere"}, "root='nowhere' is not a folder"),
    ({"data.root": None}, "data: needs root"),
    ({"data.root": os.fsdecode(b"caf\xe9")}, r"--data.root=caf\xe9 is not UTF-8"),
    ({"ckpt_path": "last"}, "last.ckpt does not exist"),
    ({"ckpt_path": "nowhere.ckpt"}, "ckpt_path='nowhere.ckpt': nowhere.ckpt does not exist"),
    ({"config": "configs/nowhere.yaml"}, "configs/nowhere.yaml"),
    ({"trainer.max_steps": "many"}, "trainer.max_steps"),
    ({"trainer.strategy": "ddp_spawn"}, "trainer.strategy=ddp_spawn: expected auto or ddp"),
    ({"trainer.strategy": "ddp_notebook"}, "trainer.strategy=ddp_notebook: expected auto or ddp"),
    ({"trainer.strategy": "fsdp"}, "trainer.strategy=fsdp: expected auto or ddp"),
]
ALIKE = {
    f"{QUANTIZER}.estimator",
    "trainer.callbacks",
    "config",
    "trainer.max_stepps",
    "data.rsolution",
    "trainer.strategy",
    f"{QUANTIZER}.codebok_size",
}
"""Whose like is among the others: they wait for the slow tests."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        pytest.param(o, m, id=f"{next(iter(o))}={m[:20]}", marks=[pytest.mark.slow] * (next(iter(o)) in ALIKE))
        for o, m in MISTAKES
    ],
)
def test_mistakes_are_explained_in_a_few_lines(cli, tmp_path, options, message, monkeypatch):
    monkeypatch.setattr("trainers.image.ImageFolderData._prepare", lambda _: pytest.fail("data were touched"))
    code, _, errors = cli("fit", **options)
    assert code == 2
    assert message in errors
    assert errors.startswith("error: ")
    assert "Traceback" not in errors
    assert len(errors.splitlines()) <= 6, errors
    assert not (tmp_path / "run").exists()


def test_slurm_does_not_start_a_run_again_by_itself(cli, monkeypatch):
    """The same command once more would be a second fit in the run's folder."""
    for name, value in {"NTASKS": "1", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(shutil, "which", lambda name: None)  # no warning that srun is there and was not used
    found = []
    monkeypatch.setattr(TokenizerCLI, "_run", lambda cli, *_: found.append(cli.trainer.strategy.cluster_environment))
    cli.done("fit", **{"trainer.strategy": "ddp"})
    (environment,) = found
    assert isinstance(environment, SLURMEnvironment) and not environment.auto_requeue


def test_help_names_every_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainers", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert {"fit", "validate", "test", "predict", "export"} <= set(capsys.readouterr().out.split())


def test_a_run_needs_a_configuration(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["trainers", "fit"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "such as --config configs/image/quickstart.yaml" in capsys.readouterr().err


def test_measuring_needs_a_checkpoint(cli):
    code, _, errors = cli("test")
    assert code == 2
    assert "ckpt_path='last'" in errors and "last.ckpt does not exist" in errors


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_explained(cli, tmp_path):
    """Damaged, or of another model."""
    cli.done("fit")
    config = (tmp_path / "run/config.yaml").read_bytes()
    for expected, steps in ((1, 5), (2, 3)):  # 3 are done already
        code, _, errors = cli("fit", ckpt_path="last", quantizer="simvq", **{"trainer.max_steps": steps})
        assert code == expected
        assert (tmp_path / "run/config.yaml").read_bytes() == config
        assert "last.ckpt: holds another model than this configuration: give the --config and --quantizer" in errors
    path = tmp_path / "run/checkpoints/last.ckpt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, output, errors = cli("fit", ckpt_path="last")
    assert code == 2
    assert "last.ckpt: entry" in errors and "is damaged: take another checkpoint" in errors
    assert "fit in" not in output


def test_a_folder_without_pictures_is_explained(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, errors = cli("fit", **{"data.root": tmp_path / "empty"})
    assert code == 2
    assert "no usable image" in errors


def test_what_is_said_before_training_decodes_nothing(cli, monkeypatch):
    def refuse(_):
        raise ValueError("decoded")

    monkeypatch.setattr("trainers.image.ImageFolderData._prepare", refuse)
    code, output, errors = cli("fit")
    assert code == 1 and "decoded" in errors
    assert "12 images" in output


def test_errors_of_a_run_leave_their_traceback_in_its_folder(cli, tmp_path):
    code, _, errors = cli("fit", **{"data.batch_size": 64})
    assert code == 1
    assert "do not fill a batch" in errors
    assert "Traceback" not in errors
    assert "Traceback" in (tmp_path / "run" / "traceback.txt").read_text()


def test_codes_of_all_levels_are_said():
    assert codes_in_words((1024,)) == "1024"
    assert codes_in_words((1024, 1024)) == "2 x 1024"
    assert codes_in_words((7, 20, 7, 7)) == "7 + 20 + 2 x 7"
