"""The command line in this process, on a few pictures."""

import os
import sys
from pathlib import Path

import pytest

from tests.trainers.pictures import draw_pictures
from trainers.run.cli import main

ROOT = Path(__file__).parents[2]

TINY = {
    "data.resolution": 16,
    "data.batch_size": 4,
    "model.tokenizer.encoder.channels": 32,
    "model.tokenizer.decoder.channels": 32,
    "model.tokenizer.quantizer.codebook_size": 32,
    "model.initialization_samples": 64,
    "model.warmup_steps": 2,
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 3,
    "trainer.log_every_n_steps": 1,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pictures"
    draw_pictures(folder, 12)
    (folder / "011.png").rename(folder / os.fsdecode(b"caf\xe9\n.png"))  # a name that is no text
    return folder


@pytest.fixture
def cli(tmp_path, pictures, monkeypatch, capfd):
    """Runs a command in this process; returns exit code, output and errors."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(ROOT)

    def run(command, *arguments, config="configs/image/quickstart.yaml", **options):
        options = {"config": config, "data.root": pictures, "name": "run", "runs": tmp_path, **TINY, **options}
        words = [f"--{key}={value}" for key, value in options.items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["trainers", command, *words, *arguments])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
