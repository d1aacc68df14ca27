"""What W&B shows of a run beside its curves: what was asked for, best figures, worst samples, artifacts."""

import math
import re
import subprocess
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

import vqkit
from trainers.callbacks.checkpoints import SaveTokenizer
from trainers.callbacks.tokens import TokenWriter
from trainers.core.checkpoints import is_of_run
from trainers.core.task import TokenizerTask, task_of
from vqkit import AudioTokenizer, BaseQuantizer, codebook_hash
from vqkit.quantizers.composite import CompositeQuantizer

STEP = "trainer/global_step"

LESS_IS_BETTER = ("_distance", "_lpips", "_left_out", "not_finite", "dead_codes", "gini", "top_code", "top_percent")
"""How figures end of which the least is the best."""

CIRCUMSTANCES = ("images", "_halves", "_originals", "utterances", "seconds", "bpp", "kbps", "tokens_per_image")
"""How figures end that tell how much was measured, and at which rate."""


class Tracking(Callback):
    """Tells W&B what a run is: its configuration, its data, its best figures, its worst samples and what it leaves.

    - Configuration: as `config.yaml` has it, with the version of vqkit and its commit, the data and the device.
    - Summary: the sizes of model and codes; of each figure of validation the best and the last, over all parts of a
      run. (W&B's own best would forget the part before a resume.)
    - `worst_validation`, of the last validation, and `worst_test`: the samples with the least `TokenizerTask.monitor`,
      with their figures and the picture or the sounds. Of several ranks, the first shows its own.
    - Artifacts: the tokenizer at the end of fit, and the shards of predict by reference, with a copy of the manifests.

    It comes after the callbacks that write what it reads, and before those that log.

    Args:
        config: the whole configuration, as nested dictionaries of plain values.
        worst: samples in a table; 0 for no table.

    Raises:
        ValueError: `worst` is negative.
    """

    def __init__(self, config: Mapping[str, Any], *, worst: int = 16) -> None:
        if worst < 0:
            raise ValueError(f"worst={worst}: expected 0 or more samples")
        self.config = config
        self.worst = worst
        self.best: dict[str, float] = {}
        self._goes_on = False
        self._kept: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ what the run is

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run."""
        task = task_of(pl_module)
        data: Any = getattr(trainer, "datamodule", None)
        for run in _runs(trainer):
            record = {
                **self.config,
                "vqkit": {"version": vqkit.__version__, "commit": _commit()},
                "device": str(pl_module.device),
                "devices": trainer.world_size,
                "precision": str(trainer.precision),
            }
            if hasattr(data, "facts"):  # a data module of one's own need not have it
                predicts = trainer.state.fn == "predict"
                record["data_set"] = {"hash": data.predict_hash()} if predicts else data.facts()
            run.config.update(record, allow_val_change=True)
            run.tags = tuple(dict.fromkeys([*(run.tags or ()), *_tags(task)]))
            run.summary.update(_sizes(task))

    on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe a run that only validates."""
        if trainer.state.fn == "validate":
            self.on_fit_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the steps of all logs those of the optimizer: after a checkpoint of an epoch's end Lightning adds 1."""
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step

    # ------------------------------------------------------------------ figures and samples

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last measurement."""
        self._kept = []

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what is worst."""
        if not trainer.sanity_checking:
            self._keep_worst(trainer, pl_module, outputs)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Keep what is worst."""
        self._keep_worst(trainer, pl_module, outputs)

    def _keep_worst(self, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> None:
        if not self.worst or not any(_runs(trainer)):
            return
        wanted = task_of(pl_module).monitor.partition("/")[2]
        if not all(outputs["figures"]):  # no measure can be taken
            return
        figures = chain.from_iterable(map(_rows, outputs["figures"]))
        samples = zip(outputs["names"], figures, outputs["inputs"], outputs["reconstruction"], strict=True)
        kept = [*self._kept]
        for name, row, original, reconstruction in samples:
            rank = row.get(wanted, next(iter(row.values()), math.nan))
            if not math.isnan(rank):
                kept.append({"rank": rank, "name": name, "figures": row, "pair": (original, reconstruction)})
        kept = sorted(kept, key=lambda sample: float(sample["rank"]))[: self.worst]
        for sample in kept:
            sample["pair"] = tuple(half.cpu() for half in sample["pair"])
        self._kept = kept

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the best and the last figures into the summary."""
        if trainer.sanity_checking:
            return
        last = {
            name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("validation/")
        }
        summary = {}
        for name, value in last.items():
            if name.endswith(CIRCUMSTANCES):
                continue
            choose, key = (min, "min") if name.endswith(LESS_IS_BETTER) else (max, "max")
            self.best[name] = choose(value, self.best.get(name, value))
            summary[name] = {key: self.best[name], "last": value}
        for run in _runs(trainer):
            run.summary.update(summary)
        if trainer.state.fn == "validate":
            self._show_worst(trainer, pl_module, "worst_validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the worst samples."""
        self._show_worst(trainer, pl_module, "worst_test")

    def _show_worst(self, trainer: Trainer, pl_module: LightningModule, key: str) -> None:
        if not self._kept:
            return
        names = list(dict.fromkeys(chain.from_iterable(sample["figures"] for sample in self._kept)))
        with TemporaryDirectory() as folder:
            shown = []
            for number, sample in enumerate(self._kept):
                original, reconstruction = sample["pair"]
                place = Path(folder) / str(number)
                place.mkdir()
                files = task_of(pl_module).write_examples(place, [original], [reconstruction])
                shown.append({file.stem.split("_")[-1]: medium(file) for file in files})
            columns = ["name", *names, *shown[0]]
            table = wandb.Table(columns=columns)
            for sample, media in zip(self._kept, shown, strict=True):
                table.add_data(sample["name"], *(sample["figures"].get(name) for name in names), *media.values())
            for run in _runs(trainer):
                run.log({key: table, STEP: trainer.global_step})

    # ------------------------------------------------------------------ what the run leaves

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the worst samples of the last validation, and log the tokenizer."""
        self._show_worst(trainer, pl_module, "worst_validation")
        tokenizer = task_of(pl_module).tokenizer
        for folder in _folders(trainer, SaveTokenizer):
            for run in _runs(trainer) if folder.is_dir() else ():
                facts: dict[str, Any] = {"step": trainer.global_step}
                if tokenizer.quantizer.codebook_sizes:
                    facts["codebook_hash"] = codebook_hash(tokenizer.quantizer)
                artifact = wandb.Artifact(_named("tokenizer", run), type="model", metadata={"run": run.id, **facts})
                for file in sorted(folder.iterdir()):  # `add_dir` prints
                    artifact.add_file(str(file))
                run.log_artifact(artifact, aliases=["last"])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the shards of all ranks."""
        trainer.strategy.barrier()
        for folder in _folders(trainer, TokenWriter):
            for run in _runs(trainer):
                task = task_of(pl_module)
                facts = {**task.weights, "codebook_hash": codebook_hash(task.tokenizer.quantizer)}
                facts["tokenizer"] = f"{_named('tokenizer', run)}:last"
                artifact = wandb.Artifact(_named("tokens", run), type="dataset", metadata=facts)
                artifact.add_reference(folder.as_uri(), name="shards", checksum=False)
                for manifest in sorted(folder.glob("manifest-*.json")):
                    artifact.add_file(str(manifest))
                run.log_artifact(artifact)

    def state_dict(self) -> dict[str, Any]:
        """The best figures survive a resume."""
        return {"best": self.best}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Find out whether this run goes on, or another one begins with its weights."""
        self._goes_on = is_of_run(checkpoint, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best figures of this run."""
        if self._goes_on:
            self.best = dict(state_dict["best"])


def medium(file: Path, caption: str | None = None) -> wandb.Audio | wandb.Image:
    """What W&B plays or shows of a file that `TokenizerTask.write_examples` wrote."""
    return (wandb.Audio if file.suffix == ".wav" else wandb.Image)(str(file), caption=caption)


def _runs(trainer: Trainer) -> Iterator[Any]:
    """The W&B runs that are logged to; none on other ranks than the first, nor where tracking is disabled."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if isinstance(logger, WandbLogger) and not logger.experiment.disabled:
            yield logger.experiment


def _folders(trainer: Trainer, kind: type[SaveTokenizer] | type[TokenWriter]) -> Iterator[Path]:
    """Where callbacks of a kind have written."""
    for callback in getattr(trainer, "callbacks", ()):
        if isinstance(callback, kind):
            yield callback.folder_in(trainer.default_root_dir).absolute()


def _rows(figures: Mapping[str, Any]) -> list[dict[str, float]]:
    columns = [value.tolist() for value in figures.values()]
    return [dict(zip(figures, row, strict=True)) for row in zip(*columns, strict=True)]


def _tags(task: TokenizerTask) -> list[str]:
    members = [module for module in task.tokenizer.quantizer.modules() if isinstance(module, BaseQuantizer)]
    words = [
        getattr(member, "method", None) or type(member).__name__
        for member in members
        if not isinstance(member, CompositeQuantizer)
    ]
    return ["audio" if isinstance(task.tokenizer, AudioTokenizer) else "image", *words]


def _sizes(task: TokenizerTask) -> dict[str, Any]:
    parts = {name: sum(weight.numel() for weight in part.parameters()) for name, part in task.parts().items()}
    quantizer = task.tokenizer.quantizer
    rate = {"kbps": task.tokenizer.kbps} if isinstance(task.tokenizer, AudioTokenizer) else {}
    sizes = quantizer.book_sizes
    codes = {"codes": list(sizes), "bits_per_token": quantizer.bits_per_token} if sizes else {}
    return {"parameters": {**parts, "total": sum(parts.values())}, **codes, **rate}


def _named(kind: str, run: Any) -> str:
    return re.sub(r"[^\w.-]", "-", f"{kind}-{run.group}")


def _commit() -> str | None:
    """The commit of vqkit's source; None for an installed package, also inside of another repository."""
    package = Path(vqkit.__file__)
    tracked = ["git", "-C", str(package.parent), "ls-files", "--error-unmatch", package.name]
    try:
        subprocess.run(tracked, check=True, capture_output=True)
        head = subprocess.run([*tracked[:3], "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        return head.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
