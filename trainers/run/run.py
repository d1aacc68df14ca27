"""What a run is: an id, a name, a folder in which everything lies that it writes, and the weights it starts from."""

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from lightning.pytorch.trainer.states import TrainerFn

from trainers.core.checkpoints import Progress, read_checkpoint
from trainers.run.folders import CONFIG, RECORD, find_checkpoint, folder_of, identity
from trainers.run.origin import Origin, saved_folder
from vqkit.saving.files import named, read_json, write_json
from vqkit.version import __version__

OUTPUTS = ("checkpoints", "tokenizer", "tokens", "metrics.json")
"""What makes a folder that of an earlier run, which nothing may replace unasked."""
SIDE_OUTPUTS = (
    CONFIG,
    RECORD,
    "comparison.json",
    "reconstructions.png",
    "codebook.png",
    "samples",
    "sounds",
    "traceback.txt",
)
"""What goes with them. The histories in `wandb` stay: the id of the run is in their names."""


@dataclass(frozen=True)
class Run:
    """One command of a run; the configuration says what is asked for, this says where it is.

    Attributes:
        command: fit, validate, test or predict.
        id: of the run, the same for all of its commands; eight hexadecimal digits, as W&B takes them. Each rank of a
            fit of new weights has its own, and that of the first one counts: it alone writes `run.json`, checkpoints
            and the W&B run.
        name: of the run, and of its folder.
        project: of W&B.
        folder: of everything that it writes.
        checkpoint: whose weights the command starts from; None for new ones.
        progress: of the training that wrote the checkpoint; None for new weights.
        weights_run: id of the run that made the weights; None where the checkpoint does not say.
        origin: trained weights that a new run takes, or a saved tokenizer; None for new ones, and where there is a
            checkpoint.
        overwrites: whether the outputs of an earlier run make place for those of this one.
    """

    command: str
    id: str
    name: str
    project: str
    folder: Path
    checkpoint: Path | None = None
    progress: Progress | None = None
    weights_run: str | None = None
    origin: Origin | None = None
    overwrites: bool = False

    @classmethod
    def of(
        cls,
        command: str,
        *,
        runs: str,
        name: str,
        project: str,
        ckpt_path: str | None,
        init_from: str | None = None,
        init_parts: Sequence[str] | None = None,
        init_hash: str | None = None,
        overwrite: bool = False,
        dry: bool = False,
    ) -> Self:
        """Find the folder, the checkpoint and the id.

        Args:
            command: fit, validate, test or predict.
            runs: folder of the run folders.
            name: of the run.
            project: of W&B.
            ckpt_path: `last`, `best` or a file; for all but fit also the folder of a saved tokenizer, or a name of
                published weights. None is new weights for fit, and the last ones for all else.
            init_from: what a fit of new weights starts from; see `Origin.of`.
            init_parts: that are taken from it; None for all of the tokenizer.
            init_hash: SHA-256 that its file must have; None takes any.
            overwrite: a fit replaces an earlier run in its folder.
            dry: nothing will be written.

        Raises:
            FileNotFoundError: there is no such checkpoint; the message names those of the run.
            ValueError: the checkpoint is damaged, a fit would replace another run unasked, or there is nothing of which
                `init_parts` or `init_hash` could be.
        """
        folder = Path(runs) / name
        fitting = command == TrainerFn.FITTING
        checkpoint = progress = weights_run = origin = None
        if not fitting and ckpt_path is not None and (saved := saved_folder(ckpt_path)):
            origin = Origin.of(str(saved))
            weights_run = origin.run
        elif ckpt_path is not None or not fitting:
            checkpoint = find_checkpoint(folder, ckpt_path or "last")
            content = read_checkpoint(checkpoint)  # damage is found before anything is built or written
            with named(checkpoint):
                progress = Progress.of(content)
            home = folder_of(checkpoint)
            weights_run = progress.run or (identity(home) if home else None)
        there = [output for output in OUTPUTS if (folder / output).exists()]
        here = identity(folder)
        # A folder of checkpoints alone, whose record was lost, is still theirs.
        unnamed = here is None and checkpoint is not None and folder_of(checkpoint) == folder.absolute()
        own = checkpoint is not None and (unnamed or (here is not None and weights_run == here))
        if fitting and own and overwrite:
            raise ValueError(
                f"--overwrite removes the run in {folder}, and --ckpt_path {ckpt_path} goes on with it: give one"
            )
        if fitting and there and not own and not overwrite and not dry:
            raise ValueError(
                f"{folder} holds an earlier run ({', '.join(there)}): go on with it by --ckpt_path last, replace it by "
                "--overwrite, or keep it and give another --name"
            )
        if fitting and checkpoint is None and init_from is not None:
            origin = Origin.of(init_from, parts=init_parts, expected_hash=init_hash)
        elif fitting and init_from is None and (init_parts is not None or init_hash is not None):
            raise ValueError(
                f"init_parts={init_parts}, init_hash={init_hash}: of which weights? Give --init_from, or leave both out"
            )
        new = None if fitting and not own else here or weights_run
        return cls(
            command,
            new or secrets.token_hex(4),
            name,
            project,
            folder,
            checkpoint,
            progress,
            weights_run,
            origin,
            fitting and overwrite and bool(there),
        )

    def begin(self) -> None:
        """Make the folder that of this run, as its training starts: an earlier run makes place, `run.json` is written.

        A resumed run keeps the file that it has.
        """
        if self.overwrites:
            for path in [self.folder / output for output in (*OUTPUTS, *SIDE_OUTPUTS)]:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        record = self.folder / RECORD
        if not record.is_file() or read_json(record).get("id") != self.id:
            write_json(record, self._record())

    def _record(self) -> dict[str, Any]:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"id": self.id, "name": self.name, "project": self.project}
        origin = {} if self.origin is None else {"init_from": self.origin.record()}
        return facts | {"vqkit_version": __version__, "started": started} | origin
