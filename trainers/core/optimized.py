"""The optimizer of a task: what it moves, how fast, and how far at most."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainers.core.adversary import Adversary
from trainers.core.evaluation import EvaluatedTask
from trainers.core.objective import Objective, Term
from trainers.core.optimization import (
    DISCRIMINATORS,
    OBJECTIVES,
    discriminator_group,
    factors_of_groups,
    gradient_norm,
    objective_group,
    parameter_groups,
)
from trainers.core.schedules import AT_LEAST_0, Cosine, Schedule
from vqkit import Tokenizer
from vqkit.parts.compatibility import check_names

DEFAULT_FINAL_RATIO = 0.05
"""End of the cosine as a share of the peak, where neither a ratio nor a schedule is given."""


class OptimizedTask(EvaluatedTask):
    """The optimizer half of a task: AdamW for tokenizer, objectives and discriminators, in groups of their own.

    Args:
        tokenizer: encoder, quantizer and decoder.
        objectives: distances of reconstructions from inputs, each with its weight, and penalties on what is decoded
            (`LatentObjective`); names differ. Parameters that they have, such as a variance, are trained with the
            tokenizer, without weight decay, and clipped with it.
        adversary: discriminators, their loss and the weights of what the generator gets from them. Until step
            `adversary.start_step` they do not run; until then, and at steps at which they do not learn, their
            parameters stay as they are to the last bit.
        learning_rate: peak of the schedule; discriminators may have another one, on the same curve.
        learning_rate_batch_size: samples in an optimizer step, over all devices and accumulated batches, for which
            learning rates hold: they grow with those that there are (Goyal et al. 2017,
            [arXiv:1706.02677](https://arxiv.org/abs/1706.02677), sec. 2.1). 1 makes of `learning_rate` the
            `base_learning_rate` of taming-transformers; None takes learning rates as they are.
        schedule: of `learning_rate` behind the warm-up, by optimizer steps; None is half a cosine to the end of the
            training, down to `final_learning_rate_ratio`. Rates that it names hold for `learning_rate_batch_size` too.
        final_learning_rate_ratio: end of that cosine as a share of the peak, in [0, 1]; 1 keeps the peak. None is 0.05;
            with a `schedule` there is none.
        warmup_steps: optimizer steps of linear warm-up, whatever the schedule. A head start of the discriminators
            (`Adversary`) does not count: warm-up and schedule of all else stand still in it.
        weight_decay: of the generator's matrices and kernels; codebooks, gains, biases and norms have none,
            discriminators their own.
        betas: of AdamW.

    Attributes:
        frozen: names of the parts of the tokenizer that stay as they are.

    Raises:
        ValueError: an argument is out of its range, two objectives have one name, or all have the weight 0.
    """

    frozen: Sequence[str] = ()

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        objectives: list[Term],
        adversary: Adversary | None = None,
        learning_rate: float = 3e-4,
        learning_rate_batch_size: int | None = None,
        schedule: Schedule | None = None,
        final_learning_rate_ratio: float | None = None,
        warmup_steps: int = 100,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(tokenizer)
        if not learning_rate > 0:
            raise ValueError(f"learning_rate={learning_rate}: expected a positive number, such as 1e-3")
        if learning_rate_batch_size is not None and learning_rate_batch_size < 1:
            raise ValueError(
                f"learning_rate_batch_size={learning_rate_batch_size}: expected samples, 1 or more, or null"
            )
        if final_learning_rate_ratio is not None and (schedule is not None or not 0 <= final_learning_rate_ratio <= 1):
            raise ValueError(
                f"final_learning_rate_ratio={final_learning_rate_ratio}: expected a share of the peak, in [0, 1], and "
                "null where there is a schedule, which has its own end"
            )
        if warmup_steps < 0:
            raise ValueError(f"warmup_steps={warmup_steps}: expected 0 or more optimizer steps")
        _check_objectives(objectives)
        self.objectives = nn.ModuleList(objectives)
        self.adversary = adversary
        self.learning_rate = learning_rate
        self.learning_rate_batch_size = learning_rate_batch_size
        ratio = DEFAULT_FINAL_RATIO if final_learning_rate_ratio is None else final_learning_rate_ratio
        self.schedule = Cosine(ratio * learning_rate) if schedule is None else schedule
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.betas = betas

    def configure_optimizers(self) -> Any:
        """AdamW with linear warm-up and the schedule, one scheduler step for each optimizer step."""
        total_steps = self.trainer.estimated_stepping_batches
        self.schedule.check(
            AT_LEAST_0,
            configured=self.learning_rate,
            first=self.warmup_steps,
            last=total_steps,
            argument="schedule of learning_rate",
        )
        groups = self.parameter_groups()
        scale = self.learning_rate_scale()
        for group in groups:
            group["lr"] = scale * group.get("lr", self.learning_rate)
        optimizer = AdamW(groups, betas=self.betas)
        scheduler = LambdaLR(
            optimizer, factors_of_groups(groups, self.learning_rate_factor, self.adversary, total_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate_scale(self) -> float:
        """Samples in an optimizer step for each one of `learning_rate_batch_size`."""
        if self.learning_rate_batch_size is None:
            return 1.0
        data: Any = getattr(self.trainer, "datamodule", None)
        batch_size = getattr(data, "batch_size", None)
        if batch_size is None:
            raise ValueError("learning_rate_batch_size is given, but the data have no batch_size: scale learning_rate")
        samples = self.trainer.world_size * batch_size * self.trainer.accumulate_grad_batches
        return float(samples / self.learning_rate_batch_size)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Those of the tokenizer and the objectives, and one of the discriminators with their own rate and betas."""
        groups = parameter_groups(self.tokenizer, weight_decay=self.weight_decay)
        if group := objective_group(self.objectives):
            groups.append(group)
        if self.adversary is None:
            return groups
        return [*groups, discriminator_group(self.adversary, learning_rate=self.learning_rate)]

    def learning_rate_factor(self, step: int, total_steps: float) -> float:
        """Share of the peak learning rate at a step, counted from 0, of so many: a line up, then the schedule."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        rate = self.schedule.value(step, configured=self.learning_rate, first=self.warmup_steps, last=total_steps)
        return rate / self.learning_rate

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of generator and discriminators apart: neither may shrink the other's step."""
        if gradient_clip_algorithm == "value" or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for theirs in (False, True):
            groups = [group for group in optimizer.param_groups if (group["name"] == DISCRIMINATORS) == theirs]
            parameters = [parameter for group in groups for parameter in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def gradient_norms(self) -> dict[str, Tensor]:
        """The norm of the gradient of each trained part, and of all of the tokenizer."""
        norms = {name: gradient_norm(part.parameters()) for name, part in self.trained_parts().items()}
        tokenizer = [norms[name] for name, _ in self.tokenizer.named_children() if name in norms]
        total = torch.stack(tokenizer).square().sum().sqrt()
        return norms | {"total": total}

    def parts(self) -> dict[str, nn.Module]:
        """The parts of the tokenizer by name, objectives with parameters, and the discriminators."""
        parts: dict[str, nn.Module] = dict(self.tokenizer.named_children())
        if objective_group(self.objectives):
            parts[OBJECTIVES] = self.objectives
        return parts if self.adversary is None else parts | {DISCRIMINATORS: self.adversary}

    def trained_parts(self) -> dict[str, nn.Module]:
        """Those of `parts` that training moves."""
        return {name: part for name, part in self.parts().items() if name not in self.frozen}

    @property
    def logs_this_step(self) -> bool:
        """Whether what costs something is logged at this optimizer step."""
        return (self.trainer.global_step + 1) % getattr(self.trainer, "log_every_n_steps", 1) == 0


def _check_objectives(objectives: Sequence[Term]) -> None:
    check_names(objective.name for objective in objectives)
    weights = {objective.name: objective.weight for objective in objectives if isinstance(objective, Objective)}
    if not any(weights.values()):
        raise ValueError(f"weights of objectives {weights}: expected one of them above 0")
