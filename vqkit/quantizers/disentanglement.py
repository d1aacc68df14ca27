"""What is penalised between the groups of a `GroupedQuantizer`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor, nn

from vqkit.parts.estimators import straight_through
from vqkit.parts.selection import Selection
from vqkit.saving.config import Configured


class GroupLoss(Configured, nn.Module, ABC):
    """A penalty on what several groups chose together. Stateless.

    Class attributes:
        name: its key in `QuantizerOutput.losses`.
        trains_codebook: whether its gradient reaches the codebooks.

    Args:
        weight: factor in the total; at least 0.

    Raises:
        ValueError: `weight` is negative or not a number.
    """

    name: ClassVar[str]
    trains_codebook: ClassVar[bool] = False

    def __init__(self, weight: float) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise ValueError(f"{type(self).__name__} weight={weight}: expected a number of at least 0")
        self.weight = weight

    @abstractmethod
    def forward(self, selections: Sequence[Selection]) -> Tensor:
        """The unweighted loss, scalar; the mean over the vectors that were chosen for.

        Args:
            selections: of each group, for the same N vectors.
        """

    def extra_repr(self) -> str:
        """The weight."""
        return f"weight={self.weight}"


class Disentanglement(GroupLoss):
    """Makes groups say different things: the mean over pairs of groups of mean(<e_i, e_j>^2), on the chosen codes.

    For independent random unit codes of D dimensions the value is 1/D.

    Source: FQGAN, Bai et al. 2024 (arXiv 2411.16681): groups with `codebook_dim=8, normalize=True`, weight 0.1.
    Differs: the gradient reaches the codebooks, which is what the penalty is about: the published form (see
    `PublishedDisentanglement`) computes the same value on the straight-through outputs, whose codes are constants. It
    does not reach the encoder, which is pulled to the codes by the commitment.
    """

    name = "disentanglement"
    trains_codebook = True

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def forward(self, selections: Sequence[Selection]) -> Tensor:
        """Mean over pairs of mean(<e_i, e_j>^2)."""
        return _pairwise(selections, [chosen.selected for chosen in selections])


class PublishedDisentanglement(GroupLoss):
    """The same value on the straight-through outputs z + sg(e - z): the gradient reaches the encoder only.

    Source: FQGAN, Bai et al. 2024 (arXiv 2411.16681), as its released code computes it. Whatever estimator the groups
    have, this term takes the straight-through one.
    """

    name = "disentanglement"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def forward(self, selections: Sequence[Selection]) -> Tensor:
        """Mean over pairs of mean(<q_i, q_j>^2), with q = z + sg(e - z)."""
        return _pairwise(selections, [straight_through(chosen.selected, chosen.z) for chosen in selections])


def _pairwise(selections: Sequence[Selection], vectors: Sequence[Tensor]) -> Tensor:
    pairs = list(combinations(vectors, 2))
    squares = torch.stack([torch.linalg.vecdot(first, second).square() for first, second in pairs]).mean(0)
    valid = torch.stack([chosen.valid for chosen in selections]).all(0).to(squares.dtype)
    return (valid * squares).sum() / valid.sum().clamp(min=1)
