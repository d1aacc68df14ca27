"""Every file in configs/ runs a step, and every overlay swaps the quantizer and nothing else."""

import re
import sys
from pathlib import Path

import pytest
import yaml

from tests.few import few
from tests.trainers.pictures import draw_pictures
from tests.trainers.recordings import write_recordings
from trainers.run.cli import main

ROOT = Path(__file__).parents[2]
IMAGE_CONFIGS = sorted((ROOT / "configs" / "image").glob("*.yaml"))
AUDIO_CONFIGS = sorted((ROOT / "configs" / "audio").glob("*.yaml"))
AUDIO_QUICKSTART = ROOT / "configs" / "audio" / "quickstart.yaml"
STAGE_OVERLAYS = sorted((ROOT / "configs" / "residual").glob("*.yaml"))
SINGLE = ROOT / "configs" / "residual" / "single.yaml"
OVERLAYS = sorted((ROOT / "configs" / "quantizers").glob("*.yaml"))

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


@pytest.mark.parametrize("overlay", few(OVERLAYS, "ema", "fqgan"))
def test_overlay_runs_a_step(cli, overlay):
    cli(ROOT / "configs" / "image" / "quickstart.yaml", overlay)


@pytest.mark.parametrize("overlay", few(OVERLAYS, "ema", "grouped"))
@pytest.mark.parametrize("config", few(IMAGE_CONFIGS, "quickstart"))
def test_overlay_swaps_the_quantizer_and_nothing_else(config, overlay, pictures, monkeypatch, capsys):
    plain, swapped = (
        printed([config], pictures, monkeypatch, capsys),
        printed([config, overlay], pictures, monkeypatch, capsys),
    )
    parts = swapped["model"]["init_args"]["tokenizer"]["init_args"]
    old, new = plain["model"]["init_args"]["tokenizer"]["init_args"].pop("quantizer"), parts.pop("quantizer")
    assert plain == swapped
    assert new["init_args"]["channel_dim"] == old["init_args"]["channel_dim"]
    assert dim_of(new["init_args"]) == parts["encoder"]["init_args"]["dim"] == old["init_args"]["dim"]


def dim_of(arguments):
    """The size of the channel axis; stages share it, and groups add up to it."""
    if "group" in arguments:
        return arguments["num_groups"] * arguments["group"]["init_args"]["dim"]
    return arguments.get("stage", {"init_args": arguments})["init_args"]["dim"]


@pytest.mark.parametrize(
    ("earlier", "overlay"),
    [("rotation", "vq"), ("rotation", "ema"), ("rotation", "simvq"), ("fqgan", "grouped"), ("grouped", "fqgan")],
)
@pytest.mark.slow
def test_overlay_leaves_nothing_of_an_earlier_one(earlier, overlay, pictures, monkeypatch, capsys):
    """jsonargparse keeps the arguments of a class that is named again: overlays must undo them themselves."""
    config, folder = ROOT / "configs" / "image" / "quickstart.yaml", ROOT / "configs" / "quantizers"
    alone = printed([config, folder / f"{overlay}.yaml"], pictures, monkeypatch, capsys)
    after = printed([config, folder / f"{earlier}.yaml", folder / f"{overlay}.yaml"], pictures, monkeypatch, capsys)
    assert after == alone


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
            small[-1].write_text(yaml.safe_dump(shrunk(yaml.safe_load(path.read_text()))))
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


@pytest.mark.parametrize("overlay", few(STAGE_OVERLAYS, "ema"))
def test_stage_overlay_runs_two_steps(audio_cli, overlay):
    audio_cli(AUDIO_QUICKSTART, overlay)


@pytest.mark.parametrize("overlay", few(["fsq", "lfq", "simvq", "vq"], "fsq"))
def test_overlay_runs_on_sound(audio_cli, overlay):
    audio_cli(AUDIO_QUICKSTART, SINGLE, ROOT / "configs" / "quantizers" / f"{overlay}.yaml")


@pytest.mark.parametrize("config", few(["quickstart", "speech", "dac_24khz", "simvq_single_24khz"], "quickstart"))
def test_with_one_overlay_a_codec_streams(config, pictures, monkeypatch, capsys):
    path, overlay = ROOT / "configs/audio" / f"{config}.yaml", ROOT / "configs/streaming/causal.yaml"
    plain, causal = (printed(configs, pictures, monkeypatch, capsys) for configs in ([path], [path, overlay]))
    for part in ("encoder", "decoder"):
        ahead, back = (config["model"]["init_args"]["tokenizer"]["init_args"][part] for config in (plain, causal))
        assert not ahead["init_args"]["causal"] and back["init_args"]["causal"]
        ahead["init_args"]["causal"] = True
    assert causal == plain


OF_ANY_DIM = [path for path in OVERLAYS if not re.search(r"^ *dim:", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("overlay", few(OF_ANY_DIM, "fsq"))
def test_overlay_fits_the_audio_quickstart(overlay, pictures, monkeypatch, capsys):
    single = printed([AUDIO_QUICKSTART, SINGLE], pictures, monkeypatch, capsys)
    swapped = printed([AUDIO_QUICKSTART, SINGLE, overlay], pictures, monkeypatch, capsys)
    parts = swapped["model"]["init_args"]["tokenizer"]["init_args"]
    new = parts.pop("quantizer")
    del single["model"]["init_args"]["tokenizer"]["init_args"]["quantizer"]
    assert single == swapped
    assert dim_of(new["init_args"]) == parts["encoder"]["init_args"]["dim"]
    assert new["init_args"]["channel_dim"] == 1


METHODS_OF_STAGES = [path for path in STAGE_OVERLAYS if path != SINGLE]
RESIDUAL_CONFIGS = [path for path in AUDIO_CONFIGS if "vqkit.ResidualQuantizer" in path.read_text()]


@pytest.mark.parametrize("overlay", few(METHODS_OF_STAGES, "ema"))
def test_stage_overlay_swaps_the_method_and_nothing_else(overlay, pictures, monkeypatch, capsys):
    for config in RESIDUAL_CONFIGS[:2] if overlay.stem == "ema" else [AUDIO_QUICKSTART]:
        plain = printed([config], pictures, monkeypatch, capsys)
        swapped = printed([config, overlay], pictures, monkeypatch, capsys)
        old, new = (
            found["model"]["init_args"]["tokenizer"]["init_args"].pop("quantizer")["init_args"]
            for found in (plain, swapped)
        )
        assert plain == swapped
        stages = [arguments.pop("stage")["init_args"] for arguments in (old, new)]
        assert [old.pop("estimator"), new.pop("estimator")] and old == new
        for size in ("dim", "codebook_size", "channel_dim"):
            assert stages[0][size] == stages[1][size]


@pytest.mark.slow
def test_stage_overlay_leaves_nothing_of_an_earlier_one(pictures, monkeypatch, capsys):
    folder = ROOT / "configs" / "residual"
    for earlier, later in (("nsvq", "vq"), ("reinmax", "ema"), ("rotation", "factorized")):
        alone = printed([AUDIO_QUICKSTART, folder / f"{later}.yaml"], pictures, monkeypatch, capsys)
        both = [AUDIO_QUICKSTART, folder / f"{earlier}.yaml", folder / f"{later}.yaml"]
        assert printed(both, pictures, monkeypatch, capsys) == alone
