"""The base of objectives of waveforms."""

from torch import Tensor

from trainers.core.objective import Objective


class WaveformObjective(Objective):
    """A distance of waveforms (B, C, T) in [-1, 1]: a derived class writes `distance`.

    It sees the channels as items of the batch, (B C, T), so that any number of them goes.
    """

    axes = ("samples",)

    def compared(self, batch: Tensor) -> Tensor:
        """(B, C, T) -> (B C, T) in float32 or float64."""
        return super().compared(batch).flatten(0, 1)
