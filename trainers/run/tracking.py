"""Tracking by Weights & Biases, which never prompts: without an account or a network it stays in the run folder."""

import netrc
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class RunLogger(WandbLogger):
    """A W&B run with its files inside the run folder, offline where it has to be.

    `WANDB_MODE` (online, offline, disabled) overrides what is found out here.

    Args:
        folder: the run folder.
        name: of the run.
        project: W&B project.
        id: of the run; None makes one.
        job_type: the command, such as fit or test.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        name: str,
        project: str = "vqkit",
        id: str | None = None,
        job_type: str | None = None,
    ) -> None:
        self.offline_because = reason_to_stay_offline() if getattr(rank_zero_only, "rank", 0) == 0 else None
        mode: dict[str, Any] = {"mode": "offline"} if self.offline_because else {}
        super().__init__(
            name=name,
            project=project,
            id=id,
            job_type=job_type,
            save_dir=folder,
            offline=self.offline_because is not None,
            settings=wandb.Settings(silent=True, console="off"),
            **mode,
        )
        # Lightning passes this on even when it is not set, and W&B then warns that it has no effect.
        self._wandb_init.pop("anonymous", None)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run; started, and its folder made, when it is first asked for."""
        if self._experiment is None and self.save_dir:
            Path(self.save_dir).mkdir(parents=True, exist_ok=True)
        return super().experiment

    @property
    def whereabouts(self) -> str:
        """One line: where to look at the run. Empty when tracking is disabled."""
        run = self._experiment
        if run is None or run.disabled:
            return ""
        if self.offline_because is None:
            return f"W&B run: {run.url}"
        return f"W&B run, offline because {self.offline_because}; to upload it: wandb sync {Path(run.dir).parent}"


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
