"""Distances of vectors (B, C), and of series (B, C, T), as objectives."""

import torch.nn.functional as F
from torch import Tensor

from trainers.core.objective import Objective


class VectorObjective(Objective):
    """A distance of vectors, or of series of vectors: its base takes one number of axes, this one both.

    A task compares scaled vectors (`vqkit.tokenizers.vectors.Scaling`), so that weights mean the same for any data.
    """

    axes = ()

    def check(self, reference: Tensor, reconstruction: Tensor) -> None:
        """See `Objective`."""
        shape = reference.shape
        if shape != reconstruction.shape or len(shape) not in (2, 3) or not reference.numel():
            raise ValueError(
                f"reference has shape {tuple(shape)} and reconstruction {tuple(reconstruction.shape)}: expected the "
                "same (batch, channels) or (batch, channels, time), none of them 0"
            )


class SquaredError(VectorObjective):
    """The mean squared difference: what TIGER's RQ-VAE is trained by.

    Args:
        weight: see `Term`.
        name: see `Term`.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "squared_error") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """See `Objective`."""
        return F.mse_loss(reconstruction, reference)


class CosineDistance(VectorObjective):
    """1 - the cosine between vectors, the mean over samples and time: for neighbours by angle.

    Scaled vectors have no mean; so these are angles around the mean of the data.

    Args:
        weight: see `Term`.
        name: see `Term`.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "cosine_distance") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """See `Objective`."""
        return 1 - F.cosine_similarity(reference, reconstruction, dim=1).mean()
