"""Normalization between the layers of a discriminator."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn


class Normalization(ABC):
    """A kind of layer that normalizes maps.

    Attributes:
        centers: whether it takes a mean out of each channel, so that a bias before it would have no effect.
    """

    centers: ClassVar[bool] = False

    @abstractmethod
    def layer(self, channels: int) -> nn.Module:
        """A new layer for maps (B, channels, H, W)."""


class NoNorm(Normalization):
    """No normalization."""

    def layer(self, channels: int) -> nn.Module:
        """The identity."""
        return nn.Identity()


class BatchNorm(Normalization):
    """Normalizes each channel over the batch and all positions, always by the statistics of that one call.

    Originals and reconstructions are normalized apart, as in the published trainers, which judge them in two calls. The
    call that the generator's term is made of sees the reconstructions again, hence the same statistics. There are no
    running statistics: nothing but training judges images, so that they would be kept for nothing, and could differ
    between processes.

    Each process takes the statistics of its own images, as published. So two processes differ from one with the joined
    batch; on GPUs `trainer.sync_batchnorm: true` joins the statistics.

    Source: Ioffe, Szegedy 2015 (arXiv:1502.03167), alg. 1. Gains start from N(1, 0.02) as in Isola et al. 2017
    (1611.07004), app. 6.2.
    """

    centers = True

    def layer(self, channels: int) -> nn.Module:
        """A batch norm without running statistics."""
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        nn.init.normal_(norm.weight, 1.0, 0.02)
        return norm


class GroupNorm(Normalization):
    """Normalizes groups of channels of each image by itself: the images of a batch do not see each other.

    Source: Wu, He 2018 (arXiv:1803.08494), eq. 7.

    Args:
        num_groups: of each layer; the number of its channels must be a multiple.

    Raises:
        ValueError: `num_groups` is below 1; in `layer` if it does not divide the channels.
    """

    def __init__(self, num_groups: int = 32) -> None:
        if num_groups < 1:
            raise ValueError(f"num_groups={num_groups}: expected at least 1")
        self.num_groups = num_groups

    def layer(self, channels: int) -> nn.Module:
        """A group norm."""
        if channels % self.num_groups:
            raise ValueError(
                f"num_groups={self.num_groups} does not divide the {channels} channels of a layer: choose a divisor, "
                "or other channels"
            )
        return nn.GroupNorm(self.num_groups, channels)
