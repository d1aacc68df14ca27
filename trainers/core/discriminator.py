"""The interface of discriminators of waveforms."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Logits and features of one sub-discriminator.

    Attributes:
        logits: (B, ...), one per patch that it judges; high for what it takes for real. In the dtype of its layers.
        features: outputs of its hidden layers after their activation, in order, without the logits.
    """

    logits: Tensor
    features: list[Tensor]


class Discriminator(nn.Module, ABC):
    """A discriminator of waveforms (B, C, T): one or more sub-discriminators, each with a view of its own.

    A derived class writes `judge`. It must not couple the items of a batch (no batch norm), nor draw random numbers:
    `trainers.core.Adversary` runs it three times on one batch.

    Args:
        in_channels: C, 1 for mono and 2 for stereo; channels are judged together.

    Raises:
        ValueError: `in_channels` is below 1; in `forward` if the waveform is not (B, in_channels, T >= 1).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels}: expected 1 (mono), 2 (stereo) or more")
        self.in_channels = in_channels

    def forward(self, wave: Tensor) -> list[DiscriminatorOutput]:
        """Judge a batch.

        Args:
            wave: (B, C, T) in [-1, 1], any T from 1 on; short ones are padded by zeros.

        Returns:
            one output for each sub-discriminator, always in the same order.
        """
        if wave.ndim != 3 or wave.shape[1] != self.in_channels or wave.shape[2] < 1:
            raise ValueError(
                f"wave has shape {tuple(wave.shape)}, expected (batch, {self.in_channels}, samples) with at least one "
                f"sample: in_channels={self.in_channels} of {type(self).__name__} must be the channels of the codec"
            )
        return self.judge(wave)

    @abstractmethod
    def judge(self, wave: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""
