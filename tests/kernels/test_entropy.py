"""Entropies of soft assignments. What all such operators share is in `test_soft.py`."""

import math

import pytest
import torch
from torch import Tensor

from tests.kernels.graphs import few_rows, leaves
from tests.kernels.soft_operators import assert_right, case
from tests.refusals import refused
from vqkit.kernels import assignment_entropy, entropy, naive

N, K, D = 50, 30, 6
METRICS = ("dot", "euclidean")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 7)


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    z, codes, weights = torch.randn(N, D), torch.randn(K, D), torch.rand(N)
    weights[[2, 30]] = 0
    return z.to(dtype), codes.to(dtype), weights.to(dtype)


@pytest.mark.parametrize("metric", METRICS)
def test_gradcheck(metric: str) -> None:
    z, codes, weights = example()
    inputs = leaves(z[:9], codes[:8])

    def loss(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        found = assignment_entropy(z, codes, temperature=0.5, metric=metric, weights=weights[:9])
        return found.per_sample, entropy(found.mean_probabilities)

    assert torch.autograd.gradcheck(loss, inputs)


def test_either_result_alone_has_its_gradient() -> None:
    z, codes, _ = example()
    for number in (0, 1):
        ours, theirs = leaves(z, codes), leaves(z, codes)
        upstream = torch.randn(N if number == 0 else K, dtype=z.dtype)
        found = assignment_entropy(*ours, temperature=0.3)[number]
        expected = naive.assignment_entropy(*theirs, temperature=0.3)[number]
        torch.testing.assert_close(
            torch.autograd.grad(found, ours, upstream), torch.autograd.grad(expected, theirs, upstream)
        )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_float32_at_temperature_one_hundredth(offset: float, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What float32 loses is the rounding of the logits, a hundred times; not that of their size, or of an offset."""
    monkeypatch.undo()
    z, codes = 0.1 * torch.randn(200, 64), 0.1 * torch.randn(500, 64) + offset
    z = z + offset if metric == "euclidean" else z
    tested = case(f"entropy, {metric}", z, codes, 0.01)
    assert 0.2 < tested.plain(z.double(), codes.double())[0].mean() < 5  # neither saturated nor flat
    assert_right(tested, z, codes)


def test_small_entropies_do_not_cancel() -> None:
    """Two codes at a distance of some temperatures, both logits large: log-sum-exp less mean logit would lose all."""
    gap = torch.tensor([3.0, 6.0, 9.0, 12.0])
    z = torch.stack([torch.full_like(gap, 30.0), 30 - 0.01 * gap], dim=1)
    found = assignment_entropy(z, torch.eye(2)).per_sample
    gap = (z[:, 0].double() - z[:, 1].double()) / 0.01
    p = torch.sigmoid(-gap)
    # Two logits of 1500, each rounded twice: 4e-4 of p, and a third of that of its logarithm, which is at least 3.
    torch.testing.assert_close(found.double(), -p * p.log() - (1 - p) * torch.log1p(-p), rtol=2e-3, atol=1e-7)


def test_bounds_and_known_values() -> None:
    codes = torch.eye(4, dtype=torch.float64)
    found = assignment_entropy(torch.zeros(3, 4, dtype=torch.float64), codes)
    torch.testing.assert_close(found.per_sample, torch.full((3,), math.log(4), dtype=torch.float64))
    found = assignment_entropy(codes, codes)  # each row sure of another code
    assert (found.per_sample < 1e-40).all() and (found.per_sample >= 0).all()
    torch.testing.assert_close(entropy(found.mean_probabilities), torch.tensor(math.log(4), dtype=torch.float64))
    weights = torch.tensor([1.0, 3.0, 0.0, 0.0])
    torch.testing.assert_close(
        assignment_entropy(codes.float(), codes.float(), weights=weights).mean_probabilities,
        torch.tensor([0.25, 0.75, 0.0, 0.0]),
    )


def test_no_weight_at_all() -> None:
    z, codes, weights = example()
    inputs = leaves(z, codes)
    found = assignment_entropy(*inputs, weights=0 * weights)
    assert (found.per_sample == 0).all() and (found.mean_probabilities == 0).all()
    loss = found.per_sample.sum() - entropy(found.mean_probabilities)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("scale", [1e-20, 1e3, 1e8])
def test_extreme_logits(scale: float) -> None:
    z, codes, _ = example(torch.float32)
    codes[5] = codes[4]
    inputs = leaves(scale * z, scale * codes)
    found = assignment_entropy(*inputs)
    gradients = torch.autograd.grad(found.per_sample.mean() - entropy(found.mean_probabilities), inputs)
    assert all(tensor.isfinite().all() for tensor in (*found, *gradients))
    assert (found.per_sample >= 0).all() and (found.per_sample <= math.log(K) + 1e-5).all()
    torch.testing.assert_close(found.mean_probabilities.sum(), torch.tensor(1.0))
    if scale > 1:  # rows that are decided give 0, those that are tied log 2
        best = (z.double() @ codes.double().T).argmax(1)
        torch.testing.assert_close(found.per_sample[best == 4], torch.full((int((best == 4).sum()),), math.log(2)))


def test_entropy_of_probabilities() -> None:
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    values = entropy(p)
    torch.testing.assert_close(values, torch.tensor([math.log(2), 0.0]))
    (gradient,) = torch.autograd.grad(values.sum(), p)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient[0, :2], torch.full((2,), math.log(2) - 1))


test_wrong_arguments_are_named = refused(
    ({"codes": torch.zeros(5, 3)}, r"codes \(5, 3\)"),
    ({"metric": "cosine"}, "metric is 'cosine', expected 'dot' or 'euclidean'"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"weights": torch.ones(5)}, r"weights has shape \(5,\) .* expected \(2,\)"),
    ({"weights": torch.ones(2).int()}, "weights has dtype torch.int32"),
    ({"weights": torch.ones(2, requires_grad=True)}, "weights has .* requires_grad=True, expected"),
    by=lambda changes: assignment_entropy(**{"z": torch.zeros(2, 4), "codes": torch.zeros(5, 4)} | changes),
)


def test_weights_of_any_size() -> None:
    """Only their ratios count: a sum that overflows must not leave all rows out, nor one infinity poison them."""
    generator = torch.Generator().manual_seed(0)
    z, codes = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    expected = assignment_entropy(z, codes, weights=torch.tensor([1.0, 1.0, 0.5, 0.0]))
    for weights in (
        [3e38, 3e38, 1.5e38, 0.0],
        [2e-38, 2e-38, 1e-38, 0.0],
        [1.0, 1.0, 0.5, torch.inf],
        [2.0, 2.0, 1.0, -1.0],
    ):
        found = assignment_entropy(z, codes, weights=torch.tensor(weights))
        torch.testing.assert_close(found.mean_probabilities, expected.mean_probabilities)
        torch.testing.assert_close(found.per_sample, expected.per_sample)
