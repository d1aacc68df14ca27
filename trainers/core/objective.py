"""The interface of reconstruction objectives."""

from abc import ABC, abstractmethod

from torch import Tensor

from vqkit.precision import FullPrecisionModule


class Objective(FullPrecisionModule, ABC):
    """A distance between a reconstruction and its original, with its weight in the total.

    Its state stays in float32 where a model of 16 bits is trained, as do the tensors that it compares.

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
