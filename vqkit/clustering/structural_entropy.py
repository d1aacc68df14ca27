"""How many codes, asked of the data: clusters of a neighbour graph that minimise its structural entropy. Experimental.

    >>> found = suggest_codebook(features)     # (M, D), some thousands
    >>> quantizer = Quantizer("ema", dim=D, codebook_size=len(found.centers))
    >>> quantizer.initialize([found.centers])  # k-means of K vectors to K codes: these

Samples are nodes, each joined to its nearest ones by edges of their similarity. The two-dimensional structural entropy
of a partition is what a step of a random walk on this graph costs on average, if names of clusters are said only where
the walk enters one. From single nodes on, the pair whose union lowers it most is merged, until none does: the number
of clusters is a result. It depends on what is chosen instead: the similarity, and the number of neighbours.

Unknown: the constants of SECodec, which were not seen, and whether a codebook of this size is better for anything than
k-means of the same size (`docs/other_uses.md` has our figures of distortion). The method's own quantization, by the
entropy after joining a cluster, needs the graph for each new frame; here a new vector goes to the nearest center.

Source: SECodec, Wang et al. 2024 (https://arxiv.org/abs/2501.00018), with the minimisation of HISEvent, Cao et al. 2024
(https://arxiv.org/abs/2312.11891); structural entropy of Li, Pan 2016 (https://doi.org/10.1109/TIT.2016.2555904).
"""

import heapq
import math
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.functional import unit
from vqkit.kernels import nearest, segment_stats
from vqkit.precision import widest_dtype


class Graph(NamedTuple):
    """An undirected graph.

    Attributes:
        nodes: number of nodes N.
        edges: (E, 2) int64, the ends of each edge, the smaller first; none twice, no loops.
        weights: (E,) positive, float64.
    """

    nodes: int
    edges: Tensor
    weights: Tensor


class SuggestedCodebook(NamedTuple):
    """Result of `suggest_codebook`.

    Attributes:
        centers: (K, D) the mean of each cluster, the largest cluster first.
        counts: (K,) int64, samples of each.
        labels: (M,) int64, the cluster of each sample; -1 for one without an edge, which is in none.
        neighbours: of each sample that were joined to it.
        entropy: structural entropy of the partition, in bits.
        one_dimensional: that of the graph without a partition, in bits, which is also that of single nodes.
    """

    centers: Tensor
    counts: Tensor
    labels: Tensor
    neighbours: int
    entropy: float
    one_dimensional: float


@torch.no_grad()
def suggest_codebook(samples: Tensor, *, neighbours: int | None = None, most_neighbours: int = 50) -> SuggestedCodebook:
    """A number of codes, and codes to begin with: the clusters that `merged` finds in the graph of neighbours.

    Time is that of a search of all samples among themselves, and of about M log M merges in Python: seconds for 10,000.

    Args:
        samples: (M, D) floating point, finite, M >= 2.
        neighbours: of each sample in the graph, in 1 ... M - 1; None takes `stable_neighbours`.
        most_neighbours: that it tries at most.

    Raises:
        ValueError: a shape, a dtype or a number is wrong, samples are not finite, or no two samples are similar.

    Differs: HISEvent merges within chunks of nodes in their order, so that the result depends on it; here all nodes are
    in one heap. Its similarity is the correlation, here it is the cosine.
    """
    if neighbours is None:
        neighbours = stable_neighbours(samples, most_neighbours)
    graph = neighbour_graph(samples, neighbours)
    if not len(graph.edges):
        raise ValueError("samples: no two of them have a positive cosine, so that the graph has no edge; centre them")
    labels = merged(graph)
    counts = labels[labels >= 0].bincount()
    order = counts.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    labels = torch.where(labels >= 0, ranks[labels.clamp(min=0)], -1)
    wide = widest_dtype(samples.device)
    number, sums, _ = segment_stats(samples, labels.to(samples.device), len(order), dtype=wide)
    centers = (sums / number[:, None]).to(torch.promote_types(samples.dtype, torch.float32))
    entropies = structural_entropy(graph, labels), one_dimensional_entropy(graph)
    return SuggestedCodebook(centers, counts[order], labels, neighbours, *entropies)


