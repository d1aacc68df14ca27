"""The base of objectives of images."""

from abc import abstractmethod

import torch
from torch import Tensor

from trainers.core.objective import Objective
from vqkit.runtime import autocast_disabled


class ImageObjective(Objective):
    """A distance of images: a derived class writes `distance`.

    It is always computed in float32 (float64 stays), whatever is autocast around it.

    Args:
        weight: see `Objective`.
        name: see `Objective`.

    Raises:
        ValueError: see `Objective`; in `forward` if the shapes differ or are not (B, C, H, W).
    """

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance.

        Args:
            reference: (B, C, H, W) images in [-1, 1].
            reconstruction: (B, C, H, W) of the tokenizer.

        Returns:
            float32 scalar.
        """
        if reference.shape != reconstruction.shape or reference.ndim != 4 or not reference.numel():
            raise ValueError(
                f"reference has shape {tuple(reference.shape)} and reconstruction {tuple(reconstruction.shape)}: "
                "expected the same (batch, channels, height, width), none of them 0"
            )
        with autocast_disabled(reconstruction.device):
            return self.distance(
                *(x.to(torch.promote_types(x.dtype, torch.float32)) for x in (reference, reconstruction))
            )

    @abstractmethod
    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance of (B, C, H, W) images, as a scalar."""
