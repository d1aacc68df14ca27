"""The command line in this process, on a few pictures."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

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


def examples_of(guide):
    """The YAML that stands in a page of docs/."""
    found = re.findall(r"```yaml\n(.*?)```", (ROOT / f"docs/{guide}.md").read_text(), re.DOTALL)
    assert found
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "pictures"
    draw_pictures(folder, 12)
    (folder / "011.png").rename(folder / os.fsdecode(b"caf\xe9\n.png"))  # a name that is no text
    return folder


@pytest.fixture(scope="module")
def speech():
    """Some seconds of a person, (T,) at 16 kHz."""
    import soundfile  # which tests of pictures run without

    return torch.from_numpy(soundfile.read(ROOT / "assets/audio/eval/librivox_0880.flac", dtype="float32")[0])


def run_command(*words, **options):
    """Runs a command; options follow its other words."""
    words = [*map(str, words), *(f"--{key}={value}" for key, value in options.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["trainers", *words])
        main()


@pytest.fixture
def quiet(monkeypatch):
    """In the folder of the repository, and without a service of logs."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(ROOT)


class Command:
    """A command line in this process."""

    def __init__(self, capfd, **options):
        self.capfd, self.options = capfd, options

    def __call__(self, command, *arguments, **options):
        """Exit code, output and errors; an option that is None is not given."""
        words = [f"--{key}={value}" for key, value in (self.options | options).items() if value is not None]
        self.capfd.readouterr()
        try:
            run_command(command, *words, *arguments)
            code = 0
        except SystemExit as exit:
            code = exit.code
        captured = self.capfd.readouterr()
        return code, captured.out, captured.err

    def done(self, command, *arguments, **options):
        """The output of one that succeeds."""
        code, output, errors = self(command, *arguments, **options)
        assert code == 0, errors
        return output


@pytest.fixture
def cli(tmp_path, pictures, quiet, capfd):
    """The quickstart on a few pictures."""
    start = {"config": "configs/image/quickstart.yaml", "data.root": pictures, "name": "run", "runs": tmp_path}
    return Command(capfd, **start, **TINY)


def recorded(run):
    """Options of a command to which a run's own configuration says everything."""
    return {"config": run / "config.yaml", **dict.fromkeys([*TINY, "data.root", "name", "runs"])}
