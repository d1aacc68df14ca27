"""Distances of waveforms, sample by sample."""

import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio

from trainers.audio.objectives.objective import WaveformObjective


class WaveformL1(WaveformObjective):
    """Mean absolute difference of samples.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "waveform_l1") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        return F.l1_loss(reconstruction, reference)


class WaveformL2(WaveformObjective):
    """Mean squared difference of samples.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "waveform_l2") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        return F.mse_loss(reconstruction, reference)


class NegativeSISDR(WaveformObjective):
    """Minus the scale-invariant ratio of signal to distortion, in dB, averaged over the batch.

    It says nothing of the level, so it wants another objective beside it. A silent recording has no such ratio: it
    is left out of the average.

    Source: Le Roux, Wisdom, Erdogan, Hershey 2019 (arXiv:1811.02508), eq. 4, by torchmetrics.

    Args:
        weight: factor of the term in the total.
        name: under which the term is logged.
    """

    def __init__(self, *, weight: float = 1.0, name: str = "negative_si_sdr") -> None:
        super().__init__(weight=weight, name=name)

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (N, T) waveforms, a scalar."""
        sounding = reference.square().sum(-1) > 0
        ratios = scale_invariant_signal_distortion_ratio(reconstruction, reference).where(sounding, 0.0)
        return -ratios.sum() / sounding.sum().clamp_min(1)
