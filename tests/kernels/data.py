"""Data sets and the float64 oracle, for all tests of the search."""

import torch
from torch import Tensor

METRICS = ("euclidean", "dot", "cosine")

DATA = (
    "gaussian",
    "clustered",
    "tiny initial codes",
    "offset 10",
    "offset 100",
    "offset 1000",
    "offset 1e5",
    "unit norm",
    "near duplicates",
    "wide range",
)


def oracle_scores(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Scores (N, K) where less is better, formed elementwise in float64: no product, no expansion of the square."""
    x, codes = x.double(), codes.double()
    if metric == "cosine":
        x, codes = (torch.nn.functional.normalize(rows, dim=1, eps=1e-300) for rows in (x, codes))
    if metric == "euclidean":
        return torch.cat([(rows[:, None] - codes).square().sum(2) for rows in x.split(20)])
    return torch.cat([-(rows[:, None] * codes).sum(2) for rows in x.split(20)])


def oracle(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    return oracle_scores(x, codes, metric).argmin(1)


def data_set(name: str, rows: int = 600, size: int = 300, depth: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(name))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, codes = normal(rows, depth), normal(size, depth)
    if name == "clustered":
        centers = 5 * normal(20, depth)
        x, codes = x * 0.3 + centers[torch.arange(rows) % 20], codes * 0.1 + centers[torch.arange(size) % 20]
    elif name == "tiny initial codes":
        codes = (2 * torch.rand(size, depth, generator=generator) - 1) / size
    elif name.startswith("offset"):
        x, codes = x + float(name.split()[1]), codes + float(name.split()[1])
    elif name == "unit norm":
        x, codes = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, codes))
    elif name == "near duplicates":
        codes = codes[torch.arange(size) // 3] + 1e-6 * codes
    elif name == "wide range":
        x, codes = x * torch.logspace(-3, 3, rows)[:, None], codes * torch.logspace(-3, 3, size)[:, None]
    return x, codes
