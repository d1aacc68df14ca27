"""Coarse labels: there and back, the chain rules of entropy and cross-entropy, and nested groups."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from tests.refusals import refused
from vqkit.clustering import agglomerative_labels, balanced_labels, kmeans_labels
from vqkit.layouts.coarse import CoarseLabels, nested_labels

CLUSTERINGS = [kmeans_labels, balanced_labels, agglomerative_labels]
UNEVEN = CoarseLabels(torch.tensor([1, 0, 1, 2, 1, 0]))


def entropy(numbers: Tensor) -> Tensor:
    """Of rows, in nats, from the shares of different ones."""
    shares = numbers.unique(dim=0, return_counts=True)[1] / len(numbers)
    return -(shares.double() * shares.double().log()).sum()


def test_written_out() -> None:
    assert UNEVEN.counts.tolist() == [2, 3, 1] and UNEVEN.ranks.tolist() == [0, 0, 1, 0, 2, 1]
    assert UNEVEN.members.tolist() == [[1, 5, -1], [0, 2, 4], [3, -1, -1]]
    assert UNEVEN.permutation.tolist() == [1, 5, 0, 2, 4, 3]
    coarse, fine = UNEVEN.encode(torch.tensor([[4, -1], [3, 5]], dtype=torch.int16))
    assert coarse.tolist() == [[1, -1], [2, 0]] and fine.tolist() == [[2, -1], [0, 1]]
    assert UNEVEN.mask(torch.tensor([0, -1])).long().tolist() == [[0, 1, 0, 0, 0, 1], [0] * 6]
    assert UNEVEN.fine_mask(torch.tensor([0, 1, -1])).long().tolist() == [[1, 1, 0], [1, 1, 1], [0, 0, 0]]


@pytest.mark.parametrize("ask", [UNEVEN.mask, UNEVEN.fine_mask])
@pytest.mark.parametrize(("coarse", "said"), [([0, 3], "coarse lie in 0 ... 3: expected"), ([0.0], "coarse has dtype")])
def test_masks_of_groups_that_do_not_exist_are_refused(ask, coarse: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(torch.tensor(coarse))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.data())
@settings(max_examples=50, deadline=None)
def test_decode_undoes_encode_and_entropies_add_up(labels: list[int], data) -> None:
    groups = CoarseLabels(torch.tensor(labels).unique(return_inverse=True)[1])
    assert groups.decode(torch.tensor([-1]), torch.tensor([-1])).tolist() == [-1]
    indices = torch.tensor(data.draw(st.lists(st.integers(0, len(labels) - 1), min_size=1, max_size=40)))
    coarse, fine = groups.encode(indices)
    assert torch.equal(groups.decode(coarse, fine), indices)
    given_coarse = sum(
        (coarse == label).double().mean() * entropy(fine[coarse == label, None]) for label in coarse.unique()
    )
    torch.testing.assert_close(entropy(coarse[:, None]) + given_coarse, entropy(indices[:, None]), atol=1e-6, rtol=0)


def test_cross_entropies_add_up() -> None:
    """CE(index) = CE(coarse) + CE(fine | coarse), for values and gradients."""
    logits = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    indices = torch.randint(6, (50,))
    coarse, _ = UNEVEN.encode(indices)
    within = logits.masked_fill(~UNEVEN.mask(coarse), -torch.inf)
    both = cross_entropy(UNEVEN.coarse_logits(logits), coarse) + cross_entropy(within, indices)
    whole = cross_entropy(logits, indices)
    torch.testing.assert_close(both, whole)
    torch.testing.assert_close(torch.autograd.grad(both, logits)[0], torch.autograd.grad(whole, logits)[0])
    shares = log_softmax(logits, -1).exp()
    summed = torch.stack([shares[:, UNEVEN.labels == label].sum(-1) for label in range(3)], dim=-1)
    torch.testing.assert_close(UNEVEN.coarse_logits(logits).softmax(-1), summed)


def test_contiguous_groups_are_a_division() -> None:
    groups = CoarseLabels(balanced_labels(torch.randn(32, 4), 8))
    coarse, fine = groups.encode(groups.permutation)
    assert torch.equal(4 * coarse + fine, torch.arange(32)) and fine.max() == 3


@pytest.mark.parametrize("clustering", CLUSTERINGS)
def test_nested_groups(clustering) -> None:
    """Groups of groups are far apart where the vectors are so at two scales."""
    outer = torch.arange(3).repeat_interleave(20)
    inner = torch.arange(12).repeat_interleave(5)
    vectors = 1000 * torch.eye(3).repeat_interleave(20, 0) + 20 * torch.randn(12, 3).repeat_interleave(5, 0)
    vectors = vectors + 0.01 * torch.rand(60, 3)
    codes, groups = nested_labels(vectors, [12, 3], clustering)
    assert len(torch.stack([inner, codes.labels], dim=1).unique(dim=0)) == 12
    assert len(torch.stack([outer, groups.labels[codes.labels]], dim=1).unique(dim=0)) == 3


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    groups, indices = CoarseLabels(UNEVEN.labels.cuda()), torch.randint(6, (10,), device="cuda")
    coarse, fine = groups.encode(indices)
    assert coarse.is_cuda and torch.equal(groups.decode(coarse, fine), indices)
    assert groups.coarse_logits(torch.randn(10, 6, device="cuda")).is_cuda


test_mistakes = refused(
    (lambda: CoarseLabels(torch.tensor([0, 2])), "labels has 2 groups in 0 ... 2: expected groups 0 ... G - 1"),
    (lambda: CoarseLabels(torch.tensor([0, -1])), "labels has 2 groups in -1 ... 0"),
    (lambda: CoarseLabels(torch.rand(3)), "labels has dtype torch.float32: expected integers"),
    (lambda: CoarseLabels(torch.zeros(0).long()), "labels has shape (0,): expected (K,), K >= 1"),
    (lambda: UNEVEN.encode(torch.tensor([6])), "indices lie in 6 ... 6"),
    (lambda: UNEVEN.decode(torch.tensor([0]), torch.tensor([2])), "coarse and fine hold 0 and 2: expected a group"),
    (lambda: UNEVEN.decode(torch.tensor([3]), torch.tensor([0])), "hold 3 and 0: expected a group of 0 ... 2"),
    (lambda: UNEVEN.decode(torch.tensor([-1]), torch.tensor([0])), "coarse and fine hold -1 and 0"),
    (lambda: UNEVEN.decode(torch.tensor([0]), torch.tensor([-1])), "coarse and fine hold 0 and -1"),
    (lambda: UNEVEN.decode(torch.tensor([0]), torch.tensor([[0]])), "coarse and fine have shapes (1,), (1, 1)"),
    (lambda: UNEVEN.decode(torch.rand(1), torch.tensor([0])), "coarse has dtype torch.float32"),
    (lambda: UNEVEN.coarse_logits(torch.rand(2, 5)), "logits has shape (2, 5): expected (..., 6)"),
    (lambda: nested_labels(torch.rand(4, 2), [2, 3], kmeans_labels), "num_groups is 3: expected 1 ... 2"),
    literal=True,
)
