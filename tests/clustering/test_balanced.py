"""Assignment within a capacity, and the k-means that use it."""

import pytest
import torch
from torch import Tensor

from vqkit.clustering.balanced import assign_within_capacity, balanced_kmeans, residual_kmeans
from vqkit.clustering.kmeans import kmeans
from vqkit.kernels import nearest


def crowd(count: int, dim: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64)


def one_after_another(samples: Tensor, codes: Tensor, capacity: int) -> Tensor:
    """Deferred acceptance as it is told: one sample at a time proposes to the nearest code that did not refuse it."""
    cost = torch.cdist(samples, codes).square()
    order, held, free = cost.argsort(1), [[] for _ in codes], list(range(len(samples)))
    asked = [0] * len(samples)
    while free:
        sample = free.pop()
        code = int(order[sample, asked[sample]])
        asked[sample] += 1
        held[code] = sorted([*held[code], sample], key=lambda other: float(cost[other, code]))
        if len(held[code]) > capacity:
            free.append(held[code].pop())
    found = torch.empty(len(samples), dtype=torch.int64)
    for code, members in enumerate(held):
        found[members] = code
    return found


@pytest.mark.parametrize(("count", "size", "capacity"), [(40, 5, 8), (30, 5, 9), (7, 7, 1), (6, 9, 1), (5, 1, 5)])
def test_it_is_the_stable_assignment(count: int, size: int, capacity: int) -> None:
    samples, codes = crowd(count), crowd(size, seed=1)
    found = assign_within_capacity(samples, codes, capacity=capacity)
    assert found.equal(one_after_another(samples, codes, capacity))
    assert torch.bincount(found, minlength=size).max() <= capacity


def test_with_room_for_all_it_is_the_nearest_code() -> None:
    samples, codes = crowd(50), crowd(6, seed=1)
    assert assign_within_capacity(samples, codes, capacity=50).equal(nearest(samples, codes).indices)


def test_groups_and_places_that_are_taken() -> None:
    samples, codes = crowd(24), crowd(6, seed=1)
    groups = torch.arange(24) % 2
    together = assign_within_capacity(samples, codes, capacity=2, groups=groups)
    for group in range(2):
        apart = assign_within_capacity(samples[groups == group], codes, capacity=2)
        assert together[groups == group].equal(apart)
    taken = torch.zeros(1, 6, dtype=torch.int64)
    taken[0, :3] = 1
    found = assign_within_capacity(samples[:3], codes, capacity=1, taken=taken)
    assert sorted(found.tolist()) == [3, 4, 5]


def test_too_few_places() -> None:
    with pytest.raises(ValueError, match=r"group 1 has 5 samples and 4 free places of 4 codes with capacity=1"):
        assign_within_capacity(crowd(6), crowd(4), capacity=1, groups=torch.tensor([0, 1, 1, 1, 1, 1]))


def test_equal_samples_and_codes_end() -> None:
    found = assign_within_capacity(torch.zeros(12, 2), torch.zeros(4, 2), capacity=3)
    assert torch.bincount(found).tolist() == [3, 3, 3, 3]


def test_balanced_clusters_hold_equally_many() -> None:
    samples = torch.cat([0.1 * crowd(150), 5 + 0.1 * crowd(50, seed=1)])  # plain k-means gives most codes to neither
    balanced = balanced_kmeans(samples, 8)
    assert balanced.counts.tolist() == [25] * 8
    assert balanced_kmeans(samples, 7).counts.max() == 29
    again = balanced_kmeans(samples, 8)
    assert again.centers.equal(balanced.centers)
    with pytest.raises(ValueError, match="a sample for each cluster"):
        balanced_kmeans(samples[:3], 8)


def test_residual_levels_cluster_what_is_left() -> None:
    samples = crowd(300)
    first, second = residual_kmeans(samples, [8, 4], seed=3)
    assert first.equal(kmeans(samples, 8, seed=3).centers)
    left = samples - first[nearest(samples, first).indices]
    assert second.equal(kmeans(left, 4, seed=4).centers)
    assert residual_kmeans(samples, [8], cluster=balanced_kmeans)[0].equal(balanced_kmeans(samples, 8).centers)
