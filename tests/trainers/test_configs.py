"""Every file in configs/ runs a step, and an overlay changes what it is about and nothing else."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.few import few
from tests.trainers.pictures import draw_pictures
from tests.trainers.recordings import write_recordings
from trainers.run.bases import read_config
from trainers.run.cli import main

ROOT = Path(__file__).parents[2]
IMAGE_CONFIGS = sorted((ROOT / "configs" / "image").glob("*.yaml"))
AUDIO_CONFIGS = sorted((ROOT / "configs" / "audio").glob("*.yaml"))
AUDIO_QUICKSTART = ROOT / "configs" / "audio" / "quickstart.yaml"
SINGLE = ROOT / "configs" / "quantizers" / "single.yaml"
OVERLAYS = [path for path in sorted((ROOT / "configs" / "quantizers").glob("*.yaml")) if path != SINGLE]

SMALL = {
    "data.resolution": 32,
    "data.batch_size": 2,
    "data.num_workers": 0,
    "model.tokenizer.encoder.channels": 32,
    "model.tokenizer.encoder.num_res_blocks": 1,
    "model.tokenizer.decoder.channels": 32,
    "model.tokenizer.decoder.num_res_blocks": 1,
    "model.initialization_samples": 32,
    "trainer.accelerator": "cpu",
    "trainer.fast_dev_run": 1,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pictures"
    draw_pictures(folder, 6)
    return folder


@pytest.fixture
def cli(tmp_path, pictures, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(ROOT)

    def run(*configs, **options):
        options = {"runs": tmp_path, "data.root": pictures, "data.validation_root": "null", **SMALL, **options}
        words = [f"--config={path}" for path in configs] + [f"--{key}={value}" for key, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["trainers", "fit", *words])
        main()

    return run


@pytest.mark.parametrize("config", IMAGE_CONFIGS, ids=lambda path: path.stem)
def test_config_runs_a_step(cli, config):
    # Sizes of the codebook are kept small: with this data there is nothing to fill a large one with.
    cli(config, **{"model.tokenizer.quantizer.codebook_size": 16})


@pytest.mark.parametrize("overlay", few(OVERLAYS, "fqgan"))
def test_overlay_runs_a_step(cli, overlay):
    cli(ROOT / "configs" / "image" / "quickstart.yaml", overlay)


@pytest.mark.parametrize("word", few(["simvq", "fsq"], "fsq"))
def test_swapped_quantizer_runs_a_step(cli, word):
    cli(ROOT / "configs" / "image" / "quickstart.yaml", quantizer=word)


@pytest.mark.parametrize(
    ("config", "overlay"),
    [(config, overlay) for config in IMAGE_CONFIGS for overlay in OVERLAYS] + [(AUDIO_QUICKSTART, SINGLE)],
    ids=lambda path: path.stem,
)
def test_overlay_swaps_the_quantizer_and_nothing_else(config, overlay, pictures, monkeypatch, capsys):
    plain, swapped = (printed(configs, pictures, monkeypatch, capsys) for configs in ([config], [config, overlay]))
    parts, swapped_parts = (made["model"]["init_args"]["tokenizer"]["init_args"] for made in (plain, swapped))
    old, new = parts.pop("quantizer")["init_args"], swapped_parts.pop("quantizer")["init_args"]
    assert plain == swapped
    assert new["channel_dim"] == old["channel_dim"]
    assert dim_of(new) == parts["encoder"]["init_args"]["dim"] == dim_of(old)


def dim_of(arguments):
    """The size of the channel axis; stages share it, and groups add up to it."""
    if "group" in arguments:
        return arguments["num_groups"] * arguments["group"]["init_args"]["dim"]
    return arguments.get("stage", {"init_args": arguments})["init_args"]["dim"]


def printed(configs, pictures, monkeypatch, capsys):
    words = [f"--config={path}" for path in configs] + [f"--data.root={pictures}", "--print_config"]
    monkeypatch.setattr(sys, "argv", ["trainers", "fit", *words])
    with pytest.raises(SystemExit):
        main()
    return yaml.safe_load(capsys.readouterr().out)


# ---------------------------------------------------------------------- audio

SMALL_SOUND = {
    "data.segment_seconds": 0.2,
    "data.batch_size": 2,
    "data.num_workers": 0,
    "data.max_evaluation_seconds": 0.5,
    "model.initialization_samples": 16,
    "trainer.accelerator": "cpu",
    "trainer.fast_dev_run": 2,
}

SHRUNK = {
    "channels": lambda old: old if isinstance(old, list) else 4,  # ESC's, on which its codebooks' sizes depend
    "num_heads": lambda old: old if isinstance(old, list) else 2,
    "num_layers": lambda _: 1,
    "num_stages": lambda old: min(old, 3),
    "depth": lambda _: 1,
    "codebook_size": lambda _: 16,
    "pretraining_steps": lambda _: 1,
    "start_step": lambda _: 1,
}
"""What a model is made small by, wherever it stands in a configuration."""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "recordings"
    write_recordings(folder, 6, sample_rate=16000)
    return folder


@pytest.fixture
def audio_cli(tmp_path, recordings, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(ROOT)

    def run(*configs, **options):
        options = {"runs": tmp_path, "data.root": recordings, "data.validation_root": "null", **SMALL_SOUND, **options}
        small = []
        for path in configs:
            small.append(tmp_path / f"{path.parent.name}_{path.name}")
            small[-1].write_text(yaml.safe_dump(shrunk(read_config(path))))
        words = [f"--config={path}" for path in small] + [f"--{key}={value}" for key, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["trainers", "fit", *words])
        main()

    return run


def shrunk(config):
    if isinstance(config, list):
        return [shrunk(item) for item in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_path", "").endswith("Discriminator"):
        return config | {"init_args": config.get("init_args", {}) | {"channels": 1}}
    return {key: SHRUNK[key](value) if key in SHRUNK else shrunk(value) for key, value in config.items()}


@pytest.mark.parametrize("config", few(AUDIO_CONFIGS, "quickstart", "mimi_24khz"))
def test_audio_config_runs_two_steps(audio_cli, config):
    audio_cli(config)


@pytest.mark.parametrize("word", few(["simvq", "nsvq", "reinmax", "fsq"], "reinmax"))
def test_swapped_stages_run_two_steps(audio_cli, word):
    audio_cli(AUDIO_QUICKSTART, quantizer=word)


def test_one_codebook_in_place_of_stages_runs_two_steps(audio_cli):
    audio_cli(AUDIO_QUICKSTART, SINGLE, quantizer="lfq")


@pytest.mark.parametrize("config", few(["quickstart", "speech", "dac_24khz", "simvq_single_24khz"], "quickstart"))
def test_with_one_overlay_a_codec_streams(config, pictures, monkeypatch, capsys):
    path, overlay = ROOT / "configs/audio" / f"{config}.yaml", ROOT / "configs/streaming/causal.yaml"
    plain, causal = (printed(configs, pictures, monkeypatch, capsys) for configs in ([path], [path, overlay]))
    for part in ("encoder", "decoder"):
        ahead, back = (config["model"]["init_args"]["tokenizer"]["init_args"][part] for config in (plain, causal))
        assert not ahead["init_args"]["causal"] and back["init_args"]["causal"]
        ahead["init_args"]["causal"] = True
    assert causal == plain


def test_a_config_lies_over_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "model: {class_path: A, init_args: {x: 1, y: [1, 2]}}\ndata: {class_path: B, init_args: {x: 1}}\nname: base\n"
    )
    (tmp_path / "own.yaml").write_text(
        "base: base.yaml\nmodel.init_args.y: [3]\ndata: {class_path: C}\ntrainer.max_steps: 2\n"
    )
    assert read_config(tmp_path / "own.yaml") == {
        "model": {"class_path": "A", "init_args": {"x": 1, "y": [3]}},
        "data": {"class_path": "C"},
        "name": "base",
        "trainer": {"max_steps": 2},
    }
