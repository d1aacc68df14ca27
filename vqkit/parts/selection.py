"""Which code is chosen: the search, the selection that it leads to, and the noise of a choice that is sampled."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vqkit import distributed
from vqkit.kernels import Metric, nearest, search_path
from vqkit.parts.part import Part
from vqkit.runtime import uncompiled


@dataclass(frozen=True, eq=False)
class Noise:
    """Random numbers of one training forward.

    They are a function of a seed, of the number of the forward, and of a vector's number among those of all ranks (if
    these hold as many each). So a resumed run draws on as the first would have, a recomputation under activation
    checkpointing repeats what it recomputes, N ranks draw what one process with the joined batch would, and a part that
    asks again, for all rows or for some, is given the same numbers again.

    Attributes:
        seed: () int64.
        step: () int64.
        first: number of this rank's first vector in the joined batch.
        count: N, how many vectors this rank has.
    """

    seed: Tensor
    step: Tensor
    first: int
    count: int

    @classmethod
    @uncompiled  # Python numbers that change at every step: a compiler would specialise on each of them
    def of_step(cls, seed: int, step: int | Tensor, count: int, device: torch.device) -> "Noise":
        """The noise of a training forward on this rank, if all ranks hold `count` vectors."""
        if isinstance(step, int):
            step = torch.full((), step, device=device)
        return cls(seed=torch.full((), seed, device=device), step=step, first=distributed.rank() * count, count=count)

    def uniform(self, columns: int, *, rows: slice = slice(None)) -> Tensor:
        """(rows, columns) in (0, 1), in the widest dtype, for all N vectors or a slice of them."""
        return self._draw(self._positions(columns, rows))

    def normal(self, columns: int, *, rows: slice = slice(None)) -> Tensor:
        """(rows, columns), standard normal, independent of `uniform` (Box, Muller 1958)."""
        radius, angle = self._draw(~self._positions(2 * columns, rows)).chunk(2, dim=-1)
        return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()

    def _draw(self, positions: Tensor) -> Tensor:
        return distributed.open_uniform(positions, seed=self.seed, step=self.step)

    def _positions(self, columns: int, rows: slice) -> Tensor:
        numbers = self.first + torch.arange(self.count, device=self.seed.device)[rows]
        return numbers.unsqueeze(-1) * columns + torch.arange(columns, device=self.seed.device)


@dataclass(frozen=True, eq=False)
class Selection:
    """Which code was chosen for each of N vectors of dimension D, out of K codes.

    Parts see all N rows, and `valid` says which of them count. They are not dropped, because a shape that depends on
    the data would cost a synchronisation on a GPU and could be neither compiled nor exported; a part that averages with
    `mean` and indexes with `indices >= 0` needs to know no more about masks.

    Attributes:
        latents: (N, D) the vectors as they came, with graph; z before `normalize`, where that is on.
        z: (N, D) the vectors that were compared with the codes, with graph.
        codes: (K, D) the codebook, with graph, or None where none is stored.
        indices: (N,) or (N, levels) int64, -1 where not valid.
        selected: (N, D) the chosen codes, with graph to the codebook.
        valid: (N,) bool.
        noise: the random numbers of this forward, where a part draws some; None outside of training.
        matched: (N, D) the row that was searched, where one table is searched and another read; None where `selected`
            is that row.
        sums: name of a `SummedLoss` -> what its `sums` gave, added up over ranks already.
        queries: (N, A) what was compared with the keys, with graph; None where z was compared with the codes.
        keys: (K, A) what stands for the codes there, with graph; None as well.
        several: (N, n) the codes of one codebook that each vector chose, -1 for none, where these are several; None
            where `indices` says it.
    """

    latents: Tensor
    z: Tensor
    codes: Tensor | None
    indices: Tensor
    selected: Tensor
    valid: Tensor
    noise: Noise | None = None
    matched: Tensor | None = None
    sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    queries: Tensor | None = None
    keys: Tensor | None = None
    several: Tensor | None = None

    def compared(self) -> tuple[Tensor, Tensor]:
        """The vectors and the codes that the choice compared: queries and keys, or z and the codes."""
        assert self.codes is not None  # no quantizer without a codebook has a part that compares with all codes
        if self.queries is None or self.keys is None:
            return self.z, self.codes
        return self.queries, self.keys

    def soft_choice(self, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Codes (N, D) with the gradient of a soft choice among all of them, whose logits are inner products of what
        was compared.

        Keys and codes side by side are one table: next to zeros, a query has the same inner products with its rows, and
        what these rows have behind the keys are the codes. So one kernel serves both, and holds no N x K matrix.

        Args:
            kernel: from vectors (N, E) and a table (K, E) to rows (N, E) of that table.
        """
        vectors, table = self.compared()
        if self.queries is None or self.codes is None:
            return kernel(vectors, table)
        rows = torch.cat([vectors, torch.zeros_like(self.z)], dim=1)
        return kernel(rows, torch.cat([table, self.codes], dim=1))[:, vectors.shape[1] :]

    def mean(self, values: Tensor) -> Tensor:
        """Mean of `values` (N, ...) over the valid vectors and all trailing axes; 0, with a graph, if none is valid."""
        weight = self.valid.to(values.dtype)
        per_vector = values.flatten(1).mean(1) if values.ndim > 1 else values
        return (per_vector * weight).sum() / weight.sum().clamp(min=1)

    def mean_square(self, differences: Tensor) -> Tensor:
        """Mean of the squares of `differences` (N, D) over the valid vectors and all dimensions; see `mean`."""
        weight = self.valid.to(differences.dtype)
        squares = torch.linalg.vecdot(differences, differences)
        return (squares * weight).sum() / (weight.sum().clamp(min=1) * differences.shape[-1])


