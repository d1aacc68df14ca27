"""Groups of code vectors, by k-means, of equal size, or by average linkage: what coarse labels are made of."""

import torch
from torch import Tensor

from vqkit.clustering.kmeans import kmeans
from vqkit.kernels import nearest
from vqkit.precision import widened


@torch.no_grad()
def kmeans_labels(vectors: Tensor, num_groups: int, *, iterations: int = 50, seed: int = 0) -> Tensor:
    """The nearest of `num_groups` centers of k-means, as in CTF; groups differ much in size.

    Args:
        vectors: (K, D) floating point.
        num_groups: G, 1 ... K; fewer come out where fewer vectors differ.
        iterations: Lloyd's rounds at most.
        seed: of the seeding.

    Returns:
        (K,) int64.
    """
    _check(vectors, num_groups)
    centers = kmeans(vectors, num_groups, iterations=iterations, seed=seed).centers
    return nearest(vectors, centers).indices.unique(return_inverse=True)[1]


@torch.no_grad()
def balanced_labels(vectors: Tensor, num_groups: int) -> Tensor:
    """Groups of equal size, give or take one: halves along the principal axis, and halves of these.

    Source: groups of equal size are those of IAR, Hu et al. 2025 (https://arxiv.org/abs/2501.00880).
    Differs: IAR fills the groups of a k-means up to their capacity, which is closer and depends on the order of codes.

    Args:
        vectors: (K, D) floating point.
        num_groups: G, 1 ... K; any number, halves are in proportion.

    Returns:
        (K,) int64.
    """
    _check(vectors, num_groups)
    rows = widened(vectors)
    labels = torch.zeros(len(vectors), dtype=torch.int64, device=vectors.device)
    pending = [(torch.arange(len(vectors), device=vectors.device), 0, num_groups)]
    while pending:
        codes, first, count = pending.pop()
        labels[codes] = first
        if count > 1:
            centered = rows[codes] - rows[codes].mean(0)
            axis = torch.linalg.eigh(centered.mT @ centered).eigenvectors[:, -1]
            ordered, left = codes[(centered @ axis).argsort(stable=True)], count // 2
            size, larger = divmod(len(codes), count)
            cut = left * size + min(left, larger)
            pending += [(ordered[:cut], first, left), (ordered[cut:], first + left, count - left)]
    return labels


@torch.no_grad()
def agglomerative_labels(vectors: Tensor, num_groups: int) -> Tensor:
    """The two groups with the least mean distance of their codes are joined until `num_groups` are left.

    The distances of all pairs are held: 8 K^2 bytes.

    Source: average linkage by chains of nearest neighbours, Müllner 2011 (https://arxiv.org/abs/1109.2378), sec. 3.2;
        for coarse labels, DCPE, Tang et al. 2025 (https://arxiv.org/abs/2508.10719), groups by distances of instances.

    Args:
        vectors: (K, D) floating point.
        num_groups: G, 1 ... K.

    Returns:
        (K,) int64.
    """
    _check(vectors, num_groups)
    rows = vectors.cpu().double()
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    sizes, alive = rows.new_ones(len(rows)), torch.ones(len(rows), dtype=torch.bool)
    joined: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(joined) < len(rows) - 1:
        chain = chain or [int(alive.long().argmax())]
        closest = int(distances[chain[-1]].argmin())
        if len(chain) > 1 and distances[chain[-1], chain[-2]] <= distances[chain[-1], closest]:
            gone, kept = chain.pop(), chain.pop()
            joined.append((float(distances[gone, kept]), gone, kept))
            weight = sizes[gone] / (sizes[gone] + sizes[kept])
            mean = weight * distances[gone] + (1 - weight) * distances[kept]
            distances[kept], distances[:, kept] = mean, mean
            distances[gone], distances[:, gone] = torch.inf, torch.inf
            distances[kept, kept], alive[gone] = torch.inf, False
            sizes[kept] += sizes[gone]
        else:
            chain.append(closest)
    labels = torch.arange(len(rows))
    for _, gone, kept in sorted(joined)[: len(rows) - num_groups]:
        labels[labels == labels[gone]] = labels[kept].clone()
    return labels.unique(return_inverse=True)[1].to(vectors.device)


def _check(vectors: Tensor, num_groups: int) -> None:
    if vectors.ndim != 2 or not vectors.is_floating_point() or not vectors.isfinite().all():
        raise ValueError(
            f"vectors has shape {tuple(vectors.shape)} and dtype {vectors.dtype}: expected finite floating point (K, D)"
        )
    if not 1 <= num_groups <= len(vectors):
        raise ValueError(f"num_groups is {num_groups}: expected 1 ... {len(vectors)}, the number of vectors")
