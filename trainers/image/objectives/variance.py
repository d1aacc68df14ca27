"""Distances as likelihoods with a trained variance."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainers.core.objective import Objective
from trainers.image.objectives.objective import ImageObjective


class LearnedVariance(ImageObjective):
    """Distances divided by a variance that is trained with the tokenizer: exp(-s) d + s.

    d is the weighted sum of the objectives inside and s, `log_variance`, one number, which settles at ln d: so the term
    has a gradient of one size, however good reconstructions become. With s constant it would be the objectives
    themselves with their weights times exp(-s).

    Source: the code of Rombach et al. 2022 (LDM, arXiv:2112.10752), with pixels and LPIPS inside, where s is in no
    optimizer; Tang et al. 2024 (VidTok, 2412.13061) train it.
    Differs: they sum over the C H W values of an image where we take the mean, so that theirs is ours with C H W times
    the weight. s has the tokenizer's learning rate and no weight decay.

    Args:
        objectives: of which d is the weighted sum; they are logged as this one term.
        weight: factor of the term in the total.
        name: under which the term is logged.
        initial_log_variance: s before training.

    Raises:
        ValueError: `objectives` is empty, or all of their weights are 0.

    Examples:
        >>> from trainers.image import L1
        >>> objective = LearnedVariance([L1()])
        >>> objective(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5))
        tensor(0.5000, grad_fn=<AddBackward0>)
    """

    def __init__(
        self,
        objectives: Sequence[Objective],
        *,
        weight: float = 1.0,
        name: str = "likelihood",
        initial_log_variance: float = 0.0,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not any(objective.weight for objective in objectives):
            weights = [objective.weight for objective in objectives]
            raise ValueError(f"objectives of {name!r} have the weights {weights}: expected one of them above 0")
        self.objectives = nn.ModuleList(objectives)
        self.log_variance = nn.Parameter(torch.tensor(float(initial_log_variance)))

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        terms = [
            part.weight * part(reference, reconstruction) for part in self.objectives if isinstance(part, Objective)
        ]
        return torch.stack(terms).sum() * torch.exp(-self.log_variance) + self.log_variance