class Search(Part):
    """The nearest code. Stateless; float32 whatever surrounds it; the lowest index on ties.

    Args:
        metric: "euclidean" (smallest distance), "dot" (largest inner product) or "cosine" (smallest angle). The metric
            decides the choice alone: the code that is passed on and penalised keeps its length.

    Class attributes:
        uses_noise: whether it samples the choice where it is given noise, in training.
        finds_nearest: whether the choice without noise is the nearest code by `metric`, so that a fused search may take
            its place. A subclass with a `forward` of its own declares it anew: there it is False unless it says True.
        sees_batch: whether the choice in training depends on all vectors of the batch: `choose_together` makes it.

    Raises:
        ValueError: another metric.
    """

    uses_noise: ClassVar[bool] = False
    finds_nearest: ClassVar[bool] = True
    sees_batch: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "forward" in vars(cls):
            cls.finds_nearest = vars(cls).get("finds_nearest", False)

    def __init__(self, metric: Metric = "euclidean") -> None:
        super().__init__()
        check_metric(metric)
        self.metric: Metric = metric

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        """Which of `codes` (K, D) each row of `z` (N, D) takes: (N,) int64.

        Args:
            z: the vectors.
            codes: the codes.
            noise: for a search that `uses_noise`; None outside of training.
        """
        return nearest(z.detach(), codes.detach(), metric=self.metric).indices

    def choose_together(self, z: Tensor, codes: Tensor, valid: Tensor) -> Tensor:
        """Which of `codes` (K, D) each row of `z` (N, D) takes in training, where the search `sees_batch`: (N,) int64.

        Args:
            z: the vectors of this rank.
            codes: the codes.
            valid: (N,) bool, which of the vectors count.
        """
        return self(z, codes)

    def best(self, z: Tensor, codes: Tensor, k: int) -> Tensor:
        """The k nearest of `codes` (K, D) to each row of `z` (N, D), best first: (N, k) int64."""
        found = nearest(z.detach(), codes.detach(), metric=self.metric, k=k).indices
        return found.unsqueeze(-1) if k == 1 else found

    def extra_repr(self) -> str:
        """The metric, and what searches on each device and why."""
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        paths = (f"{name}={str(search_path(name))!r}" for name in devices)
        return ", ".join(filter(None, [super().extra_repr(), *paths]))


def check_metric(metric: str) -> None:
    """Refuse what is no metric.

    Raises:
        ValueError: another word.
    """
    if metric not in ("euclidean", "dot", "cosine"):
        raise ValueError(f"metric={metric!r}: expected 'euclidean', 'dot' or 'cosine'")
