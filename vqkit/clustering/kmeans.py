"""K-means: the start of a codebook, and the baseline that a learned one has to beat."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from vqkit.distributed import counter_random
from vqkit.kernels import nearest, segment_stats
from vqkit.precision import widened, widest_dtype

_CHUNK = 2**16  # samples whose differences are held at once
_DRAWS = 1024  # most candidates of a seeding pass


class KMeans(NamedTuple):
    """Result of `kmeans`.

    Attributes:
        centers: (K, D), no two of them equal.
        counts: (K,) int64, how many samples are nearest to each center; they add up to M.
    """

    centers: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(
    samples: Tensor,
    num_clusters: int,
    *,
    iterations: int = 10,
    seed: int = 0,
    weights: Tensor | None = None,
    centers: Tensor | None = None,
    constrain: Callable[[Tensor], Tensor] | None = None,
) -> KMeans:
    """K-means++ seeding, then Lloyd's rounds.

    No two centers are equal, whatever the samples: where there are fewer distinct samples than clusters, the rest are
    samples plus Gaussian noise of a hundredth of the data's spread (more only where the dtype cannot tell them apart).
    A cluster that runs empty moves to the sample that is farthest from its center. Memory is O((M + K) D). The
    result is a function of the arguments: ranks that hold the same samples get the same centers without communication.

    Args:
        samples: (M, D) floating point, finite, M >= 1; half precision is computed in float32.
        num_clusters: K, at least 1.
        iterations: most Lloyd rounds, at least 0; it stops earlier when no sample changes its center.
        seed: of the draws.
        weights: (M,) positive, how often each sample counts; None counts each once.
        centers: (K, D) to begin with, instead of the seeding.
        constrain: what is made of the means in each round, (K, D) to (K, D), such as `vqkit.functional.unit` for
            samples on the unit sphere; None leaves them.

    Returns:
        `KMeans(centers (K, D), counts (K,))`; centers are float32, float64 for float64 samples.

    Raises:
        ValueError: a shape or dtype is wrong, there is no sample, a sample is not finite, or a number is too small.

    Source: Arthur, Vassilvitskii 2007, "k-means++: the advantages of careful seeding". As in Bahmani et al. 2012,
        arXiv:1203.6402 (k-means||), a pass over the samples draws many centers instead of one.
    Differs: k-means|| keeps all that it draws and reduces them at the end. Here a pass draws at most as many as there
        are centers, and a draw is accepted with probability (squared distance now) / (squared distance when drawn):
        rejection sampling from the distribution of sequential k-means++ (but for a rejected sample, which has no
        second chance in the same pass).
    """
    _check(samples, num_clusters, iterations, weights, centers)
    samples = samples.detach().to(torch.promote_types(samples.dtype, torch.float32))
    if not torch.isfinite(samples).all():
        raise ValueError("samples holds NaN or infinity, expected finite values; drop such rows before clustering.")
    generator = torch.Generator().manual_seed(seed)
    weights = None if weights is None else weights.detach().to(widest_dtype(samples.device))
    centers = _seed_centers(samples, num_clusters, seed, weights) if centers is None else centers.to(samples.dtype)
    centers = distinct(centers, samples, generator)
    indices, previous = nearest(samples, centers).indices, None
    for _ in range(iterations):
        if previous is not None and torch.equal(indices, previous):
            break
        means = _means(samples, indices, centers, weights)
        centers = distinct(means if constrain is None else constrain(means), samples, generator)
        previous, indices = indices, nearest(samples, centers).indices
    return KMeans(centers, torch.bincount(indices, minlength=num_clusters))


def _check(samples: Tensor, num_clusters: int, iterations: int, weights: Tensor | None, centers: Tensor | None) -> None:
    if samples.ndim != 2 or not samples.is_floating_point() or samples.numel() == 0:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)} and dtype {samples.dtype}, expected (M, D) floating point with "
            "M >= 1; flatten to one row for each vector."
        )
    if num_clusters < 1:
        raise ValueError(f"num_clusters is {num_clusters}, expected at least 1; it is the codebook size.")
    if iterations < 0:
        raise ValueError(f"iterations is {iterations}, expected at least 0; 0 returns the seeding alone.")
    if weights is not None and (weights.shape != samples.shape[:1] or not ((weights > 0) & weights.isfinite()).all()):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)}, expected ({len(samples)},), finite and positive; leave samples "
            "of weight 0 out."
        )
    if centers is not None and centers.shape != (num_clusters, samples.shape[1]):
        raise ValueError(
            f"centers has shape {tuple(centers.shape)}, expected ({num_clusters}, {samples.shape[1]}): num_clusters "
            "rows as long as those of samples."
        )
    if centers is not None and not centers.isfinite().all():
        raise ValueError("centers holds NaN or infinity, expected finite values.")


def _seed_centers(samples: Tensor, num_clusters: int, seed: int, weights: Tensor | None = None) -> Tensor:
    """(K, D) samples, each drawn in proportion to its squared distance from those before, times its weight; repeats
    when all are used.
    """
    positions = torch.arange(len(samples), device=samples.device)
    squared = torch.ones_like(positions, dtype=widest_dtype(samples.device))
    centers, step = samples[:0], 0
    while len(centers) < num_clusters:
        wanted = min(max(1, len(centers)), num_clusters - len(centers), _DRAWS, int((squared > 0).sum()))
        if wanted == 0:  # every sample is a center: what is missing repeats samples
            missing = torch.arange(num_clusters - len(centers), device=samples.device)
            return torch.cat([centers, samples[missing % len(samples)]])
        # the smallest of exponential variables with these rates, in order: draws without replacement, as many as
        # wanted (`torch.multinomial` stops at 2^24 categories)
        rates = squared if weights is None else squared * weights
        keys = -torch.log1p(-counter_random(positions, seed=seed, step=2 * step)) / rates
        drawn = torch.topk(keys, wanted, largest=False).indices
        chance = counter_random(positions[:wanted], seed=seed, step=2 * step + 1)
        accepted = _accepted(samples[drawn], chance * squared[drawn])
        distances = widened(_squared_distances(samples, accepted, nearest(samples, accepted).indices))
        squared = torch.minimum(squared, distances) if step else distances
        centers, step = torch.cat([centers, accepted]), step + 1
    return centers


def _accepted(candidates: Tensor, thresholds: Tensor) -> Tensor:
    """Those candidates (n, D), one after another, whose squared distance to the accepted ones exceeds the threshold."""
    rows = candidates.cpu()
    thresholds, chosen = thresholds.cpu(), []
    margin = torch.full_like(thresholds, torch.inf)
    for number in range(len(rows)):
        if thresholds[number] < margin[number]:
            chosen.append(number)
            distances = (rows[number:] - rows[number]).square().sum(1)
            margin[number:] = torch.minimum(margin[number:], distances)
    return candidates[torch.tensor(chosen, device=candidates.device)]


def _squared_distances(samples: Tensor, centers: Tensor, indices: Tensor) -> Tensor:
    """(M,), zero for a sample that is its center and only then (unless the square underflows)."""
    parts = zip(samples.split(_CHUNK), indices.split(_CHUNK), strict=True)
    return torch.cat([(chunk - centers[index]).square().sum(1) for chunk, index in parts])


def _means(samples: Tensor, indices: Tensor, centers: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of each cluster (K, D), summed in the widest dtype; empty ones move to the samples that cost the most."""
    counts, sums, _ = segment_stats(samples, indices, len(centers), weights=weights, dtype=widest_dtype(samples.device))
    means = (sums / torch.where(counts > 0, counts, 1)[:, None]).to(centers.dtype)
    empty = torch.nonzero(counts == 0).squeeze(1)[: len(samples)]
    means = torch.where(counts[:, None] > 0, means, centers)
    if len(empty):
        distances = _squared_distances(samples, means, indices)
        distances, farthest = torch.topk(distances if weights is None else distances * weights, len(empty))
        means[empty] = torch.where(distances[:, None] > 0, samples[farthest], means[empty])
    return means


def distinct(centers: Tensor, samples: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise to centers that repeat an earlier one, more each time, until no two are equal."""
    spread = (samples - samples.mean(0)).square().mean().sqrt()
    noise = 0.01 * spread + 4 * torch.finfo(samples.dtype).eps * samples.abs().max() + torch.finfo(samples.dtype).tiny
    while True:
        repeated = _repeated(centers)
        if not repeated.any():
            return centers
        normal = torch.randn(centers.shape, generator=generator, dtype=centers.dtype).to(centers.device)
        centers = torch.where(repeated[:, None], centers + noise * normal, centers)
        noise = 2 * noise


def _repeated(rows: Tensor) -> Tensor:
    """(K,) bool: whether an earlier row is equal."""
    kinds, kind = torch.unique(rows, dim=0, return_inverse=True)
    order = torch.arange(len(rows), device=rows.device)
    first = order.new_full((len(kinds),), len(rows)).scatter_reduce_(0, kind, order, "amin")
    return first[kind] != order
