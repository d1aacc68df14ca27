"""K-means with an importance of each number: the sum never rises, nothing collapses, and weights decide."""

import torch
from torch import Tensor

from tests.refusals import refused
from vqkit.clustering.importance import importance_kmeans, mahalanobis_start
from vqkit.clustering.kmeans import kmeans
from vqkit.kernels import naive


def cost(samples: Tensor, importance: Tensor, centers: Tensor) -> float:
    return float(naive.weighted_nearest(samples, centers, importance)[1].sum())


def data(number: int = 250, dim: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    samples = torch.randn(number, dim, generator=generator, dtype=torch.float64)
    return samples, torch.rand(number, dim, generator=generator, dtype=torch.float64) ** 3


def test_the_sum_never_rises_and_centers_are_weighted_means() -> None:
    samples, importance = data()
    costs = []
    for rounds in range(7):
        result = importance_kmeans(samples, 8, importance, iterations=rounds)
        costs.append(cost(samples, importance, result.centers))
    assert costs == sorted(costs, reverse=True) and costs[-1] < 0.9 * costs[0]
    final = importance_kmeans(samples, 8, importance)
    indices, _ = naive.weighted_nearest(samples, final.centers, importance)
    for code in range(8):
        a, x = importance[indices == code], samples[indices == code]
        torch.testing.assert_close(final.centers[code], (a * x).sum(0) / a.sum(0))
    assert torch.equal(final.counts, torch.bincount(indices, minlength=8))


def test_equal_weights_are_plain_k_means() -> None:
    samples, _ = data()
    start = samples[:16]
    plain = kmeans(samples, 16, centers=start, iterations=50)
    ours = importance_kmeans(samples, 16, torch.full((3,), 7.0, dtype=torch.float64), centers=start, iterations=50)
    torch.testing.assert_close(ours.centers, plain.centers)
    assert torch.equal(ours.counts, plain.counts)


def test_weights_of_dimensions_are_k_means_of_scaled_samples() -> None:
    samples, _ = data()
    a = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    scaled = kmeans(samples * a.sqrt(), 16, centers=samples[:16] * a.sqrt(), iterations=50)
    for importance in (a, a.expand(len(samples), 3)):
        ours = importance_kmeans(samples, 16, importance, centers=samples[:16], iterations=50)
        torch.testing.assert_close(ours.centers * a.sqrt(), scaled.centers)


def test_an_empty_cluster_moves_to_what_costs_the_most_and_not_to_the_origin() -> None:
    samples = torch.tensor([[10.0, 10.0], [11.0, 10.0], [14.0, 10.0]])
    importance = torch.ones(3, 2)
    start = torch.tensor([[10.0, 10.0], [-500.0, -500.0]])
    result = importance_kmeans(samples, 2, importance, centers=start)
    assert torch.equal(result.centers, torch.tensor([[10.5, 10.0], [14.0, 10.0]]))


def test_a_dimension_of_weight_zero_keeps_its_value() -> None:
    samples, _ = data()
    importance = torch.ones_like(samples)
    importance[:, 1] = 0
    start = samples[:4].clone()
    result = importance_kmeans(samples, 4, importance, centers=start, iterations=5)
    assert torch.equal(result.centers[:, 1], start[:, 1])


def test_the_start_takes_even_ranks_of_the_mahalanobis_distance() -> None:
    samples, _ = data(101, 3, seed=2)
    stretched = samples @ torch.tensor([[30.0, 0, 0], [5, 0.1, 0], [0, 1, 2]], dtype=torch.float64) + 9
    start = mahalanobis_start(stretched, 5)
    assert torch.equal(mahalanobis_start(stretched, 5), start)
    centered = stretched - stretched.mean(0)
    distances = (centered @ torch.linalg.inv(centered.T @ centered / 101) * centered).sum(1)
    ranks = [int((distances < distances[(stretched == center).all(1)]).sum()) for center in start]
    assert ranks == [10, 30, 50, 70, 90]
    flat = torch.cat([samples, samples[:, :1]], dim=1)  # one direction has no variance
    assert mahalanobis_start(flat, 200).isfinite().all()
    assert mahalanobis_start(flat[:1], 3).shape == (3, 4)


def test_more_centers_than_samples_stay_apart() -> None:
    samples, importance = data(5)
    result = importance_kmeans(samples, 9, importance)
    assert len(result.centers.unique(dim=0)) == 9 and result.counts.sum() == 5
    assert cost(samples, importance, result.centers) < 1e-20


test_what_does_not_fit_is_refused = refused(
    (lambda x, w: importance_kmeans(x, 2, w[:, 0]), r"importance has shape \(10,\), expected \(3,\) or \(10, 3\)"),
    (lambda x, w: importance_kmeans(x, 2, -w), "importance holds negative numbers"),
    (lambda x, w: importance_kmeans(x / 0, 2, w), r"samples has shape \(10, 3\) and dtype .*, expected finite"),
    (lambda x, w: importance_kmeans(x, 4, w, centers=x[:2]), r"centers has shape \(2, 3\), expected finite \(4, 3\)"),
    (lambda x, w: importance_kmeans(x, 0, w), "num_clusters is 0 and iterations 100"),
    (lambda x, w: mahalanobis_start(x[0], 2), r"samples has shape .*, expected finite floating point"),
    (lambda x, w: mahalanobis_start(x[:0], 2), r"samples has shape .*, expected finite floating point"),
    (lambda x, w: mahalanobis_start(x / 0, 2), r"samples has shape .*, expected finite floating point"),
    (lambda x, w: mahalanobis_start(x, 0), "num_clusters is 0"),
    by=lambda call: call(*data(10)),
)
