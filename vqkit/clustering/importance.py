"""K-means of vectors whose numbers do not count alike: a codebook for weights, of which some do more harm than others.

What it is for: a layer W x of a trained network, whose weights are cut into short vectors that share a codebook. The
squared error of its outputs is, but for the correlations of x, the sum of E[x_d^2] (W_d - Q_d)^2. So each number of
each vector has its own importance, the second moment of the input that it meets.
"""

import torch
from torch import Tensor

from vqkit.clustering.kmeans import KMeans, distinct, kmeans
from vqkit.functional import eigen, negligible
from vqkit.kernels import segment_stats, weighted_nearest
from vqkit.precision import widened, widest_dtype


@torch.no_grad()
def importance_kmeans(
    samples: Tensor,
    num_clusters: int,
    importance: Tensor,
    *,
    iterations: int = 100,
    seed: int = 0,
    centers: Tensor | None = None,
) -> KMeans:
    """Lloyd's rounds for the sum of a_d (x_d - c_d)^2: every number of every sample has its own weight a.

    Samples go to the center with the least sum (`weighted_nearest`), and a center is in each dimension the weighted
    mean of its samples, sum a x / sum a. Both steps take the same weights, so that the sum never rises. A dimension in
    which all samples of a cluster have weight 0 keeps its value; a cluster that runs empty moves to the sample that
    costs the most, and never to the origin. No two centers are equal.

    Args:
        samples: (M, D) floating point, finite, M >= 1; half precision is computed in float32.
        num_clusters: K, at least 1.
        importance: (D,) or (M, D), a: finite, at least 0. Only ratios count. With (D,) only the assignment differs from
            `kmeans`.
        iterations: most rounds, at least 0; it stops earlier when no sample changes its center.
        seed: of the start.
        centers: (K, D) to begin with, such as `mahalanobis_start`; None takes the seeding of `kmeans`.

    Returns:
        `KMeans(centers (K, D), counts (K,))`; centers are float32, float64 for float64 samples.

    Raises:
        ValueError: a shape or dtype is wrong, a number is too small, or a value is not finite.

    Source: the codebook of GPTVQ, van Baalen et al. 2024 (arXiv:2402.15319), with the diagonal of the Hessian; 100
        rounds as there.
    Differs: there the start is `mahalanobis_start`, which was the better one here for 16 codes and the worse one for
        256 (`docs/importance.md`). Its released code assigns by the inverse of the weights that its means have, and an
        empty cluster becomes the origin. It passes errors on to later columns, by the whole Hessian; this does not.
    """
    _check(samples, num_clusters, importance, iterations, centers)
    samples = samples.detach().to(torch.promote_types(samples.dtype, torch.float32))
    importance = importance.detach().to(samples.device)
    generator = torch.Generator().manual_seed(seed)
    start = kmeans(samples, num_clusters, iterations=0, seed=seed).centers if centers is None else centers
    means = distinct(start.detach().to(samples), samples, generator)
    found, previous = weighted_nearest(samples, means, importance, return_scores=True), None
    for _ in range(iterations):
        if previous is not None and torch.equal(found.indices, previous):
            break
        assert found.scores is not None
        means = distinct(_means(samples, importance, found.indices, found.scores, means), samples, generator)
        previous, found = found.indices, weighted_nearest(samples, means, importance, return_scores=True)
    return KMeans(means, torch.bincount(found.indices, minlength=num_clusters))


@torch.no_grad()
def mahalanobis_start(samples: Tensor, num_clusters: int) -> Tensor:
    """Centers to begin k-means with, without a draw: samples at even ranks of their Mahalanobis distance from the mean.

    Sorted by (x - mean)^T C^-1 (x - mean), the samples are cut into K runs, and the middle one of each is taken. Where
    there are fewer samples than centers, some are taken several times. Directions without variance do not count.

    Args:
        samples: (M, D) floating point, finite, M >= 1.
        num_clusters: K, at least 1.

    Returns:
        (K, D) of the dtype of the samples.

    Raises:
        ValueError: a shape or dtype is wrong, a number is too small, or a sample is not finite.

    Source: the start of GPTVQ, van Baalen et al. 2024 (arXiv:2402.15319).
    """
    _check_samples(samples, num_clusters)
    samples = samples.detach()
    centered = widened(samples) - widened(samples).mean(0)
    variances, directions = eigen(centered.mT @ centered / len(samples))
    kept = variances > negligible(samples.dtype, len(variances)) * variances[-1]
    scales = torch.where(kept, variances.clamp(min=torch.finfo(variances.dtype).tiny).rsqrt(), 0)
    order = ((centered @ directions) * scales).square().sum(-1).argsort(stable=True)
    middles = (2 * torch.arange(num_clusters, device=samples.device) + 1) * len(samples) // (2 * num_clusters)
    return samples[order[middles]]


def _means(samples: Tensor, importance: Tensor, indices: Tensor, scores: Tensor, centers: Tensor) -> Tensor:
    """Weighted mean of each cluster (K, D), summed in the widest dtype; empty ones move to what costs the most."""
    wide = widest_dtype(samples.device)
    a = importance.to(wide).expand_as(samples)
    counts, weights, _ = segment_stats(a, indices, len(centers), dtype=wide)
    _, sums, _ = segment_stats(a * samples, indices, len(centers), dtype=wide)
    means = torch.where(weights > 0, sums / torch.where(weights > 0, weights, 1), centers.to(wide)).to(centers.dtype)
    empty = torch.nonzero(counts == 0).squeeze(1)[: len(samples)]
    costs, farthest = torch.topk(scores, len(empty))
    means[empty] = torch.where(costs[:, None] > 0, samples[farthest], means[empty])
    return means


def _check_samples(samples: Tensor, num_clusters: int, iterations: int = 0) -> None:
    if samples.ndim != 2 or not samples.is_floating_point() or samples.numel() == 0 or not samples.isfinite().all():
        raise ValueError(
            f"samples has shape {tuple(samples.shape)} and dtype {samples.dtype}, expected finite floating point "
            "(M, D) with M >= 1; flatten to one row for each vector."
        )
    if num_clusters < 1 or iterations < 0:
        raise ValueError(
            f"num_clusters is {num_clusters} and iterations {iterations}, expected at least 1 and at least 0."
        )


def _check(samples: Tensor, num_clusters: int, importance: Tensor, iterations: int, centers: Tensor | None) -> None:
    _check_samples(samples, num_clusters, iterations)
    if importance.shape not in (samples.shape, samples.shape[1:]):
        raise ValueError(
            f"importance has shape {tuple(importance.shape)}, expected {tuple(samples.shape[1:])} or "
            f"{tuple(samples.shape)}; how often a whole sample counts is `weights` of `kmeans`."
        )
    if not ((importance >= 0) & importance.isfinite()).all():
        raise ValueError("importance holds negative numbers, NaN or infinity, expected finite ones of at least 0.")
    if centers is not None and (centers.shape != (num_clusters, samples.shape[1]) or not centers.isfinite().all()):
        raise ValueError(
            f"centers has shape {tuple(centers.shape)}, expected finite ({num_clusters}, {samples.shape[1]})."
        )
