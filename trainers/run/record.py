"""`config.yaml` of a run: what it keeps of the configuration, and what a resumed run takes of it."""

import copy
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, Namespace, get_loader
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from trainers.run.changes import changes
from trainers.run.folders import CONFIG, folder_of
from trainers.run.run import Run
from vqkit.saving.files import write_whole

INIT = ("init_from", "init_parts", "init_hash")
"""Arguments that say what weights a new run begins with."""


class SaveRunConfig(SaveConfigCallback):
    """Makes the run folder that of a fit when its training starts, and writes `config.yaml` into it.

    With this file alone the run can be tested, used and repeated. It has neither `ckpt_path` nor `overwrite`: a
    repetition starts anew, and replaces nothing.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, *, run: Run, **arguments: Any) -> None:
        super().__init__(parser, _recorded(config), **arguments)
        self.run = run

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: what fails before the first step, or a later test, must not replace the files of the run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, now that everything is built and the state of a resumed run was taken."""
        if trainer.is_global_zero:
            self.run.begin()
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it whole, where Lightning would leave half a file on a full disk."""
        text = self.parser.dump(self.config, skip_none=False)
        write_whole(Path(trainer.default_root_dir) / self.config_filename, text.encode())


def as_recorded(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """A configuration of fit as `config.yaml` has it."""
    return get_loader("yaml")(parser.dump(_recorded(config), skip_none=False))


def settle(asked: Namespace, run: Run, parser: LightningArgumentParser) -> list[str]:
    """Complete what is recorded of the weights that a run began with, in the configuration.

    Args:
        asked: configuration of fit, which is changed.
        run: that it is for.
        parser: of fit.

    Returns:
        How a resumed run differs from its record.

    Raises:
        ValueError: the weights that a resumed run began with are others, or something else that was settled differs.
    """
    if run.checkpoint is None:
        asked["init_hash"] = run.origin and run.origin.hash
        return []
    home = folder_of(run.checkpoint)
    record = home / CONFIG if home and (home / CONFIG).is_file() else None
    old = get_loader("yaml")(record.read_text()) if record else {}
    for name in INIT:
        if asked[name] not in (None, old.get(name)):
            raise ValueError(
                f"{name}={asked[name]!r} starts a new run, and --ckpt_path {asked['ckpt_path']} goes on with one "
                f"({name}={old.get(name)!r}) whose weights are in its checkpoint: give one of the two"
            )
        asked[name] = old.get(name)
    if not record or not run.progress:
        return []
    new = as_recorded(parser, asked)
    return changes(old, new, initialized=run.progress.initialized, defaults=_completed(parser, old))


def _completed(parser: LightningArgumentParser, recorded: dict[str, Any]) -> dict[str, Any]:
    """A record with the defaults of what it does not have; nothing where it has what there is no more."""
    try:
        return as_recorded(parser, parser.parse_object(copy.deepcopy(recorded)))  # which it changes
    except ArgumentError:
        return {}


def _recorded(config: Namespace) -> Namespace:
    return Namespace({name: value for name, value in {**config, "ckpt_path": None}.items() if name != "overwrite"})
