"""The command line: one run folder, a tracked run, checkpoints that are found again, and errors in a line."""

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TextIO

from jsonargparse import ArgumentError
from lightning import LightningDataModule, Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
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
    Tracking,
    ValidationSchedule,
)
from trainers.core.checkpoints import check_same_tokenizer, source_of
from trainers.core.task import TokenizerTask
from trainers.run import bases
from trainers.run.announcement import announcement
from trainers.run.arrangements import ARRANGEMENTS
from trainers.run.explain import explain, suggest
from trainers.run.export import export, export_tokenizer
from trainers.run.folders import RUNS
from trainers.run.given import with_given_tokenizer
from trainers.run.migration import renamed_overlay
from trainers.run.record import INIT, SaveRunConfig, as_recorded, settle
from trainers.run.run import Run
from trainers.run.semantic_ids import residual_kmeans, semantic_ids
from trainers.run.stops import StopAtSignal, Stopped
from trainers.run.swap import WORDS, swapped
from trainers.run.table import table
from trainers.run.tracking import RunLogger, finish
from vqkit.saving.config import weights_follow
from vqkit.saving.files import write_whole
from vqkit.saving.pretrained import WEIGHTS_NAME
from vqkit.tokens.names import escaped

TRAINER_DEFAULTS = {
    "log_every_n_steps": 10,
    "num_sanity_val_steps": 1,
    "use_distributed_sampler": False,  # our loaders divide their samples among the ranks themselves
    "enable_model_summary": False,
}

COMMANDS = {"export": export, "table": table, "ids": semantic_ids, "kmeans": residual_kmeans}
"""Those that need no task: words to lines for a person."""

EPILOG = (
    "python -m trainers export --help: the command that writes the tokenizer of a checkpoint. python -m trainers table "
    "--help: the one that sets the figures of runs side by side. ids and kmeans: semantic IDs of vectors."
)


class UserError(Exception):
    """A mistake that its message explains, and a traceback would not.

    Args:
        message: for a person.
        code: exit status of the process.
    """

    def __init__(self, message: str, *, code: int = 2) -> None:
        super().__init__(message)
        self.code = code


class TokenizerCLI(LightningCLI):
    """LightningCLI with this project's defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """The run folder, and callbacks that every run has."""
        parser.add_argument("--name", type=str, default="unnamed", help="Name of the run, and of its folder.")
        parser.add_argument("--runs", type=str, default=str(RUNS), help="Folder of the run folders.")
        parser.add_argument("--project", type=str, default="vqkit", help="W&B project.")
        parser.add_argument(
            "--quantizer",
            type=str | None,
            default=None,
            help="What takes the place of each quantizer, with its dim, number of codes and layout: "
            f"{', '.join(WORDS)}; or a composite in the place of the whole, with its dim and layout: "
            f"{', '.join(name for name in ARRANGEMENTS if name not in WORDS)}.",
        )
        where = "run folder (RUN, RUN:best), .ckpt file, saved tokenizer or name of published weights"
        for name, kind, what in (
            ("init_from", str | None, f"Trained weights that a new fit starts from, at step 0: {where}."),
            (
                "init_parts",
                list[str] | None,
                "Parts that are taken, such as [encoder], discriminators, objectives; default: all of the tokenizer.",
            ),
            ("init_hash", str | None, "SHA-256 that the file of --init_from must have; config.yaml records it."),
        ):
            parser.add_argument(f"--{name}", type=kind, default=None, help=what)
        for key, callback in (
            ("codebook_report", CodebookReport),
            ("reconstructions", Reconstructions),
            ("last_checkpoint", LastCheckpoint),
            ("best_checkpoint", BestCheckpoint),
            ("save_tokenizer", SaveTokenizer),
            ("tokens", TokenWriter),
            ("progress", StepProgress),
            ("validation", ValidationSchedule),
        ):
            parser.add_lightning_class_args(callback, key)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == TrainerFn.FITTING:
            what = "Replace an earlier run in the folder, once training starts."
            parser.add_argument("--overwrite", action="store_true", help=what)
        return parser

    def _parse_ckpt_path(self) -> None:
        """Take no configuration out of a checkpoint, as Lightning would: only ours counts."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and say in a line what is wrong."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise UserError(self._with_suggestion(explain(str(error)))) from error
        self._change_model(parser, lambda name, command: (with_given_tokenizer(name, command), []))
        self._change_model(parser, _with_asked_quantizer)

    def _change_model(
        self, parser: LightningArgumentParser, change: Callable[[str, Any], tuple[Any, list[str]]]
    ) -> None:
        """Parse again with another model, and say what was changed.

        Args:
            parser: of all commands.
            change: the model and lines of a command, by its name and arguments; None for the model leaves it.
        """
        asked = self.config.as_dict()
        command = asked[asked["subcommand"]]
        try:
            model, lines = change(asked["subcommand"], command)
            if model is not None:
                command["model"] = model
                self.config = parser.parse_object(asked)
        except (ArgumentError, ValueError, OSError, ImportError) as error:
            raise UserError(explain(str(error))) from error
        _say(*lines)

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
        keys = ("runs", "name", "project", "ckpt_path", *INIT)
        asked = {key: self._get(self.config, key) for key in keys}
        dry = bool(self._get(self.config, "trainer")["fast_dev_run"])
        try:
            self.run = Run.of(
                str(self.subcommand), **asked, overwrite=self._get(self.config, "overwrite", default=False), dry=dry
            )
            parser = self._parser(self.subcommand)
            fitting = self.subcommand == TrainerFn.FITTING
            self.changes = settle(self.config[self.subcommand], self.run, parser) if fitting else []
        except (ValueError, OSError, ImportError) as error:
            raise UserError(str(error)) from error
        self.save_config_kwargs = {**self.save_config_kwargs, "run": self.run}

    def instantiate_classes(self) -> None:
        """Build everything; parts that do not fit are found here, before any data are read."""
        # A run may be taken up where the file of its first codebook is gone: the checkpoint has what was in it.
        origin = self.run.origin
        filled = weights_follow() if self.run.checkpoint or (origin and origin.parts is None) else nullcontext()
        try:
            with filled:
                super().instantiate_classes()
            if origin is not None:
                fitting = self.subcommand == TrainerFn.FITTING
                origin.load(self.model, trains=fitting)
                if not fitting:
                    self.model.weights = source_of(origin.file, origin.step, origin.run)
            self.model.run_id = self.run.id if self.subcommand == TrainerFn.FITTING else self.run.weights_run
        except (ValueError, TypeError, OSError, ImportError, MisconfigurationException) as error:
            raise UserError(explain(str(error))) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The trainer, with the run's folder and tracking, and without those of our callbacks that it forbids."""
        trainer_config = {**self._get(self.config_init, "trainer"), "default_root_dir": self.run.folder, **kwargs}
        strategy = str(trainer_config.get("strategy"))
        if re.search("spawn|fork|notebook|fsdp", strategy):
            raise UserError(
                f"trainer.strategy={strategy}: expected auto or ddp, which starts the command once for each device "
                "(what a run holds cannot be sent to processes that it starts itself, and its codebooks stay whole)"
            )
        if trainer_config["logger"] is None:
            trainer_config["logger"] = RunLogger(
                self.run.folder,
                name=self.run.name,
                project=self.run.project,
                id=self.run.id,
                job_type=self.run.command,
            )
        unwanted: tuple[type, ...] = ()
        if trainer_config.get("enable_progress_bar") is False:
            unwanted += (ProgressBar,)
        if trainer_config.get("enable_checkpointing") is False:
            unwanted += (ModelCheckpoint,)
        if SLURMEnvironment.detect():  # its requeue would start a fit that the folder's own run refuses
            trainer_config["plugins"] = trainer_config["plugins"] or SLURMEnvironment(auto_requeue=False)
        callbacks = [self._get(self.config_init, key) for key in self._parser(self.subcommand).callback_keys]
        callbacks = [callback for callback in callbacks if not isinstance(callback, unwanted)]
        if trainer_config["logger"] and not trainer_config.get("fast_dev_run"):
            callbacks.append(Tracking(as_recorded(self._parser(self.subcommand), self.config[self.subcommand])))
            callbacks.append(LearningRateMonitor(logging_interval="step"))
        return self._instantiate_trainer(trainer_config, callbacks)

    # ------------------------------------------------------------------ running

    def fit(self, **arguments: Any) -> None:
        """Train, unless all of it was done before: then nothing changes, and a tokenizer that is missing is saved."""
        if self.limit is None:
            self._run(self.trainer.fit, arguments)
        else:
            _say(
                f"nothing is left to train: {self.run.checkpoint} has reached trainer.{self.limit}; to go on, give a "
                f"larger --trainer.{self.limit.partition('=')[0]}"
            )
            self._save_missing_tokenizer()

    @rank_zero_only
    def _save_missing_tokenizer(self) -> None:
        """Of a run that was killed between its last step and saving."""
        folder = self._get(self.config_init, "save_tokenizer").folder_in(self.run.folder)
        if not (folder / WEIGHTS_NAME).is_file():
            assert self.run.checkpoint is not None
            try:
                lines = export_tokenizer(self.run.checkpoint, self.run.folder, folder)
            except (ValueError, OSError) as error:
                raise UserError(str(error), code=1) from error
            _say(*lines)

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
        """Say what will be trained, on what, where it goes, and what a resumed run changes."""
        self.limit = self.run.progress.limit(self.trainer) if self.run.progress else None
        if self.run.progress and self.limit is not None:
            try:
                check_same_tokenizer(self.run.progress.tokenizer, self.model.tokenizer, self.run.checkpoint)
            except ValueError as error:
                raise UserError(str(error)) from error
            return
        self.announce()
        _say(*(f"  {change}" for change in self.changes))
        if self.run.overwrites:
            _say(f"the earlier run in {self.run.folder} is replaced when training starts; its W&B history stays")

    def announce(self) -> None:
        """Say what will be done."""
        try:
            _say(*announcement(str(self.subcommand), self.model, self.datamodule, self.run))
        except ValueError as error:
            raise UserError(str(error)) from error

    before_validate = before_test = before_predict = announce

    def after_fit(self) -> None:
        """Say where everything is."""
        if not getattr(self.trainer, "fast_dev_run", False):
            _say(f"run folder: {self.run.folder}")
        self._show_whereabouts()

    def after_predict(self) -> None:
        """Say where the tracked run is."""
        self._show_whereabouts()

    def _show_whereabouts(self) -> None:
        for logger in self.trainer.loggers:
            if isinstance(logger, RunLogger) and logger.whereabouts:
                _say(logger.whereabouts)

    def after_validate(self) -> None:
        """Show the figures."""
        self._show_figures()
        self._show_whereabouts()

    def after_test(self) -> None:
        """Show the figures, and say where they are."""
        self._show_figures()
        _say(f"written to {self.run.folder / 'metrics.json'}")
        self._show_whereabouts()

    def _show_figures(self) -> None:
        figures = self.trainer.callback_metrics.items()
        _say(*(f"  {name.partition('/')[2]:<20} {float(value):.6g}" for name, value in figures))


