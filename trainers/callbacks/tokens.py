"""Writes the tokens of `predict` as shards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from trainers.core.task import task_of
from vqkit import TokenShardWriter


class TokenWriter(Callback):
    """Writes what `predict_step` returns as token shards, and leaves out what an earlier run has written.

    Read them with `vqkit.TokenShards`.

    Args:
        folder: the command line sets it to `tokens` in the run folder unless it is given.
        samples_per_shard: samples in a full shard; at least 1.
    """

    def __init__(self, folder: str | None = None, *, samples_per_shard: int = 4096) -> None:
        self.folder = folder
        self.samples_per_shard = samples_per_shard
        self.written = 0
        self._writer: TokenShardWriter | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Open the folder: the first moment at which the codebook is known, and the last before the data are listed."""
        if trainer.state.fn != TrainerFn.PREDICTING:
            return
        data: Any = getattr(trainer, "datamodule", None)
        self._writer = TokenShardWriter(
            Path(self.folder or "tokens"),
            task_of(pl_module).tokenizer.quantizer,
            data_hash=data.predict_hash(),
            tokenizer=str(trainer.ckpt_path),
            samples_per_shard=self.samples_per_shard,
        )
        data.leave_out_predicted(self._writer.done)
        if self._writer.done:
            pl_module.print(f"{len(self._writer.done)} samples are in {self.folder} already and are left out")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to write the tokens of an untrained tokenizer."""
        if self._writer is None:
            raise ValueError("predict needs the weights of a checkpoint: give ckpt_path")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a batch."""
        assert self._writer is not None
        first = 0
        for indices in outputs["indices"]:
            self._writer.add(indices, outputs["names"][first : first + len(indices)])
            first += len(indices)
        self.written += first

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        assert self._writer is not None
        self._writer.close()
        pl_module.print(f"{self.written} samples written to {self.folder}")
