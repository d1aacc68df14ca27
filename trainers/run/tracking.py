"""Tracking by Weights & Biases, which never prompts: without an account or a network it stays in the run folder."""

import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from trainers.run.history import STEP, history, records


class RunLogger(WandbLogger):
    """A W&B run with its files inside the run folder, offline where it has to be.

    All parts of a fit, started, killed and resumed, are one W&B run. Every other command is a run of its own in the
    group of the fit. `WANDB_MODE` (online, offline, disabled) overrides what is found out here.

    W&B takes no step back: rows are appended, whatever `trainer/global_step` they have. A resumed fit repeats the steps
    between its checkpoint and the end of the part before, so what that part has logged, with the same value, is not
    logged again. A value that differs is: the curve then shows both.

    Args:
        folder: the run folder.
        name: of the run.
        project: W&B project.
        id: of the run; None makes one.
        job_type: the command; all but fit get an id of their own.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str,
        project: str = "vqkit",
        id: str | None = None,
        job_type: str = "fit",
    ) -> None:
        self.offline_because = reason_to_stay_offline() if getattr(rank_zero_only, "rank", 0) == 0 else None
        mode: dict[str, Any] = {"mode": "offline"} if self.offline_because else {}
        super().__init__(
            name=name,
            project=project,
            id=id if job_type == "fit" else None,
            group=id or name,
            job_type=job_type,
            save_dir=folder,
            offline=self.offline_because is not None,
            settings=wandb.Settings(silent=True, console="off"),
            **mode,
        )
        # Lightning passes this on even when it is not set, and W&B then warns that it has no effect.
        self._wandb_init.pop("anonymous", None)
        self._logged_before: dict[int, dict[str, float]] | None = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; started, and its folder made, when it is first asked for. Without it training goes on."""
        if self._experiment is None:
            try:
                Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)
                return super().experiment
            except (OSError, wandb.Error) as error:
                rank_zero_warn(f"nothing is tracked, because W&B cannot start in {self.save_dir}: {error}")
                self._experiment = wandb.init(mode="disabled")
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log what no earlier part of the run has logged."""
        if self._logged_before is None:
            self._logged_before = self._rows_from(step or 0)
        known = self._logged_before.get(step, {}) if step is not None else {}
        new = {name: value for name, value in metrics.items() if known.get(name) != value}
        if new:
            super().log_metrics(new, step)

    def _rows_from(self, step: int) -> dict[int, dict[str, float]]:
        """What earlier parts have logged at a step and after it."""
        rows: dict[int, dict[str, float]] = {}
        run = self.experiment
        for file in sorted(Path(str(self.save_dir)).glob(f"wandb/*run-*/run-{run.id}.wandb")):
            if file.parent != Path(run.dir).parent:
                for row in history(file):
                    if row.get(STEP, -1) >= step:
                        rows.setdefault(int(row[STEP]), {}).update(row)
        return rows

    @property
    def whereabouts(self) -> str:
        """One line: where to look at the run. Empty when tracking is disabled."""
        run = self._experiment
        if run is None or run.disabled:
            return ""
        if self.offline_because is None:
            return f"W&B run: {run.url}"
        folder = Path(run.dir).parent
        parts = folder.parent / f"*-{run.id}*"  # two that start in one second get a number behind the id
        shown = parts if len(list(folder.parent.glob(parts.name))) > 1 else folder
        return f"W&B run, offline because {self.offline_because}; to upload it: wandb sync {shown}"


def finish(exit_code: int) -> None:
    """End the W&B run of this process, if there is one; warn where its file misses what the disk did not take."""
    if wandb.run is None:
        return
    file = None if wandb.run.disabled else Path(wandb.run.settings.sync_file)
    wandb.finish(exit_code=exit_code)
    wandb.teardown()  # whose process may still write
    if file is not None and all(record.WhichOneof("record_type") != "exit" for record in records(file)):
        rank_zero_warn(f"{file} ends before the run: the disk was full, or the file could not be written")


def reason_to_stay_offline(*, timeout_seconds: float = 3.0) -> str | None:
    """Why W&B cannot be reached, or None if it can; looks for a key and then for the server."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return f"WANDB_MODE={mode}" if mode in ("offline", "dryrun") else None
    settings = wandb.setup().settings
    server = urlsplit(settings.base_url)
    if not (settings.api_key or os.environ.get("WANDB_API_KEY") or _has_netrc_entry(server.hostname or "")):
        return "there is no API key (wandb login)"
    try:
        urllib.request.urlopen(settings.base_url, timeout=timeout_seconds).close()
    except urllib.error.HTTPError:
        return None  # It answered.
    except OSError as error:
        return f"{server.hostname} cannot be reached ({getattr(error, 'reason', error)})"
    return None


def _has_netrc_entry(host: str) -> bool:
    candidates = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    for candidate in filter(None, candidates):
        try:
            if netrc.netrc(os.path.expanduser(candidate)).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
