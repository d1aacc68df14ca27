"""Policies for unused codes. They are stateless: usage, counters and seeds belong to the codebook."""

import math
from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.parts.part import Part

if TYPE_CHECKING:
    from vqkit.parts.codebooks import Codebook


class Maintenance(Part):
    """A rule that may rewrite codes before a search, from the batch that is about to be quantized.

    Attributes:
        every: optimizer steps between two calls of `refresh`.
    """

    every: int = 1

    @abstractmethod
    def refresh(self, codebook: "Codebook", z: Tensor, valid: Tensor) -> None:
        """Rewrite codes in place, the same on every rank; called at every `every`-th optimizer step, without
        gradients.

        Args:
            codebook: its `usage` is that up to the previous step.
            z: (N, D) the vectors of this batch on this rank.
            valid: (N,) bool.
        """


class _DeadCodes(Maintenance):
    """What is common to rules that replace codes of a running usage below `threshold` times the mean."""

    def __init__(self, threshold: float, every: int, limit: int) -> None:
        super().__init__()
        if not 0 <= threshold < 1:
            raise ValueError(f"threshold={threshold}: expected a fraction of uniform usage, in [0, 1), such as 0.1")
        if every < 1:
            raise ValueError(f"every={every}: expected a number of steps, at least 1")
        if limit < 1:
            raise ValueError(f"limit={limit}: expected a number of codes, at least 1")
        self.threshold = threshold
        self.every = every
        self.limit = limit


class RandomRestart(_DeadCodes):
    """Replaces dead codes by random vectors of the batch, none of which is taken twice.

    Dead is here a code whose running usage is below `threshold` times the mean, whatever the batch size. A replaced one
    starts with mean usage, so it has time to win vectors: with decay 0.99 and threshold 0.1 about 230 steps.

    Args:
        threshold: fraction of uniform usage, in [0, 1).
        every: optimizer steps between checks; at least 1.
        limit: most codes replaced in one check (the most dead first); bounds what is sent between ranks. At least 1.

    Source: the rule and constants of Mimi's codebook (Défossez et al. 2024, arXiv:2410.00037).
    Differs: vectors are drawn over the batch of all ranks with a counter-based generator, so that N ranks replace the
    same codes by the same vectors as one process would; Mimi broadcasts rank 0's draw.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, threshold: float = 0.1, *, every: int = 5, limit: int = 1024) -> None:
        super().__init__(threshold, every, limit)

    def refresh(self, codebook: "Codebook", z: Tensor, valid: Tensor) -> None:
        """Replace up to `limit` dead codes."""
        count = min(self.limit, codebook.codebook_size)
        usage, candidates = torch.topk(codebook.usage, count, largest=False)
        dead = usage < self.threshold * codebook.usage.mean()
        vectors, drawn = distributed.shared_rows(
            z.detach(), valid, count=count, seed=codebook.seed, step=codebook.steps
        )
        replaced = dead & drawn
        codebook.overwrite(
            candidates,
            vectors,
            share=replaced.to(usage.dtype),
            usage=torch.where(replaced, codebook.usage.mean(), usage),
        )


class LBGSplitting(_DeadCodes):
    """Splits the most used codes in two, and gives the second half to dead codes.

    The i-th least used code and the i-th most used one become two copies of the latter, a small step apart, each with
    half of its usage. Dead is here a code of a running usage below `threshold` times the mean. Only codes of at least
    mean usage are split, each at most once in a check. No vectors of the batch are needed: the codebook's own record of
    usage says where codes are missing.

    Args:
        threshold: fraction of uniform usage, in [0, 1).
        step: length of the step to either side, as a fraction of the spread of the codes, each counted as often as it
            is used; positive.
        every: optimizer steps between checks; at least 1.
        limit: most codes replaced in one check (the most dead first); at least 1. At most half of the codes are.

    Source: the splitting rule of Linde, Buzo, Gray 1980, "An algorithm for vector quantizer design"
    (https://doi.org/10.1109/TCOM.1980.1094577).
    Differs: they double a codebook; here single dead codes are replaced. Their direction of the step is fixed; here it
    is drawn for each split, with a counter-based generator, so that it is the same on every rank.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, threshold: float = 0.1, *, step: float = 0.01, every: int = 5, limit: int = 1024) -> None:
        super().__init__(threshold, every, limit)
        if not 0 < step < math.inf:
            raise ValueError(f"step={step}: expected a fraction of the codes' spread, above 0, such as 0.01")
        self.step = step

    def refresh(self, codebook: "Codebook", z: Tensor, valid: Tensor) -> None:
        """Replace up to `limit` dead codes."""
        count = min(self.limit, codebook.codebook_size // 2)
        if not count:
            return
        # One stable order for both ends: they never overlap, and ties are broken alike on every rank and device.
        order = codebook.usage.argsort(stable=True)
        dead, busy = order[:count], order.flip(0)[:count]
        mean = codebook.usage.mean()
        split = (codebook.usage[dead] < self.threshold * mean) & (codebook.usage[busy] >= mean)
        codes, half = codebook.vectors[busy], codebook.usage[busy] / 2
        step = self._directions(busy, codebook) * (self.step * _spread_in_use(codebook))
        usage = torch.cat([torch.where(split, half, codebook.usage[end]) for end in (dead, busy)])
        share = torch.cat([split, split]).to(usage.dtype)
        codebook.overwrite(torch.cat([dead, busy]), torch.cat([codes + step, codes - step]), share=share, usage=usage)

    @staticmethod
    def _directions(codes: Tensor, codebook: "Codebook") -> Tensor:
        """(M, D) of unit variance, uniform in a cube."""
        positions = codes.unsqueeze(-1) * codebook.dim + torch.arange(codebook.dim, device=codes.device)
        drawn = distributed.counter_random(positions, seed=codebook.seed, step=codebook.steps)
        return ((2 * drawn - 1) * math.sqrt(3)).to(codebook.usage.dtype)


def _spread_in_use(codebook: "Codebook") -> Tensor:
    """() root mean square distance per dimension of the codes from their mean, weighted by usage.

    Unused codes may lie anywhere, so they must not count. Where a single code is in use the spread is 0, and the copies
    would coincide: a thousandth of the codes' length is the least.
    """
    usage, codes = codebook.usage.unsqueeze(-1), codebook.vectors
    weight = usage / usage.sum().clamp(min=torch.finfo(usage.dtype).tiny)
    from_mean, from_zero = ((weight * part.square()).sum(0).mean() for part in (codes - (weight * codes).sum(0), codes))
    return torch.maximum(from_mean, 1e-6 * from_zero).sqrt()
