"""The one training step of a tokenizer, whatever its modality."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainers.core.moments import forget_rewritten_rows
from trainers.core.objective import Objective
from vqkit import Codebook, Tokenizer, without_quantization
from vqkit.parts.compatibility import check_names
from vqkit.saving.files import write_json
from vqkit.tokenizers.tokenizer import TokenizerOutput


class Metrics(Protocol):
    """What measures reconstructions, one set at a time: `trainers.image.metrics.ImageMetrics` and its like."""

    def to(self, device: torch.device) -> "Metrics":
        """Move the sums to a device."""

    def update(self, originals: Tensor, reconstructions: Tensor, indices: Tensor) -> None:
        """Add a batch."""

    def compute(self) -> dict[str, float]:
        """The figures of all ranks."""

    def per_level(self) -> dict[str, list[float]]:
        """Figures of each level of the codebook."""


class TokenizerTask(LightningModule, ABC):
    """Trains a tokenizer: one forward, named terms, one backward, one step.

    A modality derives from it and says what its inputs are and how they are measured. The total is the weighted sum of
    the objectives plus the quantizer's own loss; the terms that are summed are the terms that are logged, unweighted,
    under `train/`.

    The trainer owns the optimizer boundary: quantizers fold their statistics there (`quantizer.step()`), so
    accumulating gradients over n batches gives the codebook of one batch n times as large.

    Args:
        tokenizer: what is trained.
        objectives: what reconstructions are trained for, each with its weight; names differ.
        learning_rate: peak of the schedule.
        final_learning_rate_ratio: end of the cosine as a share of the peak, in [0, 1]; 1 keeps the peak.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: of matrices and kernels; codebooks, gains, biases and norms have none.
        betas: of AdamW.
        initialization_samples: vectors from which the quantizer is initialized before training; None lets it decide.
        seed: of the initialization.
        pretraining_steps: optimizer steps without quantization (`vqkit.without_quantization`), before the quantizer is
            initialized from the latents of that time. Until then there are no codes to count, validation measures
            what the decoder makes of unquantized latents (`validation_unquantized/`), and the optimizer leaves the
            codebooks alone.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        objectives: Sequence[Objective],
        learning_rate: float,
        final_learning_rate_ratio: float,
        warmup_steps: int,
        weight_decay: float,
        betas: tuple[float, float],
        initialization_samples: int | None,
        seed: int,
        pretraining_steps: int = 0,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"learning_rate={learning_rate}: expected a positive number, such as 1e-3")
        if not 0 <= final_learning_rate_ratio <= 1:
            raise ValueError(
                f"final_learning_rate_ratio={final_learning_rate_ratio}: expected a share of the peak, in [0, 1]"
            )
        for name, steps in (("warmup_steps", warmup_steps), ("pretraining_steps", pretraining_steps)):
            if steps < 0:
                raise ValueError(f"{name}={steps}: expected 0 or more optimizer steps")
        _check_objectives(objectives)
        self.tokenizer = tokenizer
        self.objectives = nn.ModuleList(objectives)
        self.learning_rate = learning_rate
        self.final_learning_rate_ratio = final_learning_rate_ratio
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = betas
        self.initialization_samples = initialization_samples
        self.seed = seed
        self.pretraining_steps = pretraining_steps
        self.quantizer_initialized_at: int | None = None
        self._random_state: dict[str, Any] | None = None

    # ------------------------------------------------------------------ what a modality writes

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

    @abstractmethod
    def new_metrics(self, split: str) -> Metrics:
        """What measures a split, "validation" or "test"."""

    @abstractmethod
    def protocol(self, figures: Mapping[str, float], **circumstances: Any) -> dict[str, Any]:
        """How the figures of the test split were measured.

        Args:
            figures: what `Metrics.compute` returned.
            circumstances: split, checkpoint and precision.
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

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One forward; returns the loss, and what callbacks look at. `indices` is None while there are no codes."""
        inputs = self.inputs(batch)
        output = self.reconstruct(inputs)
        total, terms = self.reconstruction_loss(inputs, output.reconstruction)
        loss = output.quantizer.loss + total
        terms |= {f"quantizer/{name}": term for name, term in output.quantizer.losses.items()}
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log_dict({f"train/{name}": term.detach() for name, term in {"loss": loss, **terms}.items()})
        return {
            "loss": loss,
            "terms": terms,
            "inputs": inputs,
            "reconstruction": output.reconstruction,
            "indices": None if self.pretraining else output.quantizer.indices,
        }

    def reconstruct(self, inputs: Tensor) -> TokenizerOutput:
        """The tokenizer's output; during pre-training without quantization."""
        with without_quantization(self.tokenizer) if self.pretraining else nullcontext():
            return self.tokenizer(inputs)

    def reconstruction_loss(self, inputs: Tensor, reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of the objectives, and each of them unweighted by its name."""
        terms = {objective.name: objective(inputs, reconstruction) for objective in self.objectives}
        return sum(objective.weight * terms[objective.name] for objective in self.objectives), terms

    @property
    def pretraining(self) -> bool:
        """Whether training goes on without quantization, because the quantizer is not initialized yet."""
        return self.pretraining_steps > 0 and self.quantizer_initialized_at is None and self.trainer.state.fn == "fit"

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then fold the codebook statistics of all the batches that led here."""
        super().optimizer_step(*args, **kwargs)
        self.tokenizer.quantizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave idle parameters alone, forget moments of rewritten codes, log gradient norms (before clipping)."""
        for parameter in self.idle_parameters():
            parameter.grad = None  # zeros would move it all the same: by weight decay, and by the moments later
        forget_rewritten_rows(self.tokenizer.quantizer, optimizer)
        if self.logs_this_step:
            self.log_dict({f"gradient_norm/{name}": norm for name, norm in self.gradient_norms().items()})

    def idle_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that take no part in this step: the codebooks during pre-training."""
        return self._codebook_parameters() if self.pretraining else []

    def gradient_norms(self) -> dict[str, Tensor]:
        """The norm of the gradient of each trained part, and of all of the tokenizer."""
        norms = {name: _gradient_norm(part.parameters()) for name, part in self.trained_parts().items()}
        total = torch.stack([norms[name] for name, _ in self.tokenizer.named_children()]).square().sum().sqrt()
        return norms | {"total": total}

    def trained_parts(self) -> dict[str, nn.Module]:
        """What the optimizer moves, by name: the parts of the tokenizer, and whatever is trained beside it."""
        return dict(self.tokenizer.named_children())

    @property
    def logs_this_step(self) -> bool:
        """Whether what costs something is logged at this optimizer step."""
        return (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine, one scheduler step for each optimizer step."""
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps):
            raise ValueError("the cosine schedule needs an end: set trainer.max_steps or trainer.max_epochs")
        optimizer = AdamW(self.parameter_groups(), lr=self.learning_rate, betas=self.betas)
        scheduler = LambdaLR(optimizer, lambda step: self.learning_rate_factor(step, int(total_steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices and kernels with weight decay; codebooks without; gains, biases and norms without."""
        codebooks = {id(parameter) for parameter in self._codebook_parameters()}
        groups: dict[str, list[nn.Parameter]] = {"weights": [], "codebooks": [], "biases and norms": []}
        for parameter in self.tokenizer.parameters():
            if not parameter.requires_grad:
                continue
            # The gains of weight norm are vectors, though they have the axes of their kernels.
            is_vector = parameter.numel() == max(parameter.shape, default=1)
            kind = "codebooks" if id(parameter) in codebooks else "biases and norms" if is_vector else "weights"
            groups[kind].append(parameter)
        decay = {"weights": self.weight_decay}
        return [
            {"name": kind, "params": parameters, "weight_decay": decay.get(kind, 0.0)}
            for kind, parameters in groups.items()
            if parameters
        ]

    def _codebook_parameters(self) -> Iterator[nn.Parameter]:
        for module in self.tokenizer.modules():
            if isinstance(module, Codebook):
                yield from module.parameters()

    def learning_rate_factor(self, step: int, total_steps: int) -> float:
        """Share of the peak learning rate at an optimizer step, counted from 0."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, total_steps - self.warmup_steps))
        low = self.final_learning_rate_ratio
        return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2

    # ------------------------------------------------------------------ before the first step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random numbers that dropout draws, so that a resumed run draws the same."""
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        checkpoint["quantizer_initialized_at"] = self.quantizer_initialized_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the random state of a run that is resumed; it is set when training starts."""
        self._random_state = checkpoint.get("random_state")
        self.quantizer_initialized_at = checkpoint.get("quantizer_initialized_at", 0)

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run, after whatever drew numbers before."""
        if self._random_state is None:
            return
        torch.set_rng_state(self._random_state["cpu"].cpu())
        if len(self._random_state["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([state.cpu() for state in self._random_state["cuda"]])

    def on_fit_start(self) -> None:
        """Take over the optimizer boundary, and initialize the quantizer from data unless a checkpoint was loaded."""
        for module in self.tokenizer.quantizer.modules():
            if hasattr(module, "auto_step"):
                module.auto_step = False
        if 0 < self.pretraining_steps >= self.trainer.estimated_stepping_batches and not self.trainer.fast_dev_run:
            raise ValueError(
                f"pretraining_steps={self.pretraining_steps} of {self.trainer.estimated_stepping_batches} optimizer "
                "steps: the quantizer would never be initialized, and the saved codes mean nothing; lower "
                "pretraining_steps (0 for none), or raise trainer.max_steps"
            )
        if self.trainer.ckpt_path is None:
            self.quantizer_initialized_at = None
            if not self.pretraining_steps:
                self._initialize_quantizer()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Initialize the quantizer when pre-training is over."""
        if self.quantizer_initialized_at is None and self.trainer.global_step >= self.pretraining_steps:
            self._initialize_quantizer()

    def _initialize_quantizer(self) -> None:
        self.print("initializing the quantizer from training data ...")
        self.tokenizer.initialize(self._initialization_inputs(), samples=self.initialization_samples, seed=self.seed)
        self.quantizer_initialized_at = self.trainer.global_step

    def _initialization_inputs(self) -> Iterator[Tensor]:
        # A loader of its own: the place of the training loader must not move. Micro-batches are joined, because the
        # quantizer takes from the size of a batch how many vectors one optimizer step will show.
        loader = iter(self.trainer.datamodule.initialization_dataloader())
        while batches := list(itertools.islice(loader, self.trainer.accumulate_grad_batches)):
            yield torch.cat([self.inputs(self.transfer_batch_to_device(batch, self.device, 0)) for batch in batches])

    # ------------------------------------------------------------------ measuring

    def on_validation_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.new_metrics("validation").to(self.device)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Reconstruct and measure a batch; returns lists of samples."""
        return self._measure(batch, self.reconstruct)

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole set."""
        split = "validation_unquantized" if self.pretraining else "validation"
        self._log_figures(split, self.metrics.compute())

    def on_test_epoch_start(self) -> None:
        """Start to measure."""
        self.metrics = self.new_metrics("test").to(self.device)

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Reconstruct and measure a batch; returns lists of samples."""
        return self._measure(batch, self.tokenizer)

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole set, and write `metrics.json` with their protocol into the run folder."""
        figures = self.metrics.compute()
        record: dict[str, Any] = {**figures, **self.metrics.per_level()}
        self._log_figures("test", figures)
        record["protocol"] = self.protocol(
            figures,
            split="test",
            checkpoint=str(self.trainer.ckpt_path) if self.trainer.ckpt_path else None,
            precision=str(self.trainer.precision),
        )
        if self.trainer.is_global_zero:
            write_json(Path(self.trainer.default_root_dir) / "metrics.json", record)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        """The indices of a batch, in batches of samples that have one size, and the names of all of them."""
        return {
            "indices": [self.tokenizer.encode(inputs) for inputs in self.evaluation_inputs(batch)],
            "names": batch["name"],
        }

    def _measure(self, batch: Any, reconstruct: Callable[[Tensor], TokenizerOutput]) -> dict[str, list[Tensor]]:
        originals, reconstructions = [], []
        for inputs in self.evaluation_inputs(batch):
            output = reconstruct(inputs)
            self.metrics.update(inputs, output.reconstruction, output.quantizer.indices)
            originals += inputs
            reconstructions += output.reconstruction
        return {"inputs": originals, "reconstruction": reconstructions}

    def _log_figures(self, split: str, figures: dict[str, float]) -> None:
        # They are reduced already, to the same numbers on every rank; sync_dist tells Lightning so.
        self.log_dict({f"{split}/{name}": value for name, value in figures.items()}, sync_dist=True)


def _gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


def _check_objectives(objectives: Sequence[Objective]) -> None:
    check_names(objective.name for objective in objectives)
    weights = {objective.name: objective.weight for objective in objectives}
    if not any(weights.values()):
        raise ValueError(f"weights of objectives {weights}: expected one of them above 0")
