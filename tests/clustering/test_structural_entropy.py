"""Structural entropy: closed-form merges against recomputation, planted groups, and what the graph is."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.refusals import refused
from vqkit import Quantizer
from vqkit.clustering.structural_entropy import (
    Graph,
    merge_change,
    merged,
    neighbour_graph,
    one_dimensional_entropy,
    stable_neighbours,
    structural_entropy,
    suggest_codebook,
)


def planted(groups: int = 3, size: int = 8) -> tuple[Graph, Tensor]:
    """Groups with heavy edges inside and light ones between, and the group of each node."""
    labels = torch.arange(groups * size) % groups
    pairs = torch.tensor(list(itertools.combinations(range(groups * size), 2)))
    same = labels[pairs[:, 0]] == labels[pairs[:, 1]]
    return Graph(groups * size, pairs, torch.where(same, 1.0, 0.05).double() * (0.5 + torch.rand(len(pairs)))), labels


def partition_entropy(graph: Graph, labels: Tensor) -> float:
    """The equation, cluster by cluster, of a dense matrix."""
    matrix = torch.zeros(graph.nodes, graph.nodes, dtype=torch.float64)
    for (a, b), weight in zip(graph.edges.tolist(), graph.weights.tolist(), strict=True):
        matrix[a, b] = matrix[b, a] = weight
    degrees, volume, total = matrix.sum(1), float(matrix.sum()), 0.0
    for label in labels.unique():
        inside = labels == label
        own, cut = float(degrees[inside].sum()), float(matrix[inside][:, ~inside].sum())
        total -= cut / volume * math.log2(own / volume)
        total -= sum(d / volume * math.log2(d / own) for d in degrees[inside].tolist())
    return total


def test_the_entropy_of_a_partition_is_that_of_the_equation() -> None:
    graph, labels = planted()
    assert structural_entropy(graph, labels) == pytest.approx(partition_entropy(graph, labels), abs=1e-12)
    assert structural_entropy(graph, 5 * labels + 7) == pytest.approx(partition_entropy(graph, labels), abs=1e-12)


def test_one_cluster_and_single_nodes_have_the_one_dimensional_entropy() -> None:
    graph, labels = planted()
    whole = one_dimensional_entropy(graph)
    for partition in (torch.zeros(24, dtype=torch.long), torch.arange(24)):
        assert structural_entropy(graph, partition) == pytest.approx(whole, abs=1e-12)
    assert structural_entropy(graph, labels) < whole


@pytest.mark.parametrize("pair", [(0, 1), (2, 5)])
def test_the_change_of_a_merge_is_that_of_recomputation(pair: tuple[int, int]) -> None:
    graph, _ = planted()
    labels = torch.arange(24) // 4
    joined = torch.where(labels == pair[1], pair[0], labels)
    matrix = torch.zeros(24, 24, dtype=torch.float64)
    matrix[graph.edges[:, 0], graph.edges[:, 1]] = graph.weights
    matrix = matrix + matrix.T
    sides = [labels == number for number in pair]
    volumes = tuple(float(matrix[side].sum()) for side in sides)
    cuts = tuple(float(matrix[side][:, ~side].sum()) for side in sides)
    shared = float(matrix[sides[0]][:, sides[1]].sum())
    change = merge_change(volumes, cuts, shared, float(matrix.sum()))
    assert change == pytest.approx(structural_entropy(graph, joined) - structural_entropy(graph, labels), abs=1e-12)
    assert merge_change(volumes, cuts, 0.0, float(matrix.sum())) > 0


def test_planted_groups_are_found_whatever_the_scale_and_the_order() -> None:
    graph, labels = planted()
    assert torch.equal(merged(graph), labels)
    assert torch.equal(merged(graph._replace(weights=1e-6 * graph.weights)), labels)
    order = torch.randperm(24)
    moved = merged(graph._replace(edges=order[graph.edges].sort(1).values))[order]
    same = labels[:, None] == labels
    assert torch.equal(moved[:, None] == moved, same)


def test_no_union_lowers_the_entropy_of_what_is_left() -> None:
    graph = neighbour_graph(torch.randn(60, 3), 4)
    labels = merged(graph)
    least = structural_entropy(graph, labels)
    assert 1 < labels.max() + 1 < 60 and least < one_dimensional_entropy(graph)
    for a, b in itertools.combinations(range(int(labels.max()) + 1), 2):
        assert structural_entropy(graph, torch.where(labels == b, a, labels)) >= least - 1e-12


def test_edges_join_each_sample_to_its_nearest_others_once() -> None:
    x = torch.randn(30, 4, dtype=torch.float64)
    graph = neighbour_graph(x, 3)
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    nearest = cosines.clone().fill_diagonal_(-2).topk(3, 1).indices
    expected = {tuple(sorted((a, b))) for a, row in enumerate(nearest.tolist()) for b in row if cosines[a, b] > 0}
    assert {tuple(edge) for edge in graph.edges.tolist()} == expected and len(graph.edges) == len(expected)
    torch.testing.assert_close(graph.weights, cosines[graph.edges[:, 0], graph.edges[:, 1]], rtol=0, atol=1e-12)


def test_equal_samples_have_no_edge_to_themselves() -> None:
    graph = neighbour_graph(torch.ones(6, 2), 2)
    assert (graph.edges[:, 0] < graph.edges[:, 1]).all()


def test_well_separated_samples_suggest_their_number_and_start_a_quantizer() -> None:
    groups = 5 * torch.eye(5)
    x = (groups[:, None] + 0.1 * torch.randn(5, 40, 5)).flatten(0, 1)
    found = suggest_codebook(x, neighbours=10)
    assert found.counts.tolist() == [40] * 5
    assert torch.equal(found.labels, torch.arange(5).repeat_interleave(40))
    torch.testing.assert_close(found.centers, x.view(5, 40, 5).mean(1))
    assert found.entropy < found.one_dimensional
    quantizer = Quantizer("ema", dim=5, codebook_size=5)
    quantizer.initialize([found.centers])
    assert torch.equal(quantizer.codebook().sort(0).values, found.centers.sort(0).values)


def test_a_sample_unlike_all_others_is_in_no_cluster() -> None:
    x = torch.cat([torch.tensor([[1.0, 0.0]]).repeat(6, 1) + 0.1 * torch.rand(6, 2), torch.tensor([[-1.0, -1.0]])])
    found = suggest_codebook(x, neighbours=2)
    assert found.labels[-1] == -1 and found.labels[:-1].min() == 0
    assert int(found.counts.sum()) == 6


def test_the_number_of_neighbours_is_at_the_first_minimum_of_the_one_dimensional_entropy() -> None:
    x = torch.randn(80, 3) + 0.5
    entropies = [one_dimensional_entropy(neighbour_graph(x, count)) for count in range(1, 31)]
    found = stable_neighbours(x, 30)
    minima = [n for n in range(1, 29) if entropies[n - 1] > entropies[n] < entropies[n + 1]]
    assert found == 1 + (minima[0] if minima else entropies.index(min(entropies)))


test_what_cannot_be_meant_is_refused = refused(
    (lambda: suggest_codebook(torch.zeros(5)), r"expected \(M, D\) floating point"),
    (lambda: suggest_codebook(torch.full((5, 2), torch.nan)), "NaN or infinity"),
    (lambda: suggest_codebook(torch.randn(5, 2), neighbours=5), "neighbours=5: expected 1 to 4"),
    (lambda: suggest_codebook(torch.eye(5), neighbours=2), "no two of them have a positive cosine"),
)
