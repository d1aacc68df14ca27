"""Distances of images."""

import torch.nn.functional as F
from torch import Tensor

from trainers.core.objective import Objective


class AbsoluteError(Objective):
    """Mean absolute error, in float32.

    Args:
        weight: in the total.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(weight=weight, name="l1")

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Over images (B, C, H, W)."""
        return F.l1_loss(reconstruction.float(), reference.float())


class SquaredError(Objective):
    """Mean squared error, in float32.

    Args:
        weight: in the total.
    """

    def __init__(self, weight: float) -> None:
        super().__init__(weight=weight, name="l2")

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Over images (B, C, H, W)."""
        return F.mse_loss(reconstruction.float(), reference.float())
