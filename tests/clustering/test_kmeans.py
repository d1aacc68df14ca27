"""K-means: seeding, rounds, and the samples that break a careless one."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.refusals import refused
from vqkit.clustering.kmeans import KMeans, _means, _seed_centers, kmeans
from vqkit.functional import unit


def blobs(clusters: int, each: int, depth: int, scale: float = 0.05) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(clusters)
    centers = 10 * torch.randn(clusters, depth, generator=generator)
    samples = centers.repeat_interleave(each, 0) + scale * torch.randn(clusters * each, depth, generator=generator)
    return samples, centers


def inertia(samples: Tensor, centers: Tensor) -> float:
    return torch.cdist(samples.double(), centers.double()).amin(1).square().sum().item()


def sequential(samples: Tensor, num_clusters: int, iterations: int, generator: torch.Generator, plus: bool) -> Tensor:
    """Textbook k-means++ (or uniform seeding), one center at a time, then Lloyd's rounds."""
    centers = samples[torch.randint(len(samples), (1,), generator=generator)]
    for _ in range(num_clusters - 1):
        weights = torch.cdist(samples, centers).amin(1).square() if plus else torch.ones(len(samples))
        centers = torch.cat([centers, samples[torch.multinomial(weights, 1, generator=generator)]])
    for _ in range(iterations):
        indices = torch.cdist(samples, centers).argmin(1)
        for k in indices.unique():
            centers[k] = samples[indices == k].mean(0)
    return centers


def check(result: KMeans, samples: Tensor, num_clusters: int) -> None:
    assert result.centers.shape == (num_clusters, samples.shape[1])
    assert torch.isfinite(result.centers).all()
    assert len(torch.unique(result.centers, dim=0)) == num_clusters
    assert result.counts.shape == (num_clusters,) and result.counts.dtype == torch.int64
    assert result.counts.sum() == len(samples)


def test_finds_well_separated_clusters_exactly() -> None:
    samples, _ = blobs(40, 50, 8)
    result = kmeans(samples, 40)
    means = samples.view(40, 50, 8).double().mean(1)
    order = torch.cdist(means, result.centers.double()).argmin(1)
    assert len(order.unique()) == 40
    torch.testing.assert_close(result.centers[order], means.float())
    assert (result.counts == 50).all()


def test_seeding_is_as_good_as_sequential_and_better_than_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.cat([blobs(60, 40, 4, scale=1.0)[0], torch.randn(600, 4, generator=generator)])
    ours = sum(inertia(samples, _seed_centers(samples, 64, seed)) for seed in range(16))
    plus = sum(inertia(samples, sequential(samples, 64, 0, generator, True)) for _ in range(16))
    uniform = sum(inertia(samples, sequential(samples, 64, 0, generator, False)) for _ in range(16))
    assert ours < 1.2 * plus  # the means over 60 seeds are 31900 and 31200, a standard error of 16 is 900
    assert ours < 0.5 * uniform


def test_the_result_is_as_good_as_sequential() -> None:
    generator = torch.Generator().manual_seed(1)
    samples = torch.rand(2000, 4, generator=generator)
    ours = sum(inertia(samples, kmeans(samples, 50, iterations=5, seed=seed).centers) for seed in range(3))
    plus = sum(inertia(samples, sequential(samples, 50, 5, generator, True)) for _ in range(3))
    assert ours < 1.03 * plus


def test_seeding_draws_in_proportion_to_the_squared_distance() -> None:
    """From 0, the second of two centers is 1 with chance 1/5 and 2 with 4/5."""
    samples = torch.tensor([[0.0], [1.0], [2.0]])
    pairs = [tuple(_seed_centers(samples, 2, seed).flatten().tolist()) for seed in range(300)]
    first = [second for start, second in pairs if start == 0.0]
    assert 70 < len(first) < 130
    assert abs(first.count(2.0) / len(first) - 0.8) < 0.12


def test_seeds_are_distinct_samples() -> None:
    samples = torch.randn(300, 3, generator=torch.Generator().manual_seed(1)).repeat(4, 1)
    centers = _seed_centers(samples, 300, 0)
    assert len(torch.unique(centers, dim=0)) == 300
    assert torch.equal(torch.unique(centers, dim=0), torch.unique(samples, dim=0))


def test_rounds_lower_the_inertia() -> None:
    samples = torch.rand(2000, 3, generator=torch.Generator().manual_seed(2))
    values = [inertia(samples, kmeans(samples, 50, iterations=rounds).centers) for rounds in (0, 1, 3, 10)]
    assert values == sorted(values, reverse=True) and values[-1] < 0.8 * values[0]


@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_more_clusters_than_distinct_samples(size: int) -> None:
    samples = torch.randn(size, 4, generator=torch.Generator().manual_seed(3)).repeat(3, 1)
    result = kmeans(samples, 64)
    check(result, samples, 64)
    assert inertia(samples, result.centers) == pytest.approx(0, abs=1e-9)
    assert (result.centers - result.centers.mean(0)).abs().max() < 10  # the noise stays at the scale of the samples


