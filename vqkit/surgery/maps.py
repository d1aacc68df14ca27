"""What becomes of each code."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vqkit.indices import check_indices
from vqkit.precision import widened


@dataclass(frozen=True, eq=False)
class CodeMap:
    """From the K codes of one codebook to the K' codes of another.

    Attributes:
        new: (K,) int64, the new index of each old code.
        source: (K',) int64, the old code that each new one is a copy of, or stands for.
    """

    new: Tensor
    source: Tensor

    def __call__(self, indices: Tensor) -> Tensor:
        """New indices of old ones.

        Args:
            indices: (...) integers, -1 ... K - 1; -1 (left out) stays -1.

        Returns:
            (...) int64.
        """
        check_indices(indices, [len(self.new)], level_axis=False)
        indices = indices.to(self.new.device, torch.int64)
        return torch.where(indices < 0, -1, self.new[indices])

    def count(self, counts: Tensor) -> Tensor:
        """Counts or sums of the new codes, which add up to those of the old ones, (K, ...) to (K', ...).

        A new code has those of all old codes that became it. One that no old code became shares alike with the code
        that its `source` became.
        """
        moved = counts.new_zeros(len(self.source), *counts.shape[1:]).index_add_(0, self.new, counts)
        codes = torch.arange(len(self.source), device=self.new.device)
        shared = torch.where(torch.isin(codes, self.new), codes, self.new[self.source])
        sharers = torch.bincount(shared, minlength=len(codes)).to(counts.dtype)
        return moved[shared] / sharers[shared].reshape(-1, *[1] * (counts.ndim - 1))

    def average(self, rows: Tensor, usage: Tensor | None = None) -> Tensor:
        """Rows of the new codes: means over the old codes that became them, (K, ...) to (K', ...).

        A new code that no old one became has the row of its `source`.

        Args:
            rows: floating point.
            usage: (K,) how much each old code counts; None counts all alike, as do codes that share a usage of 0.
        """
        wide = widened(rows)
        shape = (-1, *[1] * (rows.ndim - 1))
        ones = wide.new_ones(len(rows))
        weights = ones if usage is None else usage.to(wide)
        unused = weights.new_zeros(len(self.source)).index_add_(0, self.new, weights) == 0
        weights = torch.where(unused[self.new], ones, weights)
        totals = weights.new_zeros(len(self.source)).index_add_(0, self.new, weights)
        sums = wide.new_zeros(len(self.source), *rows.shape[1:])
        sums.index_add_(0, self.new, wide * weights.reshape(shape))
        means = sums / torch.where(totals > 0, totals, 1).reshape(shape)
        return torch.where((totals > 0).reshape(shape), means.to(rows.dtype), rows[self.source])
