"""The one training step of a tokenizer, whatever its modality."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Self, cast

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.core.balancer import Balancer, LossBalancer
from trainers.core.checkpoints import check_same_tokenizer, described, source_of
from trainers.core.moments import forget_rewritten_rows
from trainers.core.objective import LatentObjective, Objective
from trainers.core.optimization import (
    codebook_parameters,
    gradient_norm_at,
    objective_group,
    take_settings,
    weighted_sum,
)
from trainers.core.optimized import OptimizedTask
from trainers.core.parts import freeze_parts, rest_parts
from trainers.core.schedules import Schedule, ScheduledNumbers
from vqkit import Quantizer, Tokenizer, first_levels, without_quantization
from vqkit.saving.pretrained import PROVENANCE
from vqkit.tokenizers.tokenizer import TokenizerOutput


class TokenizerTask(OptimizedTask):
    """Trains a tokenizer by objectives and, where wanted, against discriminators: one forward, one backward, one step.

    A modality derives from it and says what its inputs are and how they are measured. The total is the weighted sum of
    the objectives and of the adversary's terms plus the quantizer's own loss; the terms that are summed are the terms
    that are logged, unweighted, under `train/`.

    One optimizer trains generator and discriminators: the discriminators' loss is added to the generator's, and neither
    sends a gradient to the other's parameters (`Adversary`). So the count of steps, accumulation of gradients,
    precision, data parallelism and checkpoints are those of any other training. Gradients of generator and
    discriminators are clipped apart (`trainer.gradient_clip_val` holds for each).

    The trainer owns the optimizer boundary: quantizers fold their statistics there (`quantizer.step()`), so
    accumulating gradients over n batches gives the codebook of one batch n times as large.

    Nothing in a step waits for the device; what is read on the host is read at every `trainer.log_every_n_steps`.

    Args:
        tokenizer: encoder, quantizer and decoder.
        balancer: weighs objectives and adversarial terms by their gradients: `LossBalancer` (EnCodec) makes weights
            shares of the gradient that the decoder gets, `AdaptiveWeight` (VQGAN) scales the adversarial term alone;
            None sums them. The quantizer's loss and penalties on what is decoded stay outside.
        initialization_samples: vectors from which the quantizer is initialized before training; None lets it decide.
        seed: of the initialization.
        pretraining_steps: optimizer steps without quantization (`vqkit.without_quantization`), before the quantizer is
            initialized from the latents of that time. Until then there are no codes to count, validation measures
            what the decoder makes of unquantized latents (`validation_unquantized/`), and the optimizer leaves the
            codebooks alone.
        schedules: of other numbers, by their names in the parts of the tokenizer, in `objectives`, `adversary` and
            `balancer`: `quantizer.losses.entropy.weight`, `objectives.l1.weight` (`ScheduledNumbers`). Each is set
            before every batch to the value of its optimizer step, and logged under `schedule/`; where `*` makes a name
            that of several, the first is logged.
        freeze: parts of the tokenizer that stay as they are, to the last bit, while the rest trains: `encoder`,
            `quantizer`, or by a longer name `decoder.layers.0`. They run in eval mode: no dropout, no statistics of
            norms and codes, no restarts. A quantizer of which anything is frozen is not initialized from data.
        arguments: of `OptimizedTask`.

    Raises:
        ValueError: see `OptimizedTask`; an argument is out of its range, an objective of reconstructions has parameters
            and there is a balancer, `freeze` names what the tokenizer does not have or leaves nothing to train, or
            there is no number of a name in `schedules`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        balancer: Balancer | None = None,
        initialization_samples: int | None = None,
        seed: int = 0,
        pretraining_steps: int = 0,
        schedules: Mapping[str, Schedule] | None = None,
        freeze: Sequence[str] = (),
        **arguments: Any,
    ) -> None:
        super().__init__(tokenizer, **arguments)
        if pretraining_steps < 0:
            raise ValueError(f"pretraining_steps={pretraining_steps}: expected 0 or more optimizer steps")
        if isinstance(balancer, LossBalancer) and objective_group(nn.ModuleList(self.terms)):
            raise ValueError(
                "balancer with an objective that trains parameters: it gives a gradient to the reconstruction alone; "
                "leave the balancer out, or use objectives without a trained variance or scale"
            )
        for levels in self.read_levels:
            tokenizer.quantizer.check_first_levels(levels)
        self.balancer = balancer
        self.initialization_samples = initialization_samples
        self.seed = seed
        self.pretraining_steps = pretraining_steps
        self.quantizer_initialized_at: int | None = None
        self._random_state: dict[str, Any] | None = None
        others = {"objectives": self.objectives, "adversary": self.adversary, "balancer": balancer}
        parts = dict(tokenizer.named_children()) | {key: part for key, part in others.items() if part is not None}
        self.scheduled = {
            name: ScheduledNumbers(schedule, parts, name, argument=f"schedules[{name!r}]")
            for name, schedule in (schedules or {}).items()
        }
        self.keeps_quantizer = False
        self.frozen = freeze
        freeze_parts(tokenizer, freeze)
        self.train(self.training)
        if any(name.partition(".")[0] == "quantizer" for name in freeze):
            self.keep_quantizer("freeze keeps it as it is")

    def keep_quantizer(self, reason: str) -> None:
        """Do not initialize the quantizer from data.

        Args:
            reason: for the message.

        Raises:
            ValueError: it would have to be, because there is a time without quantization before.
        """
        if self.pretraining_steps:
            raise ValueError(
                f"pretraining_steps={self.pretraining_steps}: the quantizer would be initialized after them, but "
                f"{reason}; set pretraining_steps to 0"
            )
        self.keeps_quantizer = True

    @property
    def head_start(self) -> bool:
        """Whether this optimizer step is one in which the discriminators learn alone."""
        return self.adversary is not None and self.adversary.learns_alone(self.global_step)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules; frozen parts, and all while discriminators learn alone, stay in eval mode."""
        super().train(mode)
        self._rests = self.head_start
        rest_parts(
            self.tokenizer, [*dict(self.tokenizer.named_children())] if self._rests else self.frozen, training=mode
        )
        return self

    def setup(self, stage: str) -> None:
        """Refuse a precision and a decoder that the balancer cannot work with."""
        if self.balancer is not None and stage == "fit":
            with self.balancer.watching(self.tokenizer.decoder):
                pass
        if self.balancer is not None and self.trainer.precision == "16-mixed":
            raise ValueError(
                "precision=16-mixed with a balancer: it differentiates each term without the loss scale, and the "
                "discriminators' gradients underflow in float16; use bf16-mixed or 32-true"
            )

    # ------------------------------------------------------------------ the step

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """One forward; returns the loss, and what callbacks look at. `indices` is None while there are no codes."""
        inputs = self.inputs(batch)
        watching = nullcontext() if self.balancer is None else self.balancer.watching(self.tokenizer.decoder)
        with watching, first_levels(self.tokenizer.quantizer, self.read_levels) as vectors:
            output = self.reconstruct(inputs)
        total, terms = self.reconstruction_loss(inputs, output.reconstruction)
        loss = output.quantizer.loss + total
        for objective in self.latent_terms:
            quantized = output.quantizer.quantized if objective.levels is None else vectors[objective.levels]
            terms[objective.name] = objective(inputs, quantized)
            loss = loss + objective.weight * terms[objective.name]
        terms |= {f"quantizer/{name}": term for name, term in output.quantizer.losses.items()}
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
        """Objectives and adversarial terms, summed or balanced, and the discriminators' own loss."""
        # Once for all terms, so that low precision ends here, also where the balancer differentiates.
        reconstruction = reconstruction.to(torch.promote_types(reconstruction.dtype, torch.float32))
        inputs = inputs.to(reconstruction.dtype)
        terms = {objective.name: objective(inputs, reconstruction) for objective in self.terms}
        weights = {objective.name: objective.weight for objective in self.terms}
        if self.adversary is None:
            return self._joined(terms, weights, reconstruction), terms
        if not self.adversary.active(self.global_step):
            return self._joined(terms, weights, reconstruction) + self.adversary.idle(), terms
        output = self.adversary(inputs, reconstruction, step=self.global_step)
        adversarial = self.adversary.weights(self.global_step)
        self.log_dict({f"train/{name}": figure for name, figure in output.figures.items()})
        if self.balancer is None and reconstruction.requires_grad and self.logs_this_step:
            theirs = gradient_norm_at(reconstruction, output.generator, adversarial)
            self.log("train/adversarial_gradient_ratio", theirs / gradient_norm_at(reconstruction, terms, weights))
        terms, weights = terms | output.generator, weights | adversarial
        total = self._joined(terms, weights, reconstruction) + output.discriminator
        if self.adversary.learns(self.global_step):
            terms = terms | {"discriminator_loss": output.discriminator}
        return total, terms

    @property
    def terms(self) -> list[Objective]:
        """The objectives of reconstructions, as what they are: a `ModuleList` only says that they are modules."""
        return [objective for objective in self.objectives if isinstance(objective, Objective)]

    @property
    def latent_terms(self) -> list[LatentObjective]:
        """The objectives of quantized vectors."""
        return [objective for objective in self.objectives if isinstance(objective, LatentObjective)]

    @property
    def read_levels(self) -> set[int]:
        """How many first levels the objectives of quantized vectors read, where it is not all."""
        return {objective.levels for objective in self.latent_terms if objective.levels is not None}

    def _joined(self, terms: dict[str, Tensor], weights: dict[str, float], reconstruction: Tensor) -> Tensor:
        if self.balancer is not None:
            total = self.balancer(terms, weights, self.balancer.point(reconstruction))
            self.log_dict({f"train/{name}": figure for name, figure in self.balancer.figures.items()})
            return total
        return weighted_sum(terms, weights)

    @property
    def pretraining(self) -> bool:
        """Whether training goes on without quantization, because the quantizer is not initialized yet."""
        return self.pretraining_steps > 0 and self.quantizer_initialized_at is None and self.trainer.state.fn == "fit"

    @property
    def validation_name(self) -> str:
        """The name under which figures of validation are logged; another one while there are no codes."""
        return "validation_unquantized" if self.pretraining else "validation"

    # ------------------------------------------------------------------ the optimizer

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step the optimizer, then fold the codebook statistics of all the batches that led here."""
        rests = self.head_start  # before the step is counted
        super().optimizer_step(*args, **kwargs)
        if "quantizer" not in self.frozen and not rests:
            self.tokenizer.quantizer.step()
        if self.adversary is not None:
            self.adversary.fold()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave idle parameters alone, forget moments of rewritten codes, log gradient norms (before clipping)."""
        for parameter in self.idle_parameters():
            parameter.grad = None  # zeros would move it all the same: by weight decay, and by the moments later
        forget_rewritten_rows(self.tokenizer.quantizer, optimizer)
        if self.logs_this_step:
            self.log_dict({f"gradient_norm/{name}": norm for name, norm in self.gradient_norms().items()})

    def idle_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that take no part in this step: codebooks in pre-training, discriminators that do not learn, and
        all others in their head start.
        """
        if self.head_start:
            yield from itertools.chain(self.tokenizer.parameters(), self.objectives.parameters())
        elif self.pretraining:
            yield from codebook_parameters(self.tokenizer)
        if self.adversary is not None and not self.adversary.learns(self.global_step):
            yield from self.adversary.parameters()

    # ------------------------------------------------------------------ before the first step

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the tokenizer is, whose run it is, and the random state, so that a resumed run draws the same."""
        checkpoint["tokenizer"] = described(self.tokenizer)
        checkpoint[PROVENANCE] = self.tokenizer.provenance and dict(self.tokenizer.provenance)
        checkpoint["run"] = self.run_id
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        checkpoint["quantizer_initialized_at"] = self.quantizer_initialized_at

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse another tokenizer's; note the random state of a run that is resumed, set when training starts."""
        check_same_tokenizer(checkpoint.get("tokenizer"), self.tokenizer, self.trainer.ckpt_path)
        super().on_load_checkpoint(checkpoint)
        self.tokenizer.provenance = checkpoint.get(PROVENANCE, self.tokenizer.provenance)
        averages = any(isinstance(callback, WeightAveraging) for callback in getattr(self.trainer, "callbacks", []))
        if self.trainer.state.fn == "fit" and not averages and "current_model_state" in checkpoint:
            # Training without the average goes on from the weights that the optimizer's moments belong to.
            checkpoint["state_dict"] = checkpoint["current_model_state"]
        self._random_state = checkpoint.get("random_state")
        self.quantizer_initialized_at = checkpoint.get("quantizer_initialized_at", 0)

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run, after whatever drew numbers before, and settle its optimizer."""
        self.weights = source_of(None, None, None)  # no longer those of a checkpoint
        if self.trainer.ckpt_path is not None:
            scheduler = self.trainer.lr_scheduler_configs[0].scheduler
            take_settings(self.trainer.optimizers[0], scheduler, self.configure_optimizers())
        if self._random_state is None:
            return
        torch.set_rng_state(self._random_state["cpu"].cpu())
        if len(self._random_state["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all([state.cpu() for state in self._random_state["cuda"]])

    def on_fit_start(self) -> None:
        """Take over the optimizer boundary, and initialize the quantizer from data unless it is kept or resumed."""
        for module in self.tokenizer.quantizer.modules():
            if isinstance(module, Quantizer):
                module.auto_step = False
        self._total_steps = self.trainer.estimated_stepping_batches
        for numbers in self.scheduled.values():
            numbers.check(last=self._total_steps)
        dry = getattr(self.trainer, "fast_dev_run", False)
        if 0 < self.pretraining_steps >= self.trainer.estimated_stepping_batches and not dry:
            raise ValueError(
                f"pretraining_steps={self.pretraining_steps} of {self.trainer.estimated_stepping_batches} optimizer "
                "steps: the quantizer would never be initialized, and the saved codes mean nothing; lower "
                "pretraining_steps (0 for none), or raise trainer.max_steps"
            )
        if self.trainer.ckpt_path is None:
            self.quantizer_initialized_at = 0 if self.keeps_quantizer else None
            if not self.pretraining_steps and not self.keeps_quantizer:
                self._initialize_quantizer()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Set what follows a schedule; end a head start; initialize the quantizer when pre-training is over."""
        if self._rests != self.head_start:
            self.train()
        for name, numbers in self.scheduled.items():
            self.log(f"schedule/{name}", numbers.set(self.trainer.global_step, last=self._total_steps))
        if self.quantizer_initialized_at is None and self.trainer.global_step >= self.pretraining_steps:
            self._initialize_quantizer()

    def _initialize_quantizer(self) -> None:
        if self.tokenizer.quantizer.codebook_sizes:
            self.print("initializing the quantizer from training data ...")
        self.tokenizer.initialize(self._initialization_inputs(), samples=self.initialization_samples, seed=self.seed)
        self.quantizer_initialized_at = self.trainer.global_step

    def _initialization_inputs(self) -> Iterator[Tensor]:
        # A loader of its own: the place of the training loader must not move. Micro-batches are joined, because the
        # quantizer takes from the size of a batch how many vectors one optimizer step will show.
        data: Any = getattr(self.trainer, "datamodule", None)
        loader = iter(data.initialization_dataloader())
        while batches := list(itertools.islice(loader, self.trainer.accumulate_grad_batches)):
            yield torch.cat([self.inputs(self.transfer_batch_to_device(batch, self.device, 0)) for batch in batches])


def task_of(module: LightningModule) -> TokenizerTask:
    """The task that Lightning hands to a callback as any module."""
    return cast(TokenizerTask, module)
