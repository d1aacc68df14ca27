"""Distances of what two channels have in common, and of how they differ."""

from torch import Tensor

from trainers.audio.objectives.objective import WaveformObjective


class SumAndDifference(WaveformObjective):
    """Another objective of the sum and of the difference of the two channels of stereo, averaged.

    (sum_weight d(l + r, l' + r') + difference_weight d(l - r, l' - r')) / 2. An objective of the channels one by one
    hardly sees the stereo image: what is between them is small in both.

    Source: Steinmetz, Pons, Pascual, Serrà 2020 (arXiv:2010.10291), sec. 3.2. The numbers with `MultiResolutionSTFT`
    are those of auraloss 0.4, which the tests compare.

    Args:
        objective: of one channel, such as `MultiResolutionSTFT`; its weight is that of this term.
        sum_weight: share of the sum.
        difference_weight: share of the difference.

    Attributes:
        name: that of the objective with "sum_difference_" before it.

    Raises:
        ValueError: a share is negative, or both are 0; in `forward` for other than two channels.
    """

    def __init__(
        self, objective: WaveformObjective, *, sum_weight: float = 1.0, difference_weight: float = 1.0
    ) -> None:
        super().__init__(weight=objective.weight, name=f"sum_difference_{objective.name}")
        if min(sum_weight, difference_weight) < 0 or not sum_weight + difference_weight > 0:
            raise ValueError(
                f"sum_weight={sum_weight}, difference_weight={difference_weight}: expected numbers of at least 0, one "
                "of them above 0"
            )
        self.objective = objective
        self.sum_weight = sum_weight
        self.difference_weight = difference_weight

    def check(self, reference: Tensor, reconstruction: Tensor) -> None:
        """See `Objective`; two channels."""
        super().check(reference, reconstruction)
        if reference.shape[1] != 2:
            raise ValueError(
                f"{self.name} is of stereo, got {reference.shape[1]} channel(s): train two channels, or leave it out"
            )

    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """Of (2 B, T) waveforms, left and right in turns, a scalar."""
        terms = []
        for weight, sign in ((self.sum_weight, 1), (self.difference_weight, -1)):
            x, y = (wave[::2] + sign * wave[1::2] for wave in (reference, reconstruction))
            terms.append(weight * self.objective.distance(x, y))
        return (terms[0] + terms[1]) / 2
