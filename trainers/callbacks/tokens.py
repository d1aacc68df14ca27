"""Writes the tokens of `predict` as shards."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from safetensors.torch import load_file

from trainers.core.checkpoints import save_tokenizer
from trainers.core.task import task_of
from vqkit import Tokenizer, TokenShardWriter
from vqkit.saving.files import named
from vqkit.saving.pretrained import WEIGHTS_NAME

TOKENIZER = "tokenizer"
"""Folder beside the shards, of what wrote them."""


class TokenWriter(Callback):
    """Writes what `predict_step` returns as token shards, and leaves out what an earlier run has written.

    Read them with `vqkit.TokenShards`. The tokenizer that wrote them is saved beside them, in the folder `tokenizer`,
    and every manifest names it, its checkpoint, step and run.

    Args:
        folder: None is `tokens` in the trainer's `default_root_dir`.
        samples_per_shard: samples in a full shard; at least 1.
    """

    def __init__(self, folder: str | None = None, *, samples_per_shard: int = 4096) -> None:
        self.folder = folder
        self.samples_per_shard = samples_per_shard
        self.written = 0
        self._writer: TokenShardWriter | None = None

    def folder_in(self, root: str | Path) -> Path:
        """Where the shards are written by a trainer with this `default_root_dir`."""
        return Path(self.folder or Path(root) / "tokens")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave out what is written already, which is known once the codebook is: where the loader is made."""
        if stage == "predict":
            data: Any = getattr(trainer, "datamodule", None)
            data.leave_out_predicted(lambda: self._written_before(trainer, pl_module, data))

    def _written_before(self, trainer: Trainer, pl_module: LightningModule, data: Any) -> set[str]:
        task = task_of(pl_module)
        if task.weights["checkpoint"] is None:
            raise ValueError("predict needs the weights of a checkpoint: give ckpt_path")
        folder = self.folder_in(trainer.default_root_dir)
        if (folder / TOKENIZER).is_dir():
            _check_same_weights(task.tokenizer, folder)
        self._writer = TokenShardWriter(
            folder,
            task.tokenizer.quantizer,
            data_hash=data.predict_hash(),
            class_names=getattr(data, "class_names", ()),
            tokenizer=TOKENIZER,
            weights=task.weights,
            samples_per_shard=self.samples_per_shard,
        )
        if trainer.is_global_zero and not (folder / TOKENIZER).is_dir():
            save_tokenizer(task.tokenizer, folder / TOKENIZER, task.weights)
        if self._writer.done:
            pl_module.print(f"{len(self._writer.done)} samples are in {folder} already and are left out")
        return self._writer.done

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Write a batch."""
        assert self._writer is not None
        first = 0
        for indices in outputs["indices"]:
            own = slice(first, first + len(indices))
            known = {key: outputs.get(key) for key in ("labels", "extents")}
            facts = {key: values[own].tolist() for key, values in known.items() if values is not None}
            self._writer.add(indices, outputs["names"][own], **facts)
            first += len(indices)
        self.written += first

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what is left."""
        assert self._writer is not None
        self._writer.close()
        pl_module.print(f"{self.written} samples written to {self._writer.directory}")


def _check_same_weights(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse to mix tokens: a grid has no codebook whose hash would tell encoders apart."""
    path = folder / TOKENIZER / WEIGHTS_NAME
    with named(path):
        saved = load_file(path)
    state = tokenizer.state_dict()
    if saved.keys() != state.keys() or any(not value.equal(state[name].cpu()) for name, value in saved.items()):
        raise ValueError(
            f"{folder} was filled by another tokenizer, which is in {path.parent}: write to another folder "
            "(--tokens.folder), or delete this one"
        )
