"""What the optimizer moves and how fast: groups of parameters, the schedule, and norms of gradients."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trainers.core.adversary import Adversary
from vqkit import Codebook, Tokenizer

DISCRIMINATORS = "discriminators"
"""Name of the discriminators' group, and of their part in logs."""

OBJECTIVES = "objectives"
"""The same for what objectives train."""


def parameter_groups(tokenizer: Tokenizer, *, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels with weight decay; codebooks without; gains, biases and norms without.

    Args:
        tokenizer: its trainable parameters are taken.
        weight_decay: of matrices and kernels.

    Returns:
        groups for a torch optimizer, each with its `name`; none is empty.
    """
    codebooks = {id(parameter) for parameter in codebook_parameters(tokenizer)}
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "codebooks": [], "biases and norms": []}
    for parameter in tokenizer.parameters():
        if not parameter.requires_grad:
            continue
        # The gains of weight norm are vectors, though they have the axes of their kernels.
        is_vector = parameter.numel() == max(parameter.shape, default=1)
        kind = "codebooks" if id(parameter) in codebooks else "biases and norms" if is_vector else "weights"
        groups[kind].append(parameter)
    decay = {"weights": weight_decay}
    return [
        {"name": kind, "params": parameters, "weight_decay": decay.get(kind, 0.0), "eps": smallest_step(parameters)}
        for kind, parameters in groups.items()
        if parameters
    ]


def smallest_step(parameters: Iterable[nn.Parameter]) -> float:
    """Adam's eps: 1e-8 as published, but no less than the smallest normal number of the parameters, which is 6e-5 in
    float16: there 1e-8 is 0, and what had no gradient would become NaN.
    """
    return max(1e-8, *(torch.finfo(parameter.dtype).tiny for parameter in parameters))


def discriminator_group(adversary: Adversary, *, learning_rate: float) -> dict[str, Any]:
    """The group of the discriminators, with their own settings; `learning_rate` where they have none of their own."""
    return {
        "name": DISCRIMINATORS,
        "params": list(adversary.parameters()),
        "lr": adversary.learning_rate or learning_rate,
        "betas": adversary.betas,
        "weight_decay": adversary.weight_decay,
    }


def steps_of_codec(adversary: Adversary | None, step: float) -> float:
    """Optimizer steps before `step` in which tokenizer and objectives learn: all but those of a head start."""
    if adversary is None:
        return step
    return step - min(max(0, step - adversary.start_step), adversary.head_start_steps)


def factors_of_groups(
    groups: Iterable[Mapping[str, Any]],
    factor: Callable[[int, float], float],
    adversary: Adversary | None,
    total_steps: float,
) -> list[Callable[[int], float]]:
    """For each group what its learning rate is multiplied by, from the optimizer step.

    Discriminators go by optimizer steps. All else goes by `steps_of_codec`: it warms up when it begins to learn.

    Args:
        groups: of the optimizer.
        factor: share of the peak at a step, of so many.
        adversary: whose head start does not count.
        total_steps: optimizer steps of the training.
    """
    own_steps = steps_of_codec(adversary, total_steps)

    def theirs(step: int) -> float:
        return factor(step, total_steps)

    def own(step: int) -> float:
        return factor(int(steps_of_codec(adversary, step)), own_steps)

    return [theirs if group["name"] == DISCRIMINATORS else own for group in groups]


def objective_group(objectives: nn.Module) -> dict[str, Any] | None:
    """The group of what objectives train, such as a variance, without weight decay; None where they train nothing."""
    parameters = [parameter for parameter in objectives.parameters() if parameter.requires_grad]
    return {"name": OBJECTIVES, "params": parameters, "weight_decay": 0.0} if parameters else None


def codebook_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of all codebooks in a module."""
    for part in module.modules():
        if isinstance(part, Codebook):
            yield from part.parameters()


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Euclidean norm () of all gradients together; 0 where there are none."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return torch.nn.utils.get_total_norm(gradients).float() if gradients else torch.zeros(())


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum () of scalars, each with the weight of its name."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def gradient_norm_at(point: Tensor, terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Length () of the gradient that reaches `point` from the weighted sum of terms; their graph is kept."""
    (gradient,) = torch.autograd.grad(weighted_sum(terms, weights), point, retain_graph=True)
    return gradient.norm()


def take_settings(optimizer: Optimizer, scheduler: Any, configured: Mapping[str, Any]) -> None:
    """Give a resumed optimizer the settings of the configuration; its moments and counts are the checkpoint's.

    torch loads learning rates, betas and weight decay with the state. The schedule keeps its place.

    Args:
        optimizer: of the resumed run.
        scheduler: its `LambdaLR`.
        configured: what `configure_optimizers` returns.
    """
    scheduler.base_lrs = configured["lr_scheduler"]["scheduler"].base_lrs
    asked = zip(configured["optimizer"].param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, (settings, peak, factor) in zip(optimizer.param_groups, asked, strict=True):
        group.update({name: value for name, value in settings.items() if name != "params"})
        group["lr"] = peak * factor(scheduler.last_epoch)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
