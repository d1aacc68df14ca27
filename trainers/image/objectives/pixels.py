"""Distances of images, pixel by pixel."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.image.objectives.objective import ImageObjective


class L1(ImageObjective):
    """Mean absolute error.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "l1") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        return F.l1_loss(reconstruction, reference)


class L2(ImageObjective):
    """Mean squared error.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "l2") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        return F.mse_loss(reconstruction, reference)


class LogitLaplace(ImageObjective):
    """Negative log-likelihood of the pixels under the logit-Laplace distribution, in nats for each value.

    ln 2b + ln p (1 - p) + |logit p - logit p'| / b, with p = epsilon + (1 - 2 epsilon) (x + 1) / 2 of the image and
    p' of its reconstruction. The scale b is one number that is trained with the tokenizer. As a density the term may
    be negative.

    Source: Ramesh et al. 2021 (DALL-E, arXiv:2102.12092), appendix A.3, eq. 2.
    Differs: there the decoder puts out logit p' and ln b for every value; ours puts out the image, as for every other
    objective, and b is the same everywhere. Beyond [-1, 1], where p' would leave (0, 1), the logit goes on along its
    tangent, so that the gradient stays.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
        epsilon: distance of p from 0 and 1, in (0, 0.5).
        initial_scale: b before training, above 0.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        *,
        weight: float = 1.0,
        name: str = "logit_laplace",
        epsilon: float = 0.1,
        initial_scale: float = 1.0,
    ) -> None:
        super().__init__(weight=weight, name=name)
        if not 0 < epsilon < 0.5:
            raise ValueError(f"epsilon={epsilon}: expected a number in (0, 0.5), such as 0.1")
        if not initial_scale > 0:
            raise ValueError(f"initial_scale={initial_scale}: expected a positive number, such as 1")
        self.epsilon = epsilon
        self.log_scale = nn.Parameter(torch.tensor(math.log(initial_scale)))

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (B, C, H, W) images, a scalar."""
        target, location = self._logit(reference), self._logit(reconstruction)
        volume = (F.logsigmoid(target) + F.logsigmoid(-target)).mean()  # ln p (1 - p)
        return math.log(2) + self.log_scale + volume + F.l1_loss(location, target) * torch.exp(-self.log_scale)

    def _logit(self, images: Tensor) -> Tensor:
        inside = images.clamp(-1, 1)
        slope = (1 - 2 * self.epsilon) / 2 / (self.epsilon * (1 - self.epsilon))  # at both ends
        return torch.logit(0.5 + (0.5 - self.epsilon) * inside) + slope * (images - inside)
