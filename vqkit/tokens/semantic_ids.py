"""Semantic IDs: tuples of indices that name items, how many of them collide, and what tells these apart.

The ID of an item is what a residual quantizer chooses for its vector, coarse first, so that similar items share a
prefix. Items whose tuples are equal collide. Two things tell them apart: a suffix, the number of the item among those
of its tuple, or another code of the last level, the nearest that no other item of its prefix has. Either leaves the IDs
that were given before as they are, so items may come later.

Source: Rajput et al. 2023, "Recommender Systems with Generative Retrieval" (TIGER, arXiv:2305.05065), sec. 3.1; the
last level as in LC-Rec (Zheng et al. 2023, arXiv:2311.09049).
Differs: LC-Rec spreads colliding items by a soft plan and repeats until none collides; here they are matched.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vqkit.clustering.balanced import assign_within_capacity

if TYPE_CHECKING:
    from vqkit.quantizers.residual import ResidualQuantizer

_TABLE = 2**24
"""Places of last levels, of all prefixes together, that are looked at at once."""


@dataclass(frozen=True)
class Collisions:
    """How well tuples tell items apart.

    Attributes:
        items: how many there are.
        tuples: different ones among them.
        unique: share of the items whose tuple no other item has.
        colliding: items whose tuple another one has.
        largest_group: most items with one tuple: as many suffixes make every ID unique.
        prefixes: different prefixes of 1, 2, ... levels; the last is `tuples`.
    """

    items: int
    tuples: int
    unique: float
    colliding: int
    largest_group: int
    prefixes: tuple[int, ...]


def collisions(semantic_ids: Tensor) -> Collisions:
    """Count tuples (M, levels), M at least 1."""
    _check(semantic_ids)
    if not len(semantic_ids):
        raise ValueError("semantic_ids has no rows: expected a tuple for each item")
    levels = semantic_ids.shape[1]
    prefixes = [len(torch.unique(semantic_ids[:, : level + 1], dim=0)) for level in range(levels)]
    counts = torch.unique(semantic_ids, dim=0, return_counts=True)[1]
    alone = int((counts == 1).sum())
    items = len(semantic_ids)
    return Collisions(items, len(counts), alone / items, items - alone, int(counts.max()), tuple(prefixes))


class Suffixes:
    """Gives each item a number among the items of its tuple, from 0, and goes on where it stopped.

        >>> suffixes = Suffixes()
        >>> suffixes.add(torch.tensor([[5, 1], [5, 1], [5, 2]]))
        tensor([0, 1, 0])
        >>> suffixes.add(torch.tensor([[5, 1]]))  # items of tomorrow
        tensor([2])

    Source: TIGER (arXiv:2305.05065), sec. 3.1.
    """

    def __init__(self) -> None:
        self._tuples: Tensor | None = None
        self._next: Tensor | None = None

    @classmethod
    def of(cls, semantic_ids: Tensor, suffixes: Tensor) -> "Suffixes":
        """Go on from IDs that were given before: tuples (M, levels) and their suffixes (M,)."""
        _check(semantic_ids)
        made = cls()
        tuples, places = torch.unique(semantic_ids, dim=0, return_inverse=True)
        highest = torch.zeros(len(tuples), dtype=torch.int64).scatter_reduce_(0, places, suffixes + 1, "amax")
        made._tuples, made._next = tuples, highest
        return made

    def add(self, semantic_ids: Tensor) -> Tensor:
        """The suffixes (M,) of new items by their tuples (M, levels); earlier rows get lower ones."""
        _check(semantic_ids)
        known = semantic_ids[:0] if self._tuples is None else self._tuples
        numbers = torch.zeros(0, dtype=torch.int64) if self._next is None else self._next
        if known.shape[1] != semantic_ids.shape[1]:
            raise ValueError(
                f"semantic_ids has {semantic_ids.shape[1]} levels, the ones before had {known.shape[1]}: expected the "
                "IDs of one tokenizer"
            )
        tuples, places = torch.unique(torch.cat([known, semantic_ids]), dim=0, return_inverse=True)
        first = torch.zeros(len(tuples), dtype=torch.int64)
        first[places[: len(known)]] = numbers
        own = places[len(known) :]
        order = torch.argsort(own, stable=True)
        counts = torch.bincount(own, minlength=len(tuples))
        rank = torch.empty_like(own)
        rank[order] = torch.arange(len(own)) - (counts.cumsum(0) - counts)[own[order]]
        self._tuples, self._next = tuples, first + counts
        return first[own] + rank


@torch.no_grad()
def unique_last_level(quantizer: "ResidualQuantizer", latents: Tensor, taken: Tensor | None = None) -> Tensor:
    """Tuples of which no two are equal: among items of one prefix, each gets a last code of its own.

    An item gets the nearest code that it may have: no item is farther from its code than one that wanted the same code
    and was refused (`vqkit.clustering.assign_within_capacity`). All levels but the last are those of `encode`.

    Args:
        quantizer: whose stages are nearest codes of stored codebooks.
        latents: (M, dim), as the quantizer gets them.
        taken: (N, levels) IDs of other items, which nobody else may have; None for none.

    Returns:
        (M, levels) int64; no row is equal to another one, or to one of `taken`.

    Raises:
        ValueError: a prefix has more items than the last level has codes, or the last stage has no stored codes.
    """
    last = quantizer.stages[-1]
    if last.nearest_metric != "euclidean":
        raise ValueError(
            f"the last stage is a {type(last).__name__} with nearest_metric={last.nearest_metric!r}: expected nearest "
            "codes by 'euclidean' distance; tell items apart by suffixes instead"
        )
    indices = quantizer.encode(latents)
    levels, size = indices.shape[-1], last.codebook_sizes[0]
    prefix = indices[:, :-1]
    before = prefix[:0] if taken is None else taken[:, :-1]
    keys = torch.nn.functional.pad(torch.cat([prefix, before]), (1, 0))  # of one level too, which has no prefix
    places = torch.unique(keys, dim=0, return_inverse=True)[1]
    own, theirs = places[: len(prefix)], places[len(prefix) :]
    # Only where items meet: a prefix with one item, and none before, keeps its code.
    counts = torch.bincount(places, minlength=1)
    crowded = torch.unique(own[counts[own] > 1])
    if counts.max() > size:
        worst = int(counts.argmax())
        named = keys[(places == worst).nonzero()[0, 0], 1:].tolist()
        raise ValueError(
            f"{int(counts.max())} items have the prefix {named}, and the last of {levels} levels has {size} codes: "
            "give more levels or codes, or tell items apart by suffixes"
        )
    residual = latents - quantizer.decode(prefix) if levels > 1 else latents
    codes = last.nearest_codes()
    for part in crowded.split(max(1, _TABLE // size)):
        group = torch.full_like(counts, -1)
        group[part] = torch.arange(len(part), device=places.device)
        mine = (group[own] >= 0).nonzero().squeeze(1)
        held = torch.zeros(len(part), size, dtype=torch.int64, device=places.device)
        if taken is not None:
            kept = group[theirs] >= 0
            held[group[theirs[kept]], taken[kept, -1]] = 1
        indices[mine, -1] = assign_within_capacity(
            residual[mine], codes, capacity=1, groups=group[own[mine]], taken=held
        )
    return indices


def _check(semantic_ids: Tensor) -> None:
    if semantic_ids.ndim != 2 or semantic_ids.is_floating_point():
        raise ValueError(
            f"semantic_ids has shape {tuple(semantic_ids.shape)} and dtype {semantic_ids.dtype}: expected integers "
            "(items, levels)"
        )
