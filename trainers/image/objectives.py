"""Distances of images."""

import torch.nn.functional as F
from torch import Tensor

from trainers.core.objective import Objective


class L1(Objective):
    """Mean absolute error, in float32.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "l1") -> None:
        super().__init__(weight=weight, name=name)

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Over images (B, C, H, W)."""
        return F.l1_loss(reconstruction.float(), reference.float())


class L2(Objective):
    """Mean squared error, in float32.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "l2") -> None:
        super().__init__(weight=weight, name=name)

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Over images (B, C, H, W)."""
        return F.mse_loss(reconstruction.float(), reference.float())
