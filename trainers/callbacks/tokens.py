"""Writes the tokens of `predict` as shards."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from trainers.core.task import task_of
from vqkit import TokenShardWriter


class TokenWriter(Callback):
    """Writes what `predict_step` returns as token shards, and leaves out what an earlier run has written.

    Read them with `vqkit.TokenShards`.

    Args:
        folder: None is `tokens` in the trainer's `default_root_dir`.
        samples_per_shard: samples in a full shard; at least 1.
    """

    def __init__(self, folder: str | None = None, *, samples_per_shard: int = 4096) -> None:
        self.folder = folder
        self.samples_per_shard = samples_per_shard
        self.written = 0
        self._writer: TokenShardWriter | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out what is written already, which is known once the codebook is: where the loader is made."""
        if stage == "predict":
            data: Any = getattr(trainer, "datamodule", None)
            data.leave_out_predicted(lambda: self._written_before(trainer, pl_module, data.predict_hash()))

    def _written_before(self, trainer: Trainer, pl_module: LightningModule, data_hash: str) -> set[str]:
        if trainer.ckpt_path is None:
            raise ValueError("predict needs the weights of a checkpoint: give ckpt_path")
        folder = Path(self.folder or Path(trainer.default_root_dir) / "tokens")
        self._writer = TokenShardWriter(
            folder,
            task_of(pl_module).tokenizer.quantizer,
            data_hash=data_hash,
            tokenizer=str(trainer.ckpt_path),
            samples_per_shard=self.samples_per_shard,
        )
        if self._writer.done:
            pl_module.print(f"{len(self._writer.done)} samples are in {folder} already and are left out")
        return self._writer.done

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
        pl_module.print(f"{self.written} samples written to {self._writer.directory}")
