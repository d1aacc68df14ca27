"""Which code is chosen."""

from typing import ClassVar

from torch import Tensor

from vqkit import kernels
from vqkit.kernels import Metric
from vqkit.parts.part import Part
from vqkit.parts.selection import Noise


class Search(Part):
    """The nearest code. Stateless; float32 whatever surrounds it; the lowest index on ties.

    Args:
        metric: "euclidean" (smallest distance), "dot" (largest inner product) or "cosine" (smallest angle). The metric
            decides the choice alone: the code that is passed on and penalised keeps its length.

    Class attributes:
        uses_noise: whether it samples the choice where it is given noise, in training.
        finds_nearest: whether the choice without noise is the nearest code by `metric`, so that a fused search may take
            its place. A subclass with a `forward` of its own declares it anew: there it is False unless it says True.

    Raises:
        ValueError: another metric.
    """

    uses_noise: ClassVar[bool] = False
    finds_nearest: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.finds_nearest = vars(cls).get("finds_nearest", False)

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
            noise: for a search that `uses_noise`; None outside of training.
        """
        return kernels.nearest(z.detach(), codes.detach(), metric=self.metric).indices

    def extra_repr(self) -> str:
        """The metric, and what searches on the CPU."""
        return f"{super().extra_repr()}, cpu={kernels.search_path('cpu').name!r}"