@pytest.mark.parametrize("value", [0.0, 1.0, -3e5, 1e-20])
def test_identical_samples(value: float) -> None:
    for depth in (1, 3):
        samples = torch.full((50, depth), value)
        check(kmeans(samples, 32), samples, 32)
    check(kmeans(samples[:1], 1), samples[:1], 1)
    assert torch.equal(kmeans(samples, 1).centers, samples[:1])


def test_one_cluster_is_the_mean() -> None:
    samples = torch.randn(1000, 5, generator=torch.Generator().manual_seed(4))
    result = kmeans(samples, 1)
    torch.testing.assert_close(result.centers[0], samples.double().mean(0).float())
    assert result.counts.tolist() == [1000]


def test_an_empty_cluster_moves_to_the_farthest_sample() -> None:
    samples = torch.tensor([[0.0], [1.0], [2.0], [50.0]])
    centers = _means(samples, torch.tensor([0, 0, 0, 0]), torch.tensor([[1.0], [900.0], [901.0]]))
    assert centers.flatten().tolist() == [13.25, 50.0, 0.0]


def test_an_offset_changes_nothing_but_the_place() -> None:
    samples, _ = blobs(30, 40, 6, scale=0.5)
    samples = (samples * 64).round() / 64  # so that adding 1024 is exact
    here, there = kmeans(samples, 30), kmeans(samples + 1024, 30)
    torch.testing.assert_close(there.centers - 1024, here.centers, atol=2e-4, rtol=0)
    assert torch.equal(there.counts, here.counts)


def test_is_a_function_of_its_arguments() -> None:
    samples = torch.randn(500, 4, generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    first, second, other = kmeans(samples, 20, seed=7), kmeans(samples, 20, seed=7), kmeans(samples, 20, seed=8)
    assert torch.equal(first.centers, second.centers) and torch.equal(first.counts, second.counts)
    assert not torch.equal(first.centers, other.centers)
    assert torch.equal(torch.get_rng_state(), state)
    check(first, samples, 20)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_dtypes(dtype: torch.dtype, expected: torch.dtype) -> None:
    samples = torch.randn(200, 4, generator=torch.Generator().manual_seed(6)).to(dtype).requires_grad_()
    result = kmeans(samples, 10)
    check(result, samples, 10)
    assert result.centers.dtype == expected and not result.centers.requires_grad


test_wrong_arguments_are_named = refused(
    ({"samples": torch.zeros(0, 3)}, r"samples has shape \(0, 3\)"),
    ({"samples": torch.zeros(3)}, r"samples has shape \(3,\)"),
    ({"samples": torch.zeros(3, 3, dtype=torch.int64)}, "dtype torch.int64, expected"),
    ({"samples": torch.tensor([[torch.nan]])}, "samples holds NaN or infinity"),
    ({"num_clusters": 0}, "num_clusters is 0, expected at least 1"),
    ({"iterations": -1}, "iterations is -1, expected at least 0"),
    ({"weights": torch.ones(4)}, r"weights has shape \(4,\), expected \(3,\)"),
    ({"weights": torch.tensor([1.0, 0, 1])}, "finite and positive"),
    ({"centers": torch.zeros(2, 2)}, r"centers has shape \(2, 2\), expected \(2, 3\)"),
    ({"centers": torch.full((2, 3), torch.nan)}, "centers holds NaN"),
    by=lambda arguments: kmeans(**{"samples": torch.zeros(3, 3), "num_clusters": 2} | arguments),
)


def test_weights_are_repetitions() -> None:
    """A sample of weight 3 moves the means as three of it do."""
    samples, _ = blobs(6, 20, 4, scale=2.0)
    times = torch.arange(len(samples)) % 4 + 1
    ours = kmeans(samples, 9, centers=samples[::14][:9], weights=times.double())
    plain = kmeans(samples.repeat_interleave(times, 0), 9, centers=samples[::14][:9])
    torch.testing.assert_close(ours.centers, plain.centers)
    assert ours.counts.sum() == len(samples)


@pytest.mark.parametrize("constrain", [None, unit], ids=["plane", "sphere"])
def test_the_weighted_sum_never_grows(constrain: Callable[[Tensor], Tensor] | None) -> None:
    samples = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    samples = samples if constrain is None else constrain(samples)
    weights = torch.rand(500, generator=torch.Generator().manual_seed(1)).double() ** 4 + 1e-3
    sums = []
    for iterations in range(12):
        centers = kmeans(samples, 30, iterations=iterations, weights=weights, constrain=constrain).centers
        sums.append((torch.cdist(samples.double(), centers.double()).amin(1).square() @ weights).item())
        assert constrain is None or torch.allclose(centers.norm(dim=1), torch.ones(30))
    # Centers are rounded to float32, at most half of its epsilon of a length of about 1 to either side.
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(sums)) and sums[-1] < 0.9 * sums[0]


def test_seeding_draws_by_weight() -> None:
    """The first center is a sample with the probability of its weight; the share of 500 draws is within four sigma."""
    samples, weights = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([1.0, 2.0, 7.0])
    first = torch.cat([kmeans(samples, 1, iterations=0, seed=seed, weights=weights).centers[0] for seed in range(500)])
    for value, share in enumerate(weights / weights.sum()):
        assert abs((first == value).double().mean() - share) < 4 * (share * (1 - share) / 500) ** 0.5
