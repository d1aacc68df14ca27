"""Usage of the codebook during training."""

from collections.abc import Iterable
from typing import Any

import numpy
import torch
import torch.distributed
import wandb
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from trainers.core.task import task_of
from vqkit import CodebookUsage
from vqkit.distributed import is_distributed
from vqkit.metrics import countable

LOGGED = {
    "usage": "usage",
    "perplexity": "perplexity",
    "normalized_entropy": "normalized_entropy",
    "gini": "gini",
    "dead": "dead_codes",
    "top_code": "top_code",
    "top_percent": "top_percent",
}
"""Name in `CodebookUsage.compute` -> name in the log."""


class CodebookReport(Callback):
    """Counts the codes of all training batches, and logs the figures of `CodebookUsage` for each window of them.

    Beside it: the age of codes (batches since a code was last used, over all ranks), a histogram of usage, and what
    the quantizer's `health()` reports, which warns once about each thing that is wrong.

    Args:
        every_n_steps: optimizer steps in a window; at least 1. A window should hold many more tokens than there are
            codes.

    Raises:
        ValueError: `every_n_steps` is below 1.
    """

    def __init__(self, every_n_steps: int = 100) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: expected at least 1 optimizer step")
        self.every_n_steps = every_n_steps
        self.batches = 0
        self.last_used: Tensor | None = None
        self.usage: CodebookUsage | None = None
        self._reported_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an empty window, at the step that a resumed run has by now."""
        quantizer = task_of(pl_module).tokenizer.quantizer
        self._reported_step = trainer.global_step
        self.usage = None
        if not countable(quantizer.level_sizes):
            if quantizer.level_sizes:
                pl_module.print("more codes than can be counted (2^28): their usage is not reported")
            return
        self.usage = CodebookUsage(quantizer.level_sizes, books=quantizer.level_books).to(pl_module.device)
        if self.last_used is None or self.last_used.shape != self.usage.counts.shape:
            self.last_used = torch.zeros_like(self.usage.counts)
        self.last_used = self.last_used.to(pl_module.device)
        self._counted = self.usage.counts.clone()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; report when a window is full. While there are no codes yet, windows stay empty."""
        if outputs["indices"] is None:
            self._reported_step = trainer.global_step
            return
        self.batches += 1
        if self.usage is not None and self.last_used is not None:
            self.usage.count(task_of(pl_module).tokenizer.quantizer.by_level(outputs["indices"]))
            used = self.usage.counts > self._counted
            self.last_used = torch.where(used, self.batches, self.last_used)
            self._counted.copy_(self.usage.counts)
        if trainer.global_step - self._reported_step >= self.every_n_steps:
            self._reported_step = trainer.global_step
            health = task_of(pl_module).tokenizer.quantizer.health()
            report = {f"codebook/health/{name}": value for name, value in health.items()}
            histogram = None
            if self.usage is not None and self.last_used is not None:
                figures, histogram = self._describe_usage(self.usage, self.last_used)
                pl_module.log("codebook/usage", figures["codebook/usage"], logger=False)  # for the progress bar
                report |= figures
                self.usage.reset()
                self._counted.zero_()
            if trainer.is_global_zero:
                _log(trainer, report, histogram)

    def _describe_usage(self, usage: CodebookUsage, last_used: Tensor) -> tuple[dict[str, float], wandb.Histogram]:
        figures = usage.compute()
        books = usage.by_book(usage.total_counts(), torch.sum)
        counts = torch.cat(books)
        age = self.batches - torch.cat(usage.by_book(_max_over_ranks(last_used), torch.amax))
        report: dict[str, float] = {}
        report["codebook/dead_age_mean"] = age[counts == 0].cpu().double().mean().nan_to_num().item()
        report["codebook/dead_age_max"] = age.max().item()
        for source, values in figures.items():
            if not isinstance(values, list):
                report |= {f"codebook/{LOGGED[source]}": values} if source in LOGGED else {}
            elif source in ("usage_per_level", "perplexity_per_level"):
                report |= {f"codebook/{source[:-10]}_level_{level}": value for level, value in enumerate(values)}
        return report, usage_histogram(books)

    def state_dict(self) -> dict[str, Any]:
        """The age of codes survives a resume."""
        return {
            "batches": self.batches,
            "last_used": None if self.last_used is None else _max_over_ranks(self.last_used).cpu(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the age of codes."""
        self.batches = state_dict["batches"]
        self.last_used = state_dict["last_used"]


def _log(trainer: Trainer, report: dict[str, float], histogram: wandb.Histogram | None) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(report, step=trainer.global_step)
        if histogram is not None and isinstance(logger, WandbLogger):
            step = {"trainer/global_step": trainer.global_step}
            logger.experiment.log({"codebook/usage_histogram": histogram} | step)


def usage_histogram(books: Iterable[Tensor]) -> wandb.Histogram:
    """How many codes are used how often: relative to uniform use, in 32 logarithmic bins from 1/100 to 100.

    Args:
        books: the counts (K,) of each codebook, int64. Codes below the first bin, the unused ones above all, are
            counted in it; so is the top in the last.
    """
    shares = [counts.cpu().double() / counts.sum().cpu().clamp(min=1) for counts in books]
    relative = torch.cat([share * len(share) for share in shares])
    edges = numpy.logspace(-2, 2, 33)
    values, edges = numpy.histogram(relative.clamp(edges[0], edges[-1]).numpy(), bins=edges)
    return wandb.Histogram(np_histogram=(values, edges))


def _max_over_ranks(tensor: Tensor) -> Tensor:
    if is_distributed():
        tensor = tensor.clone()
        torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor
