"""Every file in configs/ runs a step, and every overlay swaps the quantizer and nothing else."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.trainers.pictures import draw_pictures
from trainers.cli import main

ROOT = Path(__file__).parents[2]
IMAGE_CONFIGS = sorted((ROOT / "configs" / "image").glob("*.yaml"))
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


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_overlay_runs_a_step(cli, overlay):
    cli(ROOT / "configs" / "image" / "quickstart.yaml", overlay)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("config", IMAGE_CONFIGS, ids=lambda path: path.stem)
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
