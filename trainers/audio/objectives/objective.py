"""The base of objectives of waveforms."""

from abc import abstractmethod

import torch
from torch import Tensor

from trainers.core.objective import Objective
from vqkit.runtime import autocast_disabled


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
