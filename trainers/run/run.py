"""What a run is: a name, a folder in which everything lies that it writes, and the weights that it starts from."""

import hashlib
import json
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lightning.pytorch.trainer.states import TrainerFn

from vqkit.saving.files import named


@dataclass(frozen=True)
class Run:
    """One command of a run; the configuration says what is asked for, this says where it is.

    Attributes:
        command: fit, validate, test or predict.
        id: of the run, the same for all of its commands; eight hexadecimal digits, as W&B takes them.
        name: of the run, and of its folder.
        project: of W&B.
        folder: of everything that it writes.
        checkpoint: whose weights the command starts from; None for new ones.
    """

    command: str
    id: str
    name: str
    project: str
    folder: Path
    checkpoint: Path | None

    @classmethod
    def of(cls, command: str, *, runs: str, name: str, project: str, ckpt_path: str | None) -> Self:
        """Find the folder and the checkpoint.

        Args:
            command: fit, validate, test or predict.
            runs: folder of the run folders.
            name: of the run.
            project: of W&B.
            ckpt_path: `last`, `best` or a file. None is new weights for fit, and for all else the best ones, or the
                last where no validation was.

        Raises:
            FileNotFoundError: there is no such checkpoint; the message names those of the run.
        """
        folder = Path(runs) / name
        if ckpt_path is None and command == TrainerFn.FITTING:
            return cls(command, secrets.token_hex(4), name, project, folder, None)
        checkpoints = folder / "checkpoints"
        names = {None: ["best", "last"], "best": ["best"], "last": ["last"]}.get(ckpt_path)
        candidates = [checkpoints / f"{name}.ckpt" for name in names] if names else [Path(str(ckpt_path))]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            there = ", ".join(sorted(map(str, checkpoints.glob("*.ckpt")))) or f"none in {checkpoints}"
            what = f"ckpt_path={ckpt_path!r}: " if ckpt_path else f"{command} needs a checkpoint, and "
            raise FileNotFoundError(f"{what}{candidates[-1]} does not exist; checkpoints of this run: {there}")
        return cls(command, identity(folder) or secrets.token_hex(4), name, project, folder, found)

    @property
    def overwrites(self) -> bool:
        """Whether a fit from new weights finds an earlier run in its folder."""
        return self.checkpoint is None and (self.folder / "checkpoints" / "last.ckpt").is_file()


def identity(folder: Path) -> str | None:
    """The id of the run in a folder; None where there is no run.

    `run.json` has it. A folder of an earlier version has none: its id is made of its configuration, so that all ranks
    and all commands find the same one.

    Raises:
        ValueError: `run.json` is damaged; the message names it.
    """
    record, config = folder / "run.json", folder / "config.yaml"
    if record.is_file():
        with named(record):
            return str(json.loads(record.read_text())["id"])
    return hashlib.sha256(config.read_bytes()).hexdigest()[:8] if config.is_file() else None
