"""Training of image tokenizers."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainers.metrics import ImageMetrics, protocol, psnr, to_uint8_grid, write_json
from trainers.task import TokenizerTask
from vqkit import Tokenizer


class ImageTokenizerTask(TokenizerTask):
    """Trains a tokenizer of images in [-1, 1] by L1 and L2, and measures what it does to images.

    Batches are dictionaries with `image` (B, C, H, W), and for prediction `name`, a list of file names.

    Args:
        tokenizer: encoder, quantizer (channel first: `channel_dim=1`) and decoder.
        l1: weight of the mean absolute error.
        l2: weight of the mean squared error.
        learning_rate: peak of the schedule.
        final_learning_rate_ratio: end of the cosine as a share of the peak, in [0, 1].
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of matrices and kernels; codebooks, biases and norms have none.
        betas: of AdamW.
        initialization_samples: vectors from which the quantizer is initialized before training; None lets it decide.
        seed: of the initialization.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        l1: float = 0.5,
        l2: float = 1.0,
        learning_rate: float = 1e-3,
        final_learning_rate_ratio: float = 0.05,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.95),
        initialization_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            tokenizer,
            weights={"l1": l1, "l2": l2},
            learning_rate=learning_rate,
            final_learning_rate_ratio=final_learning_rate_ratio,
            warmup_steps=warmup_steps,
            weight_decay=weight_decay,
            betas=betas,
            initialization_samples=initialization_samples,
            seed=seed,
        )

    def inputs(self, batch: dict[str, Any]) -> Tensor:
        """The images (B, C, H, W)."""
        return batch["image"]

    def reconstruction_terms(self, inputs: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Mean absolute and mean squared error, in float32."""
        reconstruction, inputs = reconstruction.float(), inputs.float()
        return {"l1": F.l1_loss(reconstruction, inputs), "l2": F.mse_loss(reconstruction, inputs)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The common step, and the PSNR of the batch."""
        step = super().training_step(batch, batch_idx)
        with torch.no_grad():
            ratio = psnr(to_uint8_grid(step["inputs"]), to_uint8_grid(step["reconstruction"])).mean()
        self.log("psnr", ratio, prog_bar=True, logger=False)
        self.log("train/psnr", ratio)
        return step

    # ------------------------------------------------------------------ measuring

    def on_validation_epoch_start(self) -> None:
        """Start to measure."""
        quantizer = self.tokenizer.quantizer
        self.metrics = ImageMetrics(quantizer.codebook_sizes).to(self.device)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Reconstruct and measure a batch."""
        inputs = self.inputs(batch)
        output = self.tokenizer(inputs)
        self.metrics.update(inputs, output.reconstruction, output.quantizer.indices)
        return {"inputs": inputs, "reconstruction": output.reconstruction, "indices": output.quantizer.indices}

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole set."""
        self._log_figures("validation", self.metrics.compute())

    def on_test_epoch_start(self) -> None:
        """Start to measure."""
        self.on_validation_epoch_start()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """Reconstruct and measure a batch."""
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole set, and write `metrics.json` with their protocol into the run folder."""
        figures = self.metrics.compute()
        record = {**figures, **self.metrics.per_level()}
        self._log_figures("test", figures)
        circumstances = {
            "split": "test",
            "preprocessing": self._preprocessing(),
            "checkpoint": str(self.trainer.ckpt_path) if self.trainer.ckpt_path else None,
            "precision": str(self.trainer.precision),
        }
        record["protocol"] = protocol(figures, **circumstances)
        if self.trainer.is_global_zero:
            write_json(Path(self.trainer.default_root_dir) / "metrics.json", record)

    def _log_figures(self, split: str, figures: dict[str, float]) -> None:
        # They are reduced already, to the same numbers on every rank; sync_dist tells Lightning so.
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, sync_dist=True)

    def _preprocessing(self) -> str:
        size = self.trainer.datamodule.resolution
        return f"centre square; shorter side resized to {size} px (bicubic, antialiased) where it differs"

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The indices of a batch, with the names of its images."""
        return {"indices": self.tokenizer.encode(self.inputs(batch)), "names": batch["name"]}
