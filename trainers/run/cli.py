"""The command line: one run folder, a tracked run, checkpoints that are found again, and errors in a line."""

import itertools
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TextIO

import wandb
from jsonargparse import ArgumentError, Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from trainers.callbacks import (
    BestCheckpoint,
    CodebookReport,
    LastCheckpoint,
    Reconstructions,
    SaveTokenizer,
    StepProgress,
    TokenWriter,
)
from trainers.core.checkpoints import read_checkpoint
from trainers.core.task import TokenizerTask
from trainers.run import bases
from trainers.run.explain import explain, suggest
from trainers.run.migration import renamed_overlay
from trainers.run.run import Run
from trainers.run.stops import StopAtSignal, Stopped
from trainers.run.swap import WORDS, swapped
from trainers.run.tracking import RunLogger
from vqkit import AudioTokenizer
from vqkit.saving.config import weights_follow
from vqkit.saving.files import write_whole

TRAINER_DEFAULTS = {
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 1,
    "use_distributed_sampler": False,  # our loaders divide their samples among the ranks themselves
    "enable_model_summary": False,
}


class UserError(Exception):
    """A mistake that its message explains, and a traceback would not.

    Args:
        message: for a person.
        code: exit status of the process.
    """

    def __init__(self, message: str, *, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class SaveRunConfig(SaveConfigCallback):
    """Writes `config.yaml` of fit into the run folder; with it alone the run can be tested, used and repeated.

    It has no `ckpt_path`: a repetition starts anew.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **arguments: Any) -> None:
        super().__init__(parser, Namespace({**config, "ckpt_path": None}), **arguments)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Nothing yet: a checkpoint that does not fit, or a later test, must not replace the file of the run."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, now that the weights of a resumed run were taken."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write it whole, where Lightning would leave half a file on a full disk."""
        text = self.parser.dump(self.config, skip_none=False)
        write_whole(Path(trainer.default_root_dir) / self.config_filename, text.encode())


class TokenizerCLI(LightningCLI):
    """LightningCLI with this project's defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, and callbacks that every run has."""
        parser.add_argument("--name", type=str, default="unnamed", help="Name of the run, and of its folder.")
        parser.add_argument("--runs", type=str, default="runs", help="Folder of the run folders.")
        parser.add_argument("--project", type=str, default="vqkit", help="W&B project.")
        parser.add_argument(
            "--quantizer",
            type=str | None,
            default=None,
            help="What takes the place of each quantizer, with its dim, number of codes and layout: "
            f"{', '.join(WORDS)}.",
        )
        for key, callback in (
            ("codebook_report", CodebookReport),
            ("reconstructions", Reconstructions),
            ("last_checkpoint", LastCheckpoint),
            ("best_checkpoint", BestCheckpoint),
            ("save_tokenizer", SaveTokenizer),
            ("tokens", TokenWriter),
            ("progress", StepProgress),
        ):
            parser.add_lightning_class_args(callback, key)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say in a line what is wrong."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(self._with_suggestion(explain(str(error)))) from error
        self._swap_quantizers(parser)

    def _swap_quantizers(self, parser: LightningArgumentParser) -> None:
        asked = self.config.as_dict()
        command = asked[asked["subcommand"]]
        if command["quantizer"] is None:
            return
        try:
            command["model"], lines = swapped(command["model"], command["quantizer"])
            self.config = parser.parse_object(asked)
        except (ArgumentError, ValueError) as error:
            raise UserError(explain(str(error))) from error
        for line in lines:
            _say(line)

    def _with_suggestion(self, message: str) -> str:
        if re.match(r"needs .*\.model$", message):
            return f"{message}; give them by --config, such as --config configs/image/quickstart.yaml"
        unknown = re.match(r"unrecognized arguments: --([\w.]+)", message)
        if not unknown:
            return message + renamed_overlay(message, WORDS)
        names = {action.dest for parser in self._subcommand_parsers.values() for action in parser._actions}
        head = unknown[1].partition(".")[0]
        return message + (suggest(unknown[1], names) or suggest(head, {name.partition(".")[0] for name in names}))

    def before_instantiate_classes(self) -> None:
        """Find the run's folder and checkpoint."""
        asked = {key: self._get(self.config, key) for key in ("runs", "name", "project", "ckpt_path")}
        try:
            self.run = Run.of(str(self.subcommand), **asked)
            if self.run.checkpoint:
                read_checkpoint(self.run.checkpoint)  # damage is found before anything is built or written
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error

    def instantiate_classes(self) -> None:
        """Build everything; parts that do not fit are found here, before any data are read."""
        # A run may be taken up where the file of its first codebook is gone: the checkpoint has what was in it.
        filled = weights_follow() if self.run.checkpoint else nullcontext()
        try:
            with filled:
                super().instantiate_classes()
        except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
            raise UserError(explain(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run's folder and tracking, and without those of our callbacks that it forbids."""
        trainer_config = {**self._get(self.config_init, "trainer"), "default_root_dir": self.run.folder, **kwargs}
        if trainer_config["logger"] is None:
            trainer_config["logger"] = RunLogger(self.run.folder, name=self.run.name, project=self.run.project)
        unwanted: tuple[type, ...] = ()
        if trainer_config.get("enable_progress_bar") is False:
            unwanted += (ProgressBar,)
        if trainer_config.get("enable_checkpointing") is False:
            unwanted += (ModelCheckpoint,)
        callbacks = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        callbacks = [callback for callback in callbacks if not isinstance(callback, unwanted)]
        if trainer_config["logger"] and not trainer_config.get("fast_dev_run"):
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        return self._instantiate_trainer(trainer_config, callbacks)

    # ------------------------------------------------------------------ running

    def fit(self, **arguments: Any) -> None:
        """Train."""
        self._run(self.trainer.fit, arguments)

    def validate(self, **arguments: Any) -> None:
        """Measure on the validation split; the figures are shown in our form."""
        self._run(self.trainer.validate, arguments | {"verbose": False})

    def test(self, **arguments: Any) -> None:
        """Measure on the test split, and write `metrics.json`."""
        self._run(self.trainer.test, arguments | {"verbose": False})

    def predict(self, **arguments: Any) -> None:
        """Write token shards; the predictions are on the disk, and may not fit the memory."""
        self._run(self.trainer.predict, arguments | {"return_predictions": False})

    def _run(self, method: Callable[..., Any], arguments: dict[str, Any]) -> None:
        """What goes wrong in training is explained by its message; the traceback is for those who look for it."""
        try:
            method(**arguments | {"ckpt_path": self.run.checkpoint})
        except (ValueError, OSError, RuntimeError, MisconfigurationException) as error:
            report = self.run.folder / "traceback.txt"
            reason, where = str(error), f"  (the traceback is in {report})"
            try:
                write_whole(report, traceback.format_exc().encode())
            except OSError as refusal:  # a full disk, most often the reason itself
                where = "" if isinstance(error, OSError) else f"  ({refusal})\n{traceback.format_exc().rstrip()}"
            if "loading state_dict" in reason:
                reason = (
                    f"{self.run.checkpoint} holds another model than this configuration: give the --config and "
                    f"--quantizer that it was trained with, or --config {self.run.folder / 'config.yaml'}. {reason}"
                )
            raise UserError(f"{reason}\n{where}".rstrip(), code=1) from error

    # ------------------------------------------------------------------ what a person reads

    def before_fit(self) -> None:
        """Say what will be trained, on what, and where it goes."""
        self._announce(data=True)
        if self.run.overwrites:
            _say(
                f"{self.run.folder} holds an earlier run, which this one overwrites; to go on with it: "
                "--ckpt_path last; to keep it: another --name"
            )

    def before_validate(self) -> None:
        """Say what is measured."""
        self._announce(data=True)

    def before_test(self) -> None:
        """Say what is measured."""
        self._announce(data=True)

    def before_predict(self) -> None:
        """Say what is encoded."""
        self._announce(data=False)

    def after_fit(self) -> None:
        """Say where everything is."""
        if not getattr(self.trainer, "fast_dev_run", False):
            _say(f"run folder: {self.run.folder}")
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger) and logger.whereabouts:
                _say(logger.whereabouts)

    def after_validate(self) -> None:
        """Show the figures."""
        self._show_figures()

    def after_test(self) -> None:
        """Show the figures, and say where they are."""
        self._show_figures()
        _say(f"written to {self.run.folder / 'metrics.json'}")

    def _show_figures(self) -> None:
        for name, value in self.trainer.callback_metrics.items():
            _say(f"  {name.partition('/')[2]:<20} {float(value):.6g}")

    def _announce(self, *, data: bool) -> None:
        tokenizer = self.model.tokenizer
        parts = {name: part.parameters() for name, part in self.model.trained_parts().items()}
        sizes = {name: sum(parameter.numel() for parameter in part) for name, part in parts.items()}
        listed = ", ".join(f"{name} {size / 1e6:.2f} M" for name, size in sizes.items())
        codes = f"{codes_in_words(tokenizer.quantizer.codebook_sizes)} codes"
        if isinstance(tokenizer, AudioTokenizer):
            codes += f" at {tokenizer.frame_rate:.4g} frames a second, {tokenizer.kbps:.3g} kbit/s"
        _say(f"{self.subcommand} in {self.run.folder}: {listed} parameters, {codes}")
        if data and hasattr(self.datamodule, "describe"):  # a data module of one's own need not have it
            try:
                _say(self.datamodule.describe())
            except ValueError as error:
                raise UserError(str(error)) from error
        if self.run.checkpoint:
            _say(f"{'resuming from' if self.subcommand == 'fit' else 'weights of'} {self.run.checkpoint}")


def codes_in_words(sizes: Sequence[int]) -> str:
    """The sizes of the codebooks, level by level, those that repeat in one: 4096 + 3 x 1024."""
    counted = [(size, len(list(equal))) for size, equal in itertools.groupby(sizes)]
    return " + ".join(f"{count} x {size}" if count > 1 else str(size) for size, count in counted)


@rank_zero_only
def _say(line: str, file: TextIO | None = None) -> None:
    print(line, file=file, flush=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: instead of those of the process.

    Raises:
        SystemExit: code 2 for a mistake found before training, 1 for one found later, 128 and the number of a signal
            that ended it; each explained in a line or two.
    """
    with StopAtSignal() as stop:
        _main(args, stop)


def _main(args: list[str] | None, stop: StopAtSignal) -> None:
    _quiet()
    code = 1
    parsers = {"exit_on_error": False, "parser_mode": bases.MODE}
    try:
        TokenizerCLI(
            TokenizerTask,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            trainer_defaults={**TRAINER_DEFAULTS, "callbacks": [stop]},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_kwargs={**parsers, **{name: dict(parsers) for name in LightningCLI.subcommands()}},
            args=args,
        )
        code = 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.code) from None
    except Stopped as stopped:
        code = stopped.code
        _say(stopped.line, file=sys.stderr)
        raise SystemExit(code) from None
    finally:
        if wandb.run is not None:
            wandb.finish(exit_code=code)


def _quiet() -> None:
    """Silence expected messages of other libraries, each by its text."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # devices found, seeds set, tips
    for message in (
        # Lightning's calls of jsonargparse, by names that changed:
        r"(?s).*(only one JsonargparseDeprecationWarning|(instantiate_classes``|skip_none parameter) was deprecated)",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's own use of torch
        r"The number of training batches .* is smaller than the logging interval",  # steps are counted across epochs
        r"Total length of `EvaluationLoader` across ranks is zero",  # everything is predicted already, as we say
        r"Checkpoint directory .* exists and is not empty",  # said in our words before fit
    ):
        warnings.filterwarnings("ignore", message=message)
