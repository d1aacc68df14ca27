"""Three ways to make groups of codes."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage

from vqkit.clustering.groups import agglomerative_labels, balanced_labels, kmeans_labels

CLUSTERINGS = [kmeans_labels, balanced_labels, agglomerative_labels]


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_clusterings_find_clear_groups(clustering) -> None:
    truth = torch.randperm(40) % 8
    vectors = 100 * torch.eye(8)[truth] + torch.rand(40, 8)
    found = clustering(vectors, 8)
    pairs = torch.stack([truth, found], dim=1).unique(dim=0)
    assert len(pairs) == 8 and found.unique().tolist() == list(range(8))


@pytest.mark.parametrize("clustering", CLUSTERINGS)
@pytest.mark.parametrize("num_groups", [1, 7, 20])
def test_clusterings_give_what_is_asked_for(clustering, num_groups: int) -> None:
    vectors = torch.randn(20, 3)
    assert clustering(vectors, num_groups).unique().tolist() == list(range(num_groups))


@given(st.integers(1, 40), st.data())
@settings(max_examples=30, deadline=None)
def test_balanced_groups_differ_by_one_at_most(codes: int, data) -> None:
    counts = balanced_labels(torch.randn(codes, 3), data.draw(st.integers(1, codes))).bincount()
    assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("excess", [-1e-9, 1e-9])
def test_mean_distances_are_those_of_float64(excess: float) -> None:
    """A pair is as far apart as a group of three from a fourth code, but for less than float32 tells apart."""
    apart = (10 + 9.9 + 9.7) / 3 + excess
    points = [[0, 0], [0.1, 0], [0.3, 0], [10, 0], [0, 1000], [apart, 1000]]
    expected = [0, 0, 0, 1, 2, 2] if excess < 0 else [0, 0, 0, 0, 1, 2]
    assert agglomerative_labels(torch.tensor(points, dtype=torch.float64), 3).tolist() == expected


@pytest.mark.parametrize("num_groups", [2, 5, 17])
def test_agglomeration_is_that_of_scipy(num_groups: int) -> None:
    vectors = torch.randn(60, 4, dtype=torch.float64)
    expected = torch.from_numpy(fcluster(linkage(vectors.numpy(), "average"), num_groups, "maxclust")).long()
    pairs = torch.stack([expected, agglomerative_labels(vectors, num_groups)], dim=1).unique(dim=0)
    assert len(pairs) == num_groups


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_clusterings_refuse_what_is_not_finite(clustering) -> None:
    with pytest.raises(ValueError, match=re.escape("vectors has shape (4, 2)")):
        clustering(torch.full((4, 2), torch.nan), 2)
