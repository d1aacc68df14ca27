"""The interfaces of objectives, of any modality: of reconstructions, and of what they are decoded from."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from vqkit.precision import FullPrecisionModule
from vqkit.runtime import autocast_disabled


class Term(FullPrecisionModule):
    """What an objective of either kind has: a weight and a name.

    Its state stays in float32 where a model of 16 bits is trained.

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

    def compared(self, batch: Tensor) -> Tensor:
        """What an objective gets of a batch (B, C, ...): the batch, in float32 or float64."""
        return batch.to(torch.promote_types(batch.dtype, torch.float32))


class Objective(Term, ABC):
    """A distance between reconstructions (B, C, ...) and their originals, with its weight in the total.

    A derived class sets `axes` and writes `distance`, which is computed in float32 (float64 stays), whatever is
    autocast around it.

    Args:
        weight: see `Term`.
        name: see `Term`.

    Attributes:
        axes: names of the axes after the channels, such as ("samples",) or ("height", "width").

    Raises:
        ValueError: `weight` is negative; in `forward` if the shapes differ, have other axes or a size of 0.
    """

    axes: ClassVar[tuple[str, ...]]

    def forward(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance.

        Args:
            reference: (B, C, ...) in [-1, 1].
            reconstruction: (B, C, ...) of the tokenizer.

        Returns:
            float32 scalar.
        """
        self.check(reference, reconstruction)
        with autocast_disabled(reconstruction.device):
            return self.distance(self.compared(reference), self.compared(reconstruction))

    def check(self, reference: Tensor, reconstruction: Tensor) -> None:
        """Refuse what `forward` cannot compare.

        Raises:
            ValueError: the shapes differ, have other axes or a size of 0.
        """
        shape = reference.shape
        if shape != reconstruction.shape or len(shape) != 2 + len(self.axes) or not reference.numel():
            raise ValueError(
                f"reference has shape {tuple(shape)} and reconstruction {tuple(reconstruction.shape)}: expected the "
                f"same (batch, channels, {', '.join(self.axes)}), none of them 0"
            )

    @abstractmethod
    def distance(self, reference: Tensor, reconstruction: Tensor) -> Tensor:
        """The unweighted distance of two tensors of one shape, as a scalar: `forward` behind its checks."""


class LatentObjective(Term, ABC):
    """A penalty on the quantized vectors, which the decoder reads, beside those on what it makes of them.

    It is added to the total with its weight, outside of a balancer, and its gradient goes through the quantizer to the
    encoder. A derived class writes `penalty`.

    Args:
        weight: see `Term`.
        name: see `Term`.
        levels: how many of the quantizer's first levels the vectors are of (`vqkit.first_levels`); None for all.

    Raises:
        ValueError: `weight` is negative.
    """

    def __init__(self, *, weight: float, name: str, levels: int | None = None) -> None:
        super().__init__(weight=weight, name=name)
        self.levels = levels

    def forward(self, reference: Tensor, quantized: Tensor) -> Tensor:
        """The unweighted penalty.

        Args:
            reference: (B, C, ...), what was encoded.
            quantized: as `QuantizerOutput` has it, in the layout of the latents.

        Returns:
            float32 scalar.
        """
        return self.penalty(self.compared(reference), self.compared(quantized))

    @abstractmethod
    def penalty(self, reference: Tensor, quantized: Tensor) -> Tensor:
        """The unweighted penalty as a scalar, of tensors in float32 or float64; autocast is as it is around it."""