def _with_asked_quantizer(_: str, command: Mapping[str, Any]) -> tuple[Any, list[str]]:
    return (None, []) if command["quantizer"] is None else swapped(command["model"], command["quantizer"])


@rank_zero_only
def _say(*lines: str, file: TextIO | None = None) -> None:
    for line in lines:
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
    words = sys.argv[1:] if args is None else args
    for word in words:
        if any("\udc80" <= letter <= "\udcff" for letter in word):  # how Python reads bytes that are not
            print(
                f"error: {escaped(word)} is not UTF-8, as the files that record it must be: rename the folder or file, "
                "or give a link to it (ln -s)",
                file=sys.stderr,
                flush=True,
            )
            raise SystemExit(2)
    if words and words[0] in COMMANDS:
        try:
            print(*COMMANDS[words[0]](words[1:]), sep="\n", flush=True)
        except (ValueError, OSError, ImportError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            raise SystemExit(2) from None
        return
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
            parser_kwargs={"epilog": EPILOG, **parsers, **{name: dict(parsers) for name in LightningCLI.subcommands()}},
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
        finish(code)


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
        r"Found \d+ module\(s\) in eval mode",  # `freeze` puts them there
        r"Checkpoint directory .* exists and is not empty",  # said in our words before fit
    ):
        warnings.filterwarnings("ignore", message=message)
