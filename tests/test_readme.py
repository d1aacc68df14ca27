"""README's snippets run: the Python as it stands, the commands on a small folder of drawn pictures and cut short."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_examples import load_example
from tests.trainers.pictures import draw_pictures
from tests.trainers.recordings import write_recordings
from trainers.run.cli import main

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import publish  # noqa: E402

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SHELL = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
]
SHORT = "--trainer.max_steps 2 --model.initialization_samples 64 --trainer.accelerator cpu "
SMALL = {
    "image": SHORT + "--data.resolution 16 --data.batch_size 4 "
    "--model.tokenizer.encoder.channels 32 --model.tokenizer.decoder.channels 32",
    "audio": SHORT + "--data.segment_seconds 0.1 --data.batch_size 4 "
    "--model.tokenizer.encoder.channels 8 --model.tokenizer.decoder.channels 8",
}
"""What makes a fit of the README quick, for pictures and for sound."""


def test_there_is_something_to_run() -> None:
    assert PYTHON and any(command.startswith("make") for command in SHELL)
    trained = [shlex.split(command)[3] for command in SHELL if command.startswith("python -m trainers")]
    coded = [shlex.split(command)[2] for command in SHELL if command.startswith("python examples/codec.py")]
    assert set(trained) == {"fit", "test", "predict"} and coded == ["encode", "decode"]


@pytest.mark.parametrize("block", PYTHON)
def test_python(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


@pytest.mark.parametrize("command", [command for command in SHELL if command.startswith("make")])
def test_make_knows_its_commands(command: str) -> None:
    planned = subprocess.run(["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stderr


def test_commands_in_their_order(tmp_path, monkeypatch, capfd) -> None:
    pictures, sounds = tmp_path / "pictures", tmp_path / "sounds"
    draw_pictures(pictures, 12)
    write_recordings(sounds, 12, sample_rate=16000)
    shutil.copyfile(sorted((ROOT / "assets/audio/eval").glob("*.flac"))[0], tmp_path / "speech.flac")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(ROOT)
    for command in SHELL:
        kind = "audio" if "configs/audio" in command else "image"
        folder = sounds if kind == "audio" else pictures
        words = command.replace("DIR", str(folder)).replace("runs/", f"{tmp_path}/").split()
        if command.startswith("python -m trainers"):
            extra = SMALL[kind].split() if words[3] == "fit" else []
            if "--ckpt_path" in words:
                extra += ["--trainer.max_steps", "3"]
            monkeypatch.setattr("sys.argv", ["trainers", *words[3:], "--runs", str(tmp_path), *extra])
            main()
        elif command.startswith("python examples/codec.py"):
            files = [
                str(tmp_path / word) if word.endswith((".flac", ".wav", ".safetensors")) else word for word in words
            ]
            monkeypatch.setattr("sys.argv", files[1:])
            load_example("codec").main()
    assert (tmp_path / "mine/metrics.json").is_file() and list((tmp_path / "mine/tokens").glob("*.safetensors"))
    assert "resuming from" in capfd.readouterr().out
    assert (tmp_path / "again.wav").stat().st_size > 32_000


def test_tables_are_those_of_the_records() -> None:
    """A figure that was typed by hand, or that its record has left behind, is found here."""
    for document in publish.DOCUMENTS:
        text = document.read_text()
        assert "<!-- table" in text and publish.rendered(text) == text, document.name


@pytest.mark.parametrize(
    "document",
    [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))],
    ids=lambda path: path.name,
)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("config", sorted((ROOT / "docs/results").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_configs_name_no_place_of_a_machine(config: Path) -> None:
    assert not re.search(r"(^|\s)/\w", config.read_text())