def neighbour_graph(samples: Tensor, neighbours: int) -> Graph:
    """Edges between each sample and its nearest ones by angle, weighted by their cosine where that is positive.

    Args:
        samples: (M, D) floating point, finite, M >= 2.
        neighbours: k, in 1 ... M - 1. An edge is there if one of its ends is among the k nearest of the other.

    Raises:
        ValueError: a shape, a dtype or the number is wrong, or samples are not finite.
    """
    return _joined(*_nearest_others(samples, neighbours))


def stable_neighbours(samples: Tensor, most: int = 50) -> int:
    """The number of neighbours at the first local minimum of the graph's one-dimensional entropy, else at its least.

    Args:
        samples: as for `neighbour_graph`.
        most: numbers up to this one are tried, or up to M - 1.

    Source: the first stable point of HISEvent, Cao et al. 2024 (https://arxiv.org/abs/2312.11891); SECodec tries up to
    200.
    """
    found, cosines = _nearest_others(samples, min(most, len(samples) - 1))
    entropies: list[float] = []
    for count in range(1, found.shape[1] + 1):
        entropies.append(one_dimensional_entropy(_joined(found[:, :count], cosines[:, :count])))
        if count > 2 and entropies[-3] > entropies[-2] < entropies[-1]:
            return count - 1
    return 1 + entropies.index(min(entropies))


def _nearest_others(samples: Tensor, neighbours: int) -> tuple[Tensor, Tensor]:
    """(M, k) the nearest other samples by angle, and their cosines in float64, nearest first; on the host."""
    if samples.ndim != 2 or not samples.is_floating_point() or len(samples) < 2:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)} and dtype {samples.dtype}: expected (M, D) floating point with "
            "M >= 2"
        )
    if not samples.isfinite().all():
        raise ValueError("samples holds NaN or infinity: expected finite values; drop such rows")
    if not 1 <= neighbours < len(samples):
        raise ValueError(f"neighbours={neighbours}: expected 1 to {len(samples) - 1}, one less than there are samples")
    directions = unit(samples.to(torch.promote_types(samples.dtype, torch.float32)))
    found = nearest(directions, directions, metric="cosine", k=neighbours + 1, return_scores=True)
    assert found.scores is not None
    indices, cosines = found.indices.cpu(), found.scores.cpu().double()
    # A sample is its own nearest one, unless as many are equal to it: then the last of these is left out.
    own = indices == torch.arange(len(indices))[:, None]
    own[:, -1] |= ~own.any(1)
    shape = len(indices), neighbours
    return indices[~own].view(shape), cosines[~own].view(shape)


def _joined(found: Tensor, cosines: Tensor) -> Graph:
    """The graph of edges from each row to those that are found (M, k), where the cosine is positive."""
    own = torch.arange(len(found)).repeat_interleave(found.shape[1])
    pairs = torch.stack([own, found.flatten()], 1).sort(1).values
    kept = cosines.flatten() > 0
    edges, kind = pairs[kept].unique(dim=0, return_inverse=True)
    # Both ends may name an edge; their cosines are one, up to rounding.
    weights = cosines.new_zeros(len(edges)).scatter_reduce_(0, kind, cosines.flatten()[kept], "amax")
    return Graph(len(found), edges, weights)


# ------------------------------------------------------------------ entropies


def one_dimensional_entropy(graph: Graph) -> float:
    """-sum_i d_i / V log2 (d_i / V) of degrees d that add up to V: bits of naming the node where a random walk is."""
    shares = _degrees(graph) / (2 * graph.weights.sum())
    return float(-torch.special.xlogy(shares, shares).sum() / math.log(2))


def structural_entropy(graph: Graph, labels: Tensor) -> float:
    """The two-dimensional structural entropy of a partition, in bits.

    sum_c [ -g_c / V log2 (v_c / V) - sum_{i in c} d_i / V log2 (d_i / v_c) ], where d_i are degrees, v_c the sum of
    those of a cluster, V that of all, and g_c the weight of the edges that leave it. One cluster of all, and one of
    each node, both have the one-dimensional entropy.

    Args:
        graph: with an edge at least.
        labels: (N,) integers, the cluster of each node; nodes without an edge count nowhere.
    """
    degrees, volume = _degrees(graph), 2 * float(graph.weights.sum())
    clusters = labels.unique(return_inverse=True)[1]
    volumes = torch.zeros(len(labels), dtype=torch.float64).index_add_(0, clusters, degrees)
    starts, ends = clusters[graph.edges].unbind(1)
    leaving = graph.weights * (starts != ends)
    cuts = torch.zeros_like(volumes).index_add_(0, starts, leaving).index_add_(0, ends, leaving)
    entered = torch.special.xlogy(cuts, volumes / volume).sum()
    inside = torch.special.xlogy(degrees, degrees / volumes[clusters].clamp(min=torch.finfo(torch.float64).tiny)).sum()
    return float(-(entered + inside) / volume / math.log(2))


