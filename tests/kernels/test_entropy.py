"""Entropies of soft assignments against the materialized computation in float64, and what must not disturb them."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.kernels import soft_rounding
from tests.kernels.graphs import Watch, few_rows, leaves
from vqkit.kernels import AssignmentEntropy, assignment_entropy, entropy, naive, softmax_rows
from vqkit.kernels.entropy import _backward, _forward

N, K, D = 50, 30, 6
METRICS = ("dot", "euclidean")


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 7)


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    z, codes, weights = torch.randn(N, D), torch.randn(K, D), torch.rand(N)
    weights[[2, 30]] = 0
    return z.to(dtype), codes.to(dtype), weights.to(dtype)


def everything(
    found: AssignmentEntropy | tuple[Tensor, Tensor], inputs: list[Tensor], upstream: Sequence[Tensor]
) -> list[Tensor]:
    return [*found, *torch.autograd.grad(tuple(found), inputs, upstream)]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_equals_the_materialized(temperature: float, metric: str) -> None:
    z, codes, weights = example()
    upstream = (torch.randn(N, dtype=z.dtype), torch.randn(K, dtype=z.dtype))
    ours, theirs = leaves(z, codes), leaves(z, codes)
    found = assignment_entropy(*ours, temperature=temperature, metric=metric, weights=weights)
    expected = naive.assignment_entropy(*theirs, temperature=temperature, metric=metric, weights=weights)
    for value, other in zip(everything(found, ours, upstream), everything(expected, theirs, upstream), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-9, atol=1e-10)


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
    upstream = (torch.randn(200), torch.randn(500))
    ours, theirs = leaves(z, codes), leaves(z, codes, dtype=torch.float64)
    found = everything(assignment_entropy(*ours, metric=metric), ours, upstream)
    weights = torch.ones(200, dtype=torch.float64)
    expected = everything(
        naive.assignment_entropy(*theirs, metric=metric, weights=weights),
        theirs,
        [value.double() for value in upstream],
    )
    assert 0.2 < expected[0].mean() < 5  # neither saturated nor flat
    errors = soft_rounding.assignment_entropy(0.01, metric, weights)
    wide = [tensor.detach() for tensor in (*theirs, *upstream)]
    soft_rounding.assert_within(found, expected, errors(*(tensor.double() for tensor in wide)))


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


@pytest.mark.parametrize("metric", METRICS)
def test_rows_without_weight_disturb_nothing(metric: str) -> None:
    z, codes, weights = example()
    kept = weights > 0
    upstream = (torch.randn(N, dtype=z.dtype), torch.randn(K, dtype=z.dtype))
    inputs = leaves(z[kept], codes)
    found = assignment_entropy(*inputs, temperature=0.2, metric=metric, weights=weights[kept])
    expected = everything(found, inputs, (upstream[0][kept], upstream[1]))
    z[2], z[30, 1], weights[2], upstream[0][2] = torch.nan, torch.inf, -1.0, torch.nan
    inputs = leaves(z, codes)
    found = assignment_entropy(*inputs, temperature=0.2, metric=metric, weights=weights)
    per_sample, mean, dz, dcodes = everything(found, inputs, upstream)
    assert (per_sample[~kept] == 0).all() and (dz[~kept] == 0).all()
    for value, other in zip((per_sample[kept], mean, dz[kept], dcodes), expected, strict=True):
        torch.testing.assert_close(value, other)


def test_no_weight_at_all() -> None:
    z, codes, weights = example()
    inputs = leaves(z, codes)
    found = assignment_entropy(*inputs, weights=0 * weights)
    assert (found.per_sample == 0).all() and (found.mean_probabilities == 0).all()
    loss = found.per_sample.sum() - entropy(found.mean_probabilities)
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("metric", METRICS)
def test_one_code_one_dimension_and_no_row(metric: str) -> None:
    for rows, size, depth in ((0, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1)):
        inputs = leaves(torch.randn(rows, depth), torch.randn(size, depth))
        found = assignment_entropy(*inputs, metric=metric)
        loss = found.per_sample.sum() - entropy(found.mean_probabilities)
        gradients = torch.autograd.grad(loss, inputs)
        assert found.per_sample.shape == (rows,) and found.mean_probabilities.shape == (size,)
        assert all(gradient.isfinite().all() for gradient in gradients)
        if size == 1:
            assert (found.per_sample == 0).all() and (found.mean_probabilities == 1).all()


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


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(precision: str) -> None:
    z, codes, weights = example(torch.float32)
    arguments = (torch.randn(N), torch.randn(K), z, codes, weights, 0.1)
    expected = _backward(*arguments)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with Watch() as watch:
            found = _backward(*arguments)
            _forward(z, codes, weights, 0.1)
        assert watch.products == {torch.float64}
    finally:
        torch.set_float32_matmul_precision(before)
    errors = soft_rounding.assignment_entropy(0.1, "dot", weights)
    bounds = errors(*(tensor.double() for tensor in (z, codes, *arguments[:2])))[2:]
    soft_rounding.assert_within(found, expected, bounds)
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_changes_nothing(metric: str) -> None:
    z, codes, weights = example(torch.float32)
    upstream, results = (torch.randn(N), torch.randn(K)), []
    for enabled in (False, True):
        inputs = leaves(z, codes)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(everything(assignment_entropy(*inputs, metric=metric, weights=weights), inputs, upstream))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_half_precision_inputs_are_taken_at_their_values() -> None:
    z, codes, weights = (tensor.bfloat16() for tensor in example(torch.float32))
    inputs = leaves(z, codes)
    found = assignment_entropy(*inputs, temperature=0.5, metric="euclidean", weights=weights)
    expected = assignment_entropy(z.double(), codes.double(), temperature=0.5, metric="euclidean", weights=weights)
    assert found.per_sample.dtype == torch.float32
    torch.testing.assert_close(found.per_sample, expected.per_sample.float())
    assert torch.autograd.grad(found.per_sample.sum(), inputs)[0].dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("metric", METRICS)
def test_a_gpu_agrees(metric: str) -> None:
    z, codes, weights = example(torch.float32)
    upstream, results = (torch.randn(N), torch.randn(K)), []
    for device in ("cpu", "cuda"):
        inputs = leaves(z.to(device), codes.to(device))
        found = assignment_entropy(*inputs, temperature=0.1, metric=metric, weights=weights.to(device))
        results.append([value.cpu() for value in everything(found, inputs, [value.to(device) for value in upstream])])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_memory_does_not_grow_with_rows_times_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, size, depth = 3000, 6000, 4
    z, codes, weights = torch.randn(rows, depth), torch.randn(size, depth), torch.full((rows,), 1 / rows)
    with Watch() as watch:
        _forward(z, codes, weights, 0.01)
        _backward(torch.randn(rows), torch.randn(size), z, codes, weights, 0.01)
    bound = 4 * max(softmax_rows.BLOCK, softmax_rows.FEWEST_ROWS * size)
    assert watch.largest <= bound < 4 * rows * size / 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("metric", METRICS)
def test_compile_and_export(metric: str) -> None:
    z, codes, _ = example(torch.float32)

    class Entropy(torch.nn.Module):
        def forward(self, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
            found = assignment_entropy(z, codes, temperature=0.5, metric=metric)
            return found.per_sample, entropy(found.mean_probabilities)

    compiled = torch.compile(Entropy(), fullgraph=True, backend="aot_eager")
    for rows in (N, 17):
        ours, theirs = leaves(z[:rows], codes), leaves(z[:rows], codes)
        upstream = (torch.randn(rows), torch.ones(()))
        results = everything(compiled(*ours), ours, upstream), everything(Entropy()(*theirs), theirs, upstream)
        torch.testing.assert_close(*results)
    rows = torch.export.Dim("rows")
    exported = torch.export.export(Entropy(), (z, codes), dynamic_shapes=({0: rows}, None)).module()
    torch.testing.assert_close(exported(z[:9], codes), Entropy()(z[:9], codes))


def test_the_operators_are_registered_right() -> None:
    z, codes, weights = example()
    for rows in (N, 0):
        arguments = (*leaves(z[:rows], codes), weights[:rows], 0.5)
        torch.library.opcheck(torch.ops.vqkit.assignment_entropy.default, arguments)
    upstream = (torch.randn(N, dtype=z.dtype), torch.randn(K, dtype=z.dtype))
    torch.library.opcheck(torch.ops.vqkit.assignment_entropy_backward.default, (*upstream, z, codes, weights, 0.5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(5, 3)}, r"codes \(5, 3\)"),
        ({"metric": "cosine"}, "metric is 'cosine', expected 'dot' or 'euclidean'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"weights": torch.ones(5)}, r"weights has shape \(5,\) .* expected \(2,\)"),
        ({"weights": torch.ones(2).int()}, "weights has dtype torch.int32"),
        ({"weights": torch.ones(2, requires_grad=True)}, "weights has .* requires_grad=True, expected"),
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    arguments = {"z": torch.zeros(2, 4), "codes": torch.zeros(5, 4)} | changes
    with pytest.raises(ValueError, match=message):
        assignment_entropy(**arguments)


def test_weights_of_any_size() -> None:
    """Only their ratios count: a sum that overflows must not leave all rows out, nor one infinity poison them."""
    generator = torch.Generator().manual_seed(0)
    z, codes = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    expected = assignment_entropy(z, codes, weights=torch.tensor([1.0, 1.0, 0.5, 0.0]))
    for weights in ([3e38, 3e38, 1.5e38, 0.0], [2e-38, 2e-38, 1e-38, 0.0], [1.0, 1.0, 0.5, torch.inf]):
        found = assignment_entropy(z, codes, weights=torch.tensor(weights))
        torch.testing.assert_close(found.mean_probabilities, expected.mean_probabilities)
        torch.testing.assert_close(found.per_sample, expected.per_sample)
