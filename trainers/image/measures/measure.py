"""What a measure of images is."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


class ImageMeasure(ABC):
    """Figures of originals and reconstructions, by a frozen network.

    It is no module: a model of 16 bits does not take it along, and nothing of it is in checkpoints.

    Args:
        name: with which the names of its figures begin: letters, digits and `_`.

    Raises:
        ValueError: `name` has other characters.
    """

    def __init__(self, name: str) -> None:
        if not name.isidentifier():
            raise ValueError(f"name={name!r} of a measure: expected letters, digits and _, such as lpips_vgg")
        self.name = name

    @abstractmethod
    def reset(self, device: torch.device) -> None:
        """Forget all images, and go to a device."""

    @abstractmethod
    def update(self, originals: Tensor, reconstructions: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """Add a batch.

        Args:
            originals: (B, C, H, W) on the uint8 grid scaled to [-1, 1], float32.
            reconstructions: like `originals`.
            groups: (B,) int64, equal for images of one group; without groups a hash of the pixels.

        Returns:
            The figures that a single image has, (B,) each.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The figures of all ranks; every rank must call it.

        Raises:
            ValueError: there were too few images.
        """

    @abstractmethod
    def protocol(self, *, halves: str) -> dict[str, Any]:
        """How the figures of the last `compute` were measured: what has to be equal for them to be compared.

        Args:
            halves: what decided in which half of the originals an image is.
        """