def _degrees(graph: Graph) -> Tensor:
    """(N,) float64."""
    degrees = torch.zeros(graph.nodes, dtype=torch.float64)
    for end in graph.edges.unbind(1):
        degrees.index_add_(0, end, graph.weights)
    return degrees


# ------------------------------------------------------------------ merging


def merge_change(volumes: tuple[float, float], cuts: tuple[float, float], shared: float, volume: float) -> float:
    """How much the structural entropy changes where two clusters become one, in bits; negative where it falls.

    With inner weights w_c = v_c - g_c it is [w_a log2 (v / v_a) + w_b log2 (v / v_b) + 2 s log2 (v / V)] / V for
    v = v_a + v_b: nodes get longer names, and the edges between the two leave nothing any more. So it is never negative
    where s is 0, and only neighbours need be looked at.

    Args:
        volumes: v_a and v_b, the sums of degrees.
        cuts: g_a and g_b, the weights of the edges that leave each.
        shared: s, the weight of the edges between both.
        volume: V.
    """
    joined = sum(volumes)
    longer = sum((own - cut) * math.log2(joined / own) for own, cut in zip(volumes, cuts, strict=True) if own > cut)
    return (longer + 2 * shared * math.log2(joined / volume)) / volume


def merged(graph: Graph) -> Tensor:
    """The partition at which no union of two clusters lowers the structural entropy, merged one best pair at a time.

    Args:
        graph: its scale does not matter. Ties go to the pair with the lowest numbers.

    Returns:
        (N,) int64, clusters from 0 on, numbered by their first node; -1 for nodes without an edge.
    """
    volumes, volume = _degrees(graph).tolist(), 2 * float(graph.weights.sum())
    cuts = list(volumes)
    shared: list[dict[int, float]] = [{} for _ in range(graph.nodes)]
    for (a, b), weight in zip(graph.edges.tolist(), graph.weights.tolist(), strict=True):
        shared[a][b] = shared[b][a] = weight
    parent = list(range(graph.nodes))
    version = [0] * graph.nodes

    def entry(a: int, b: int) -> tuple[float, int, int, int, int]:
        a, b = min(a, b), max(a, b)
        change = merge_change((volumes[a], volumes[b]), (cuts[a], cuts[b]), shared[a][b], volume)
        return change, a, b, version[a], version[b]

    queue = [entry(a, b) for a, b in graph.edges.tolist()]
    queue = [pair for pair in queue if pair[0] < 0]
    heapq.heapify(queue)
    while queue:
        _, a, b, version_a, version_b = heapq.heappop(queue)
        if (version[a], version[b]) != (version_a, version_b):
            continue  # one of them has changed since
        weight = shared[a].pop(b)
        del shared[b][a]
        if len(shared[a]) < len(shared[b]):
            shared[a], shared[b] = shared[b], shared[a]
        volumes[a] += volumes[b]
        cuts[a] += cuts[b] - 2 * weight
        parent[b], version[a], version[b] = a, version[a] + 1, -1
        for other, between in shared[b].items():
            shared[a][other] = shared[a].get(other, 0.0) + between
        for other in shared[a]:
            shared[other].pop(b, None)
            shared[other][a] = shared[a][other]
            if (pair := entry(a, other))[0] < 0:
                heapq.heappush(queue, pair)
        shared[b] = {}
    return _numbered(parent, volumes)


def _numbered(parent: list[int], volumes: list[float]) -> Tensor:
    """Clusters by their first node, which is the one that others were merged into."""
    roots: list[int] = []
    for node, above in enumerate(parent):  # `above` is never larger than the node
        roots.append(node if above == node else roots[above])
    numbers: dict[int, int] = {}
    labels = [numbers.setdefault(root, len(numbers)) if volumes[root] > 0 else -1 for root in roots]
    return torch.tensor(labels)
