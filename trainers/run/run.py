"""What a run is: a name, a folder in which everything lies that it writes, and the weights that it starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lightning.pytorch.trainer.states import TrainerFn


@dataclass(frozen=True)
class Run:
    """One command of a run; the configuration says what is asked for, this says where it is.

    Attributes:
        name: of the run, and of its folder.
        project: of W&B.
        folder: of everything that it writes.
        checkpoint: whose weights the command starts from; None for new ones.
    """

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
            return cls(name, project, folder, None)
        checkpoints = folder / "checkpoints"
        names = {None: ["best", "last"], "best": ["best"], "last": ["last"]}.get(ckpt_path)
        candidates = [checkpoints / f"{name}.ckpt" for name in names] if names else [Path(str(ckpt_path))]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            there = ", ".join(sorted(map(str, checkpoints.glob("*.ckpt")))) or f"none in {checkpoints}"
            what = f"ckpt_path={ckpt_path!r}: " if ckpt_path else f"{command} needs a checkpoint, and "
            raise FileNotFoundError(f"{what}{candidates[-1]} does not exist; checkpoints of this run: {there}")
        return cls(name, project, folder, found)

    @property
    def overwrites(self) -> bool:
        """Whether a fit from new weights finds an earlier run in its folder."""
        return self.checkpoint is None and (self.folder / "checkpoints" / "last.ckpt").is_file()
