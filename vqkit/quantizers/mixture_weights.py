"""Weights of a mixture of codebooks: which books a cell keeps, and its weights as whole numbers."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from vqkit.parts.estimators import straight_through
from vqkit.saving.config import Configured

MOST_BITS = 16


class MixtureWeights(Configured, nn.Module, ABC):
    """The scores of N books at a cell, as weights of the m books that it keeps, in levels of `bits` bits.

    Args:
        bits: b of a level, 1 ... 16.

    Raises:
        ValueError: `bits` is out of its range.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        if not 1 <= bits <= MOST_BITS or bits != int(bits):
            raise ValueError(f"bits={bits}: expected the bits of a weight, 1 ... {MOST_BITS}")
        self.bits = int(bits)

    @abstractmethod
    def importance(self, scores: Tensor) -> Tensor:
        """By what a cell orders its books, largest first: (..., N) to the same."""

    @abstractmethod
    def exact(self, scores: Tensor, kept: Tensor) -> Tensor:
        """The weights before they are rounded, (..., N), 0 where a book is not `kept` (..., N) bool."""

    @abstractmethod
    def to_levels(self, weights: Tensor, kept: Tensor) -> Tensor:
        """The levels (..., N) int64 of those weights, 0 ... 2^bits - 1; anything where not kept."""

    @abstractmethod
    def from_levels(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights (..., N) that levels stand for."""

    @abstractmethod
    def sent(self, kept: int) -> int:
        """How many levels a cell that keeps so many books has to send; the others follow from these."""

    @abstractmethod
    def follow(self, levels: Tensor) -> Tensor:
        """All levels (..., m) of a cell from those that it sent, (..., sent(m))."""

    @property
    def decoding(self) -> str:
        """What decides about vectors and is in no state, for `vqkit.bitstream.fingerprint`."""
        return repr(self)

    def values(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """The weights (..., N) of levels (..., N), 0 where they are -1."""
        return torch.where(levels < 0, 0, self.from_levels(levels, dtype))

    def forward(self, scores: Tensor, count: int | Tensor) -> tuple[Tensor, Tensor]:
        """Weights and levels of the books that each cell keeps.

        Args:
            scores: (..., N), finite.
            count: m, 1 ... N; or integers that broadcast with (..., 1).

        Returns:
            weights (..., N), the value that levels have and the gradient of those before, 0 where a book is left out;
            levels (..., N) int64, -1 there.
        """
        kept = ranks(self.importance(scores)) < count
        weights = self.exact(scores, kept)
        levels = torch.where(kept, self.to_levels(weights.detach(), kept), -1)
        return straight_through(self.values(levels, weights.dtype), weights), levels

    def extra_repr(self) -> str:
        """The bits."""
        return f"bits={self.bits}"


class SimplexWeights(MixtureWeights):
    """A softmax over the books that are kept, in whole parts of 2^b - 1 that add up to it exactly.

    Each weight w gets floor(w (2^b - 1)) parts, and those with the largest remainders one more until all are given
    away, so that the weights of a cell still sum to 1, and one book alone has the weight 1. The last weight follows
    from the others: m - 1 of them are sent. Where a cell keeps one book its scores have no gradient, so that training
    with `kept=1` alone does not learn which one: draw m (`dropout`), or keep more.

    Source: the softmax is an option of AdaCode's released code, off by default (Liu et al. 2023, arXiv:2306.06513);
    weights are what M-AdaCode sends (Jiang, Wang, Chen 2023, arXiv:2309.11661). How it rounds them is in no text that
    we could read: the parts are ours.

    Args:
        bits: b of a level.
    """

    def __init__(self, bits: int = 4) -> None:
        super().__init__(bits)

    def importance(self, scores: Tensor) -> Tensor:
        """The scores, which the softmax leaves in their order."""
        return scores

    def exact(self, scores: Tensor, kept: Tensor) -> Tensor:
        """exp(s_i) / sum of exp(s_j) over those that are kept."""
        return scores.masked_fill(~kept, -torch.inf).softmax(-1)

    def to_levels(self, weights: Tensor, kept: Tensor) -> Tensor:
        """Parts by the largest remainders, of two as large the first."""
        parts = weights * (2**self.bits - 1)
        whole = parts.floor()
        left = 2**self.bits - 1 - whole.sum(-1, keepdim=True)
        remainders = (parts - whole).masked_fill(~kept, -1)
        return whole.long() + (ranks(remainders) < left)

    def from_levels(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """Level l stands for l / (2^b - 1)."""
        return levels.to(dtype) / (2**self.bits - 1)

    def sent(self, kept: int) -> int:
        """All but one."""
        return kept - 1

    def follow(self, levels: Tensor) -> Tensor:
        """The last one is what the others leave; 0 where damage gave them too much."""
        rest = 2**self.bits - 1 - levels.sum(-1, keepdim=True)
        return torch.cat([levels, rest.clamp(min=0)], dim=-1)


class SignedWeights(MixtureWeights):
    """The scores themselves, of either sign, in 2^b equal steps from -limit up to, but without, limit.

    Codes may cancel each other, so that a large weight does not say that its book is seen. All m levels are sent. The
    gradient goes straight through both the steps and the limit. A weight of 1 is exact where `limit` is a power of two.

    Source: AdaCode, Liu et al. 2023 (arXiv:2306.06513), whose released code leaves the weights unbounded.
    Differs: they end at `limit`, since levels have to.

    Args:
        bits: b of a level.
        limit: above 0.

    Raises:
        ValueError: `limit` is not positive.
    """

    def __init__(self, bits: int = 8, *, limit: float = 4.0) -> None:
        super().__init__(bits)
        if not 0 < limit < float("inf"):
            raise ValueError(f"limit={limit}: expected the largest weight, above 0")
        self.limit = limit

    def importance(self, scores: Tensor) -> Tensor:
        """|s|."""
        return scores.abs()

    def exact(self, scores: Tensor, kept: Tensor) -> Tensor:
        """The scores that are kept."""
        return torch.where(kept, scores, 0)

    def to_levels(self, weights: Tensor, kept: Tensor) -> Tensor:
        """The nearest step."""
        half = 2 ** (self.bits - 1)
        # Limited before it is a whole number: those of int64 end, too.
        return (weights * (half / self.limit)).round().clamp(-half, half - 1).long() + half

    def from_levels(self, levels: Tensor, dtype: torch.dtype) -> Tensor:
        """Level l stands for (l - 2^(b-1)) limit / 2^(b-1)."""
        half = 2 ** (self.bits - 1)
        return (levels - half).to(dtype) * (self.limit / half)

    def sent(self, kept: int) -> int:
        """All."""
        return kept

    def follow(self, levels: Tensor) -> Tensor:
        """They are all there."""
        return levels

    def extra_repr(self) -> str:
        """Bits and limit."""
        return f"bits={self.bits}, limit={self.limit}"


def ranks(values: Tensor) -> Tensor:
    """The place of each along the last axis when the largest comes first, and the first of equal ones: (..., N) int64.

    By comparing all pairs, which every runtime does alike, and N is small.
    """
    ours, others = values.unsqueeze(-1), values.unsqueeze(-2)
    places = torch.arange(values.shape[-1], device=values.device)
    before = (others > ours) | ((others == ours) & (places < places.unsqueeze(-1)))
    return before.sum(-1)
