"""Which code is chosen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import kernels
from vqkit.base import Selection
from vqkit.config import Configured
from vqkit.kernels import Metric


class Search(Configured, nn.Module):
    """The nearest code. Stateless; float32 whatever surrounds it; the lowest index on ties.

    Args:
        metric: "euclidean" (smallest distance), "dot" (largest inner product) or "cosine" (smallest angle). The metric
            decides the choice alone: the code that is passed on and penalised keeps its length.

    Raises:
        ValueError: another metric.
    """

    def __init__(self, metric: Metric = "euclidean") -> None:
        super().__init__()
        if metric not in ("euclidean", "dot", "cosine"):
            raise ValueError(f"metric={metric!r}: expected 'euclidean', 'dot' or 'cosine'")
        self.metric: Metric = metric

    def forward(self, z: Tensor, codes: Tensor, valid: Tensor) -> Selection:
        """Search `codes` (K, D) for each row of `z` (N, D); rows that are not `valid` (N,) get index -1."""
        nearest = kernels.nearest(z.detach(), codes.detach(), metric=self.metric).indices
        return Selection(
            z=z,
            codes=codes,
            indices=torch.where(valid, nearest, -1),
            selected=F.embedding(nearest, codes),
            valid=valid,
        )

    def extra_repr(self) -> str:
        """The metric, and what searches on the CPU."""
        return f"metric={self.metric!r}, cpu={kernels.search_path('cpu').name!r}"
