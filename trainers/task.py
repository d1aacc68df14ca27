"""The one training step of a tokenizer, whatever its modality."""

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainers.moments import forget_rewritten_rows
from vqkit import Codebook, Tokenizer


class TokenizerTask(LightningModule):
    """Trains a tokenizer: one forward, named terms, one backward, one step.

    A modality derives from it and writes `inputs` and `reconstruction_terms`. The total is the weighted sum of those
    terms plus the quantizer's own loss; the terms that are summed are the terms that are logged, unweighted, under
    `train/`.

    The trainer owns the optimizer boundary: quantizers fold their statistics there (`quantizer.step()`), so
    accumulating gradients over n batches gives the codebook of one batch n times as large.

    Args:
        tokenizer: what is trained.
        weights: factor of each reconstruction term in the total.
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
        weights: dict[str, float],
        learning_rate: float,
        final_learning_rate_ratio: float,
        warmup_steps: int,
        weight_decay: float,
        betas: tuple[float, float],
        initialization_samples: int | None,
        seed: int,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"learning_rate={learning_rate}: expected a positive number, such as 1e-3")
        if not 0 <= final_learning_rate_ratio <= 1:
            raise ValueError(
                f"final_learning_rate_ratio={final_learning_rate_ratio}: expected a share of the peak, in [0, 1]"
            )
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps}: expected 0 or more optimizer steps")
        negative = {name: weight for name, weight in weights.items() if not weight >= 0}
        if negative or not any(weights.values()):
            raise ValueError(f"reconstruction weights {weights}: expected numbers of at least 0, one of them above 0")
        self.tokenizer = tokenizer
        self.weights = weights
        self.learning_rate = learning_rate
        self.final_learning_rate_ratio = final_learning_rate_ratio
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = betas
        self.initialization_samples = initialization_samples
        self.seed = seed
        self._random_state: dict[str, Any] | None = None

    # ------------------------------------------------------------------ what a modality writes

    def inputs(self, batch: Any) -> Tensor:
        """The tokenizer's input out of a batch."""
        raise NotImplementedError

    def reconstruction_terms(self, inputs: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """Name -> unweighted scalar; one for each name in `weights`."""
        raise NotImplementedError

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One forward; returns the loss, and what callbacks look at."""
        inputs = self.inputs(batch)
        output = self.tokenizer(inputs)
        terms = self.reconstruction_terms(inputs, output.reconstruction)
        loss = output.quantizer.loss + sum(self.weights[name] * term for name, term in terms.items())
        terms |= {f"quantizer/{name}": term for name, term in output.quantizer.losses.items()}
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        self.log_dict({f"train/{name}": term.detach() for name, term in {"loss": loss, **terms}.items()})
        return {
            "loss": loss,
            "terms": terms,
            "inputs": inputs,
            "reconstruction": output.reconstruction,
            "indices": output.quantizer.indices,
        }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then fold the codebook statistics of all the batches that led here."""
        super().optimizer_step(*args, **kwargs)
        self.tokenizer.quantizer.step()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Forget the moments of codes that were rewritten, and log gradient norms, before clipping."""
        forget_rewritten_rows(self.tokenizer.quantizer, optimizer)
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps:
            return
        norms = {name: _gradient_norm(part.parameters()) for name, part in self.tokenizer.named_children()}
        total = torch.stack(list(norms.values())).square().sum().sqrt()
        self.log_dict({f"gradient_norm/{name}": norm for name, norm in {**norms, "total": total}.items()})

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and a cosine, one scheduler step for each optimizer step."""
        total_steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(total_steps):
            raise ValueError("the cosine schedule needs an end: set trainer.max_steps or trainer.max_epochs")
        optimizer = AdamW(self.parameter_groups(), lr=self.learning_rate, betas=self.betas)
        scheduler = LambdaLR(optimizer, lambda step: self.learning_rate_factor(step, int(total_steps)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Matrices and kernels with weight decay; codebooks without; biases and norms without."""
        codebooks = {
            id(parameter)
            for module in self.tokenizer.modules()
            if isinstance(module, Codebook)
            for parameter in module.parameters()
        }
        groups: dict[str, list[nn.Parameter]] = {"weights": [], "codebooks": [], "biases and norms": []}
        for parameter in self.tokenizer.parameters():
            if not parameter.requires_grad:
                continue
            kind = (
                "codebooks" if id(parameter) in codebooks else "weights" if parameter.ndim > 1 else "biases and norms"
            )
            groups[kind].append(parameter)
        decay = {"weights": self.weight_decay}
        return [
            {"name": kind, "params": parameters, "weight_decay": decay.get(kind, 0.0)}
            for kind, parameters in groups.items()
            if parameters
        ]

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note the random state of a run that is resumed; it is set when training starts."""
        self._random_state = checkpoint.get("random_state")

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
        if self.trainer.ckpt_path is None:
            self.print("initializing the quantizer from training data ...")
            self.tokenizer.initialize(
                self._initialization_inputs(), samples=self.initialization_samples, seed=self.seed
            )

    def _initialization_inputs(self) -> Iterator[Tensor]:
        # A loader of its own: the place of the training loader must not move. Micro-batches are joined, because the
        # quantizer takes from the size of a batch how many vectors one optimizer step will show.
        loader = iter(self.trainer.datamodule.initialization_dataloader())
        while batches := list(itertools.islice(loader, self.trainer.accumulate_grad_batches)):
            yield torch.cat([self.inputs(self.transfer_batch_to_device(batch, self.device, 0)) for batch in batches])


def _gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
