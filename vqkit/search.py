"""Which code is chosen."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from vqkit.base import Noise
from vqkit.config import Configured
from vqkit.kernels import Metric, nearest, search_path


class Search(Configured, nn.Module):
    """The nearest code. Stateless; float32 whatever surrounds it; the lowest index on ties.

    Args:
        metric: "euclidean" (smallest distance), "dot" (largest inner product) or "cosine" (smallest angle). The metric
            decides the choice alone: the code that is passed on and penalised keeps its length.

    Class attributes:
        samples: whether the choice is drawn at random where it is given noise, in training.

    Raises:
        ValueError: another metric.
    """

    samples: ClassVar[bool] = False

    def __init__(self, metric: Metric = "euclidean") -> None:
        super().__init__()
        if metric not in ("euclidean", "dot", "cosine"):
            raise ValueError(f"metric={metric!r}: expected 'euclidean', 'dot' or 'cosine'")
        self.metric: Metric = metric

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        """Which of `codes` (K, D) each row of `z` (N, D) takes: (N,) int64.

        Args:
            z: the vectors.
            codes: the codes.
            noise: what a search that `samples` draws with; None outside of training.
        """
        return nearest(z.detach(), codes.detach(), metric=self.metric).indices

    def extra_repr(self) -> str:
        """The metric, and what searches on each device and why."""
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        return ", ".join([f"metric={self.metric!r}", *(f"{name}={str(search_path(name))!r}" for name in devices)])
