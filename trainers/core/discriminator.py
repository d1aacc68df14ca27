"""The interface of discriminators, of any modality."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
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
    """A discriminator of batches (B, C, ...): one or more sub-discriminators, each with a view of its own.

    A derived class sets `axes` and writes `judge`. `trainers.core.Adversary` runs it three times on one batch: on the
    originals, on the reconstructions, and on these once more with its parameters as constants. So it must not draw
    random numbers nor keep what it saw. If it couples the items of a batch (batch norm), then by statistics of that one
    call, and its docstring says so.

    Args:
        in_channels: C, such as 1 for mono, 2 for stereo, 3 for RGB; channels are judged together.

    Attributes:
        axes: names of the axes after the channels, such as ("samples",) or ("height", "width").

    Raises:
        ValueError: `in_channels` is below 1; in `forward` if the batch has other axes or channels, or is empty.
    """

    axes: ClassVar[tuple[str, ...]]

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels={in_channels}: expected 1 or more, as many as the tokenizer's")
        self.in_channels = in_channels

    def forward(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """Judge a batch.

        Args:
            batch: (B, C, ...) in [-1, 1]; along each of `axes` of any size from 1 on, or from the least that the class
                names.

        Returns:
            one output for each sub-discriminator, always in the same order.
        """
        if batch.ndim != 2 + len(self.axes) or batch.shape[1] != self.in_channels or not batch[:1].numel():
            raise ValueError(
                f"batch has shape {tuple(batch.shape)}, expected (batch, {self.in_channels}, {', '.join(self.axes)}), "
                f"none of them 0: in_channels={self.in_channels} of {type(self).__name__} must be the channels of the "
                "tokenizer"
            )
        return self.judge(batch)

    @abstractmethod
    def judge(self, batch: Tensor) -> list[DiscriminatorOutput]:
        """`forward` behind its checks."""


def hidden_layers(layers: nn.Module, x: Tensor, *, slope: float) -> list[Tensor]:
    """The outputs of the children of `layers` one after another, each behind a leaky rectifier."""
    features = []
    for layer in layers.children():
        x = F.leaky_relu(layer(x), slope)
        features.append(x)
    return features
