"""Penalties between the groups of a `GroupedQuantizer`."""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from vqkit.functional import unit
from vqkit.parts.estimators import straight_through
from vqkit.parts.losses import Penalty
from vqkit.parts.selection import Selection


class GroupLoss(Penalty):
    """A penalty on what several groups chose together; see `Penalty`."""

    @abstractmethod
    def forward(self, selections: Sequence[Selection]) -> Tensor:
        """The unweighted loss, scalar; the mean over the vectors that were chosen for.

        Args:
            selections: of each group, for the same N vectors.
        """


class Disentanglement(GroupLoss):
    """Makes groups choose orthogonal codes: the mean over pairs of groups of mean(<e_i, e_j>^2), on the chosen codes.

    For independent random unit codes of D dimensions the value is 1/D.

    Source: FQGAN, Bai et al. 2024 (arXiv:2411.16681): groups with `codebook_dim=8, normalize=True`, weight 0.1.
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
    """The same value on the straight-through outputs z + sg(e - z), normalized: the gradient reaches the encoder only.

    Of unit codes the value is that of `Disentanglement`; the normalization removes what the gradient of a branch has
    along its code. Others are compared by their angle here.

    Source: FQGAN, Bai et al. 2024 (arXiv:2411.16681), as its released code computes it. Whatever estimator the groups
    have, this term takes the straight-through one.
    """

    name = "disentanglement"

    def __init__(self, weight: float = 0.1) -> None:
        super().__init__(weight)

    def forward(self, selections: Sequence[Selection]) -> Tensor:
        """Mean over pairs of mean(<q_i, q_j>^2), with q the direction of z + sg(e - z)."""
        return _pairwise(selections, [unit(straight_through(chosen.selected, chosen.z)) for chosen in selections])


def _pairwise(selections: Sequence[Selection], vectors: Sequence[Tensor]) -> Tensor:
    pairs = list(combinations(vectors, 2))
    squares = torch.stack([torch.linalg.vecdot(first, second).square() for first, second in pairs]).mean(0)
    valid = torch.stack([chosen.valid for chosen in selections]).all(0).to(squares.dtype)
    return (valid * squares).sum() / valid.sum().clamp(min=1)
