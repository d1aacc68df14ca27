"""What every reconstruction objective is to the training code, and what those of waveforms share."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vqkit.runtime import autocast_disabled


class Objective(nn.Module, ABC):
    """A distance of a reconstruction from what was to be reconstructed, and its weight in the total.

    Args:
        weight: factor of the term in the total, at least 0; `forward` does not apply it.
        name: under which the term is logged; must be unique among the objectives of a task.

    Raises:
        ValueError: `weight` is negative.
    """

    def __init__(self, *, weight: float, name: str) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight={weight} of the objective {name!r}: expected a number of at least 0")
        self.weight = weight
        self.name = name

    @abstractmethod
    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance, a float32 scalar, of two tensors of one shape."""


class WaveformObjective(Objective):
    """A distance of waveforms: a derived class writes `distance`.

    It is always computed in float32 (float64 stays), whatever is autocast around it, and sees the channels as items of
    the batch, so that any number of them goes.

    Args:
        weight: see `Objective`.
        name: see `Objective`.

    Raises:
        ValueError: see `Objective`; in `forward` if the shapes differ or are not (B, C, T >= 1).
    """

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance.

        Args:
            reference: (B, C, T) recordings in [-1, 1].
            reconstruction: (B, C, T) of the codec.

        Returns:
            float32 scalar.
        """
        if reference.shape != reconstruction.shape or reference.ndim != 3 or not reference.numel():
            raise ValueError(
                f"reference has shape {tuple(reference.shape)} and reconstruction {tuple(reconstruction.shape)}: "
                "expected the same (batch, channels, samples), none of them 0"
            )
        with autocast_disabled(reconstruction.device):
            return self.distance(_folded(reference), _folded(reconstruction))

    @abstractmethod
    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance of (N, T) waveforms, N = B C, as a scalar."""


def _folded(wave: Tensor) -> Tensor:
    return wave.flatten(0, 1).to(torch.promote_types(wave.dtype, torch.float32))
