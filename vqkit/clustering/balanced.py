"""Clusters of bounded size: samples that share codes of which each has room for so many, and k-means of such clusters.

What it is for: semantic IDs, of which no two items shall share one, and codebooks whose codes are all worth their bits.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqkit.clustering.kmeans import KMeans, kmeans
from vqkit.kernels import balancing_prices, nearest, segment_stats
from vqkit.kernels.softmax_rows import block_rows
from vqkit.precision import widened, widest_dtype


@torch.no_grad()
def assign_within_capacity(
    samples: Tensor,
    codes: Tensor,
    *,
    capacity: int,
    groups: Tensor | None = None,
    taken: Tensor | None = None,
    prices: Tensor | None = None,
) -> Tensor:
    """The code of each sample, where a code has room for so many.

    The result is stable: no sample has another code nearer that has room, or that holds a sample which is farther from
    it. Samples propose to the nearest code that may take them, a code keeps the nearest ones that it has room for, and
    the others propose anew. Samples are taken by blocks; memory is O((M + G K) D) with G groups.

    Args:
        samples: (M, D) floating point, finite.
        codes: (K, D).
        capacity: samples that a code has room for, in each group.
        groups: (M,) int64, from 0: samples of other groups do not take one another's room; None is one group.
        taken: (G, K) int64, how many places are taken already; None is none.
        prices: (K,) added to the squared distances by which samples choose; None is 0.

    Returns:
        (M,) int64.

    Raises:
        ValueError: a group has more samples than there is room; the message says which.

    Source: deferred acceptance, Gale, Shapley 1962, with the squared distance as the preference of both sides.
    """
    size = len(codes)
    groups = torch.zeros(len(samples), dtype=torch.int64, device=samples.device) if groups is None else groups
    number = int(groups.max()) + 1 if len(groups) else 0
    room = torch.full((number, size), capacity, device=samples.device)
    room = room if taken is None else (room - taken[:number]).clamp(min=0)
    crowd = torch.bincount(groups, minlength=number) - room.sum(1)
    if (crowd > 0).any():
        worst = int(crowd.argmax())
        raise ValueError(
            f"group {worst} has {int((groups == worst).sum())} samples and {int(room[worst].sum())} free places of "
            f"{size} codes with capacity={capacity}: give more codes, or a larger capacity"
        )
    middle = widened(codes).mean(0)
    rows, points = widened(samples) - middle, widened(codes) - middle
    price = points.new_zeros(size) if prices is None else widened(prices)
    places, limits = room.flatten(), torch.where(room > 0, torch.inf, -torch.inf).to(rows).flatten()
    slots = torch.full_like(groups, -1)
    costs = rows.new_full((len(rows),), torch.inf)
    while len(waiting := torch.nonzero(slots < 0).squeeze(1)):
        for part in waiting.split(block_rows(size, rows.device)):
            found = torch.cdist(rows[part], points, compute_mode="use_mm_for_euclid_dist").square()
            first = groups[part] * size
            open_to = found < limits.view(number, size)[groups[part]]
            chosen = torch.where(open_to, found + price, torch.inf).argmin(1)
            slots[part] = first + chosen
            costs[part] = found.gather(1, chosen[:, None]).squeeze(1)
        order = torch.argsort(costs, stable=True)
        order = order[torch.argsort(slots[order], stable=True)]
        sorted_slots = slots[order]
        counts = torch.bincount(sorted_slots, minlength=number * size)
        rank = torch.arange(len(order), device=rows.device) - (counts.cumsum(0) - counts)[sorted_slots]
        kept = rank < places[sorted_slots]
        last = order[kept & (rank == places[sorted_slots] - 1)]
        limits[slots[last]] = torch.minimum(limits[slots[last]], costs[last])
        slots[order[~kept]] = -1
    return slots - groups * size


@torch.no_grad()
def balanced_kmeans(samples: Tensor, num_clusters: int, *, iterations: int = 10, seed: int = 0) -> KMeans:
    """K-means of clusters of at most ceil(M / K) samples.

    It begins with `kmeans`. A round then finds prices at which the samples spread evenly (`balancing_prices`), assigns
    within the capacity by these prices, and takes the means.

    Args:
        samples: (M, D) floating point, finite, M >= K.
        num_clusters: K, at least 1.
        iterations: most balanced rounds, at least 1; it stops earlier when no sample changes its center.
        seed: of the k-means.

    Returns:
        `KMeans(centers (K, D), counts (K,))`, with the counts of the balanced assignment, not those of the nearest
        centers.

    Raises:
        ValueError: there are fewer samples than clusters, or as for `kmeans`.

    Source: balanced k-means as in Malinen, Fränti 2014; in recommenders OneRec (Deng et al. 2025, arXiv:2502.18965),
    whose clusters are filled one after the other.
    Differs: prices instead of an order of the clusters, so that none gets what the others left; near the optimum of
    the assignment, not at it.
    """
    if len(samples) < num_clusters or iterations < 1:
        raise ValueError(
            f"{len(samples)} samples, num_clusters={num_clusters} and iterations={iterations}: expected a sample for "
            "each cluster, and a round at least"
        )
    centers = kmeans(samples, num_clusters, seed=seed).centers
    rows, capacity, previous = samples.to(centers), -(-len(samples) // num_clusters), None
    for _ in range(iterations):
        prices = balancing_prices(rows, centers, temperature=0.05, iterations=10)
        indices = assign_within_capacity(rows, centers, capacity=capacity, prices=prices)
        counts, sums, _ = segment_stats(rows, indices, num_clusters, dtype=widest_dtype(rows.device))
        means = (sums / counts.clamp(min=1)[:, None]).to(centers)
        centers = torch.where(counts[:, None] > 0, means, centers)
        if previous is not None and torch.equal(indices, previous):
            break
        previous = indices
    return KMeans(centers, counts.to(torch.int64))


@torch.no_grad()
def residual_kmeans(
    samples: Tensor, sizes: Sequence[int], *, cluster: Callable[..., KMeans] = kmeans, seed: int = 0
) -> list[Tensor]:
    """Codebooks of a residual quantizer without an encoder: k-means of what the levels before leave over.

    Args:
        samples: (M, D) floating point, finite.
        sizes: K of each level, coarse first.
        cluster: `kmeans` or `balanced_kmeans`. In either case a level leaves over the difference from the nearest
            center, as it will for items that come later.
        seed: level i uses seed + i.

    Returns:
        centers (K, D) of each level.
    """
    codebooks: list[Tensor] = []
    for level, size in enumerate(sizes):
        centers = cluster(samples, size, seed=seed + level).centers
        samples = samples.to(centers)
        samples = samples - centers[nearest(samples, centers).indices]
        codebooks.append(centers)
    return codebooks
