"""Measuring and encoding whole sets with a tokenizer, whatever the modality."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from trainers.core.checkpoints import source_of
from trainers.core.metrics import SHARED_CODES_PROTOCOL, TokenizerMetrics
from vqkit import Tokenizer
from vqkit.bitstream.codec import TokenCodec
from vqkit.saving.files import write_json
from vqkit.tokenizers.tokenizer import TokenizerOutput


class EvaluatedTask(LightningModule, ABC):
    """The evaluation half of a task: a modality says what its inputs are, how they are measured and shown.

    Args:
        tokenizer: what is measured.

    Attributes:
        run_id: of the run that made the weights; set by whoever knows it.
        weights: where the weights come from, for the record of what is made with them: `checkpoint`, `step`, `run`.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.run_id: str | None = None
        self.weights: dict[str, Any] = source_of(None, None, None)

    @property
    @abstractmethod
    def monitor(self) -> str:
        """The figure of validation by which the best checkpoint is chosen; more is better."""

    @abstractmethod
    def inputs(self, batch: Any) -> Tensor:
        """The tokenizer's input out of a batch."""

    def evaluation_inputs(self, batch: Any) -> Iterator[Tensor]:
        """The samples of a batch that is measured or encoded, in batches of samples that have one size."""
        yield self.inputs(batch)

    def measured_by(self, batch: Any, own: slice) -> dict[str, Tensor]:
        """What the metrics are told of some samples of a batch beside their inputs and outputs."""
        return {}

    @abstractmethod
    def new_metrics(self, split: str) -> TokenizerMetrics:
        """What measures a split, "validation" or "test"."""

    @abstractmethod
    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """How the figures of the test split were measured.

        Args:
            figures: what `TokenizerMetrics.compute` returned.
            circumstances: split, precision, of the weights checkpoint, step and id of the run, and how the use of codes
                is measured where levels share a codebook.
        """

    @abstractmethod
    def write_examples(
        self, folder: Path, originals: Sequence[Tensor], reconstructions: Sequence[Tensor]
    ) -> list[Path]:
        """Write files by which a person can judge reconstructions.

        Args:
            folder: where to.
            originals: samples without a batch axis.
            reconstructions: like `originals`.

        Returns:
            The files, pictures (`.png`) and sounds (`.wav`).
        """

    # ------------------------------------------------------------------ what Lightning calls

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note where the weights come from."""
        run = checkpoint.get("run") or self.run_id
        self.weights = source_of(self.trainer.ckpt_path, checkpoint.get("global_step"), run)

    def reconstruct(self, inputs: Tensor) -> TokenizerOutput:
        """The tokenizer's output."""
        return self.tokenizer(inputs)

    @property
    def validation_name(self) -> str:
        """The name under which figures of validation are logged."""
        return "validation"

    def on_validation_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.new_metrics("validation").to(self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Reconstruct and measure a batch; returns samples, names, and figures in batches of samples of one size."""
        return self._measure(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole set."""
        self._log_figures(self.validation_name, self.metrics.compute())

    def on_test_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.new_metrics("test").to(self.device)
        quantizer = self.tokenizer.quantizer
        self.token_codec = TokenCodec.of(quantizer) if quantizer.codebook_sizes else None

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Reconstruct and measure a batch; returns samples, names, and figures in batches of samples of one size."""
        return self._measure(batch, self.token_codec)

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole set, and write `metrics.json` with their protocol into the run folder."""
        figures = self.metrics.compute()
        record: dict[str, Any] = {**figures, **self.metrics.per_level()}
        self._log_figures("test", figures)
        quantizer = self.tokenizer.quantizer
        facts = {"split": "test", "precision": str(self.trainer.precision), **self.weights}
        facts |= SHARED_CODES_PROTOCOL if len(quantizer.book_sizes) < len(quantizer.level_sizes) else {}
        record["protocol"] = self.protocol(figures, **facts)
        if self.trainer.is_global_zero:
            write_json(Path(self.trainer.default_root_dir) / "metrics.json", record)

    def encode(self, inputs: Tensor) -> Tensor:
        """The indices of samples of one size."""
        return self.tokenizer.encode(inputs)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The indices of a batch, in batches of samples that have one size, and of all of them the names.

        Where the batch has them, the numbers of classes (`label`) and the extents of pictures (`extent`) too.
        """
        return {
            "indices": [self.encode(inputs) for inputs in self.evaluation_inputs(batch)],
            "names": batch["name"],
            "labels": batch.get("label"),
            "extents": batch.get("extent"),
        }

    def _measure(self, batch: Any, codec: TokenCodec | None = None) -> dict[str, Any]:
        originals: list[Tensor] = []
        reconstructions: list[Tensor] = []
        figures: list[dict[str, Tensor]] = []
        for inputs in self.evaluation_inputs(batch):
            output = self.reconstruct(inputs)
            facts = self.measured_by(batch, slice(len(originals), len(originals) + len(inputs)))
            with new_tensors_in_float32():
                indices = self.tokenizer.quantizer.by_level(output.quantizer.indices)
                figures.append(self.metrics.update(inputs, output.reconstruction, indices, **facts))
                self.metrics.add_divergence(output.quantizer)
                if codec is not None:
                    self.metrics.add_coded(codec, inputs, output.quantizer.indices)
            originals += inputs
            reconstructions += output.reconstruction
        names = batch.get("name", [""] * len(originals))
        return {"inputs": originals, "reconstruction": reconstructions, "figures": figures, "names": names}

    def _log_figures(self, split: str, figures: dict[str, float]) -> None:
        # They are reduced already, to the same numbers on every rank; sync_dist tells Lightning so.
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, sync_dist=True)


@contextmanager
def new_tensors_in_float32() -> Iterator[None]:
    """Windows and filters that measures make are in float32, also where Lightning makes a model's dtype the default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
