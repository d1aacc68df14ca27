"""What semantic IDs keep of neighbourhoods: recall of the nearest items, by decoded vectors and by shared prefixes."""

from collections.abc import Callable

import torch
from torch import Tensor

from vqkit.kernels import nearest

QUERIES = 2048
"""Most items whose neighbours are looked for; more are taken at even distances."""
_BLOCK = 2**22
"""Distances that are held at once."""


@torch.no_grad()
def true_neighbours(vectors: Tensor, count: int = 10) -> tuple[Tensor, Tensor]:
    """The nearest other items of some items.

    Args:
        vectors: (M, D), M above `count`.
        count: neighbours of each.

    Returns:
        (Q,) the numbers of the items that were asked for, at most `QUERIES`, and (Q, count) those of their nearest
        others by distance.
    """
    queries = torch.linspace(0, len(vectors) - 1, min(QUERIES, len(vectors)), dtype=torch.float64).round().long()
    found = nearest(vectors[queries], vectors, k=count + 1).indices
    own = found == queries[:, None]
    own[:, -1] |= ~own.any(1)  # copies of it have come before: the last one goes
    return queries, found[~own].view(len(queries), count)


def recall_by_vectors(queries: Tensor, neighbours: Tensor, decoded: Tensor) -> float:
    """Share of the neighbours that are among the nearest by decoded vectors (M, D) too; see `_recall`."""
    decoded = decoded.double()
    return _recall(queries, neighbours, lambda part: torch.cdist(decoded[part], decoded), items=len(decoded))


def recall_by_prefix(queries: Tensor, neighbours: Tensor, semantic_ids: Tensor) -> float:
    """Share of the neighbours that are among the items with the longest common prefix of the tuples (M, levels)."""

    def distances(part: Tensor) -> Tensor:
        common = torch.zeros(len(part), len(semantic_ids), device=part.device)
        alike = torch.ones_like(common, dtype=torch.bool)
        for level in semantic_ids.unbind(1):
            alike &= level[part, None] == level
            common -= alike.float()
        return common

    return _recall(queries, neighbours, distances, items=len(semantic_ids))


def _recall(queries: Tensor, neighbours: Tensor, distances: Callable[[Tensor], Tensor], *, items: int) -> float:
    """The expected share of neighbours among as many nearest items, where those at one distance come in any order."""
    total, step = 0.0, max(1, _BLOCK // items)
    for part, true in zip(queries.split(step), neighbours.split(step), strict=True):
        found = distances(part)
        found[torch.arange(len(part)), part] = torch.inf  # not itself
        last = found.kthvalue(true.shape[1], dim=1, keepdim=True).values
        nearer, equal = (found < last).sum(1, keepdim=True), (found == last).sum(1, keepdim=True)
        own = found.gather(1, true)
        chance = (true.shape[1] - nearer) / equal
        total += float(torch.where(own < last, 1.0, torch.where(own == last, chance, 0.0)).sum())
    return total / neighbours.numel()
