"""What lies where in the folder of a run: its checkpoints, and the id in its record."""

import hashlib
from pathlib import Path

from vqkit.saving.annotations import fits
from vqkit.saving.files import read_json

RECORD = "run.json"
CONFIG = "config.yaml"
RUNS = Path("runs")
"""Folder of the run folders, unless `--runs` names another."""


def find_run(asked: Path) -> Path:
    """A run folder, where its name alone is given too: `mine` is `runs/mine`, unless there is a folder `mine`."""
    folder = RUNS / asked
    return folder if not asked.exists() and len(asked.parts) == 1 and folder.is_dir() else asked


def find_checkpoint(folder: Path, asked: str, *, argument: str = "ckpt_path") -> Path:
    """The file of a checkpoint.

    Args:
        folder: of the run.
        asked: `last`, `best` or a file.
        argument: that asks, for the message.

    Raises:
        FileNotFoundError: there is no such checkpoint; the message names those of the run.
    """
    checkpoints = folder / "checkpoints"
    path = checkpoints / f"{asked}.ckpt" if asked in ("last", "best") else Path(asked)
    if not path.is_file():
        there = ", ".join(sorted(map(str, checkpoints.glob("*.ckpt")))) or f"none in {checkpoints}"
        raise FileNotFoundError(f"{argument}={asked!r}: {path} does not exist; checkpoints of this run: {there}")
    return path


def folder_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in; None where it lies elsewhere."""
    parent = checkpoint.absolute().parent
    return parent.parent if parent.name == "checkpoints" else None


def identity(folder: Path) -> str | None:
    """The id of the run in a folder; None where there is no run.

    `run.json` has it. A folder of an earlier version has none: its id is made of its configuration, so that all ranks
    and all commands find the same one.

    Raises:
        ValueError: `run.json` is damaged; the message names it.
    """
    record, config = folder / RECORD, folder / CONFIG
    if record.is_file():
        content = read_json(record)
        if not fits(content.get("id"), str) or not content["id"].isalnum():
            raise ValueError(f"{record}: 'id' is {content.get('id')!r}: expected letters and digits")
        return str(content["id"])
    return hashlib.sha256(config.read_bytes()).hexdigest()[:8] if config.is_file() else None
