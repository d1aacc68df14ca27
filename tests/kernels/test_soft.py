"""Operators of soft assignment in torch against their plain forms, and what must not disturb them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels import soft_rounding
from tests.kernels.graphs import Watch, few_rows, leaves, matmul_precision, traced, with_threads
from tests.kernels.soft_operators import OPERATORS, REGISTERED, TENSOR_CORES, Case, assert_right, case, everything
from tests.refusals import refused
from vqkit.kernels import assignment_entropy, entropy, index_backpropagation, naive, reinmax, softmax_rows

N, K, D = 50, 30, 6
LEFT_OUT = [3, 20]
each_operator = pytest.mark.parametrize("name", OPERATORS)


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 7)


@pytest.fixture(params=["torch", "triton"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where the torch engine runs, and where the fused kernels do."""
    if request.param == "torch":
        return torch.device("cpu")
    pytest.importorskip("triton")
    return request.getfixturevalue("several_parts")


def example(dtype: torch.dtype = torch.float64, rows: int = N, size: int = K, depth: int = D) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, depth, dtype=dtype), torch.randn(size, depth, dtype=dtype)


def example_on(device: torch.device, *sizes: int) -> tuple[Tensor, Tensor]:
    z, codes = example(torch.float32, *sizes)
    return z.to(device), codes.to(device)


def twice_rounded(tested: Case, z: Tensor, codes: Tensor) -> list[Tensor]:
    """How far results and gradients may be apart whose sums are taken in two orders."""
    factor = 2 * (TENSOR_CORES if z.is_cuda else 1)
    return [factor * bound for bound in tested.errors(*(tensor.double() for tensor in (z, codes, *tested.upstream)))]


@each_operator
@pytest.mark.parametrize("temperature", [30.0, 1.0, 0.1, 0.01])
def test_equals_the_plain_form(name: str, temperature: float) -> None:
    z, codes = example()
    tested = case(name, z, codes, temperature, LEFT_OUT)
    found, expected = (everything(call, leaves(z, codes), tested.upstream) for call in (tested.call, tested.plain))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


@each_operator
def test_float32_loses_no_more_than_its_roundings(name: str) -> None:
    z, codes = example(torch.float32)
    assert_right(case(name, z, codes, 0.1, LEFT_OUT), z, codes)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's, in the interpreter
@each_operator
def test_rows_that_are_left_out_disturb_nothing(name: str, device: torch.device) -> None:
    """They give 0 and get no gradient, whatever they hold and receive."""
    z, codes = example_on(device)
    tested = case(name, z, codes, 0.2, LEFT_OUT)
    expected = everything(tested.call, leaves(z, codes), tested.upstream)
    z[3], z[20, 1] = torch.nan, torch.inf
    tested.upstream[0][3] = torch.nan
    found = everything(tested.call, leaves(z, codes), tested.upstream)
    torch.testing.assert_close(found, expected)
    of_rows = [value for value in found if len(value) == N]
    assert len(of_rows) == 2 and all((value[LEFT_OUT] == 0).all() for value in of_rows)


@each_operator
def test_one_code_one_dimension_and_no_row(name: str, device: torch.device) -> None:
    for rows, size, depth in ((0, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1)):
        z, codes = example_on(device, rows, size, depth)
        tested = case(name, z, codes)
        *found, dz, dcodes = everything(tested.call, leaves(z, codes), tested.upstream)
        assert dz.shape == z.shape and dcodes.shape == codes.shape and len(found[0]) == rows
        assert all(value.isfinite().all() for value in (*found, dz, dcodes))
        if size == 1:  # no choice: nothing is to be gained by another z
            assert (dz == 0).all()
            assert not name.startswith("entropy") or ((found[0] == 0).all() and (found[1] == 1).all())


@pytest.mark.parametrize("name", REGISTERED)
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(name: str, precision: str) -> None:
    """Processors with bfloat16 units would round the inputs of a float32 product; so none may be formed."""
    z, codes = example(torch.float32)
    tested = case(name, z, codes, 0.1, LEFT_OUT)
    arguments = (*tested.upstream, z, codes, *tested.arguments)
    expected = tested.module._backward(*arguments)
    with matmul_precision(precision), Watch() as watch:
        found = tested.module._backward(*arguments)
        tested.module._forward(*arguments[len(tested.upstream) :])
    assert watch.products == {torch.float64}
    soft_rounding.assert_within(found, expected, twice_rounded(tested, z, codes)[-2:])
    assert found[0].dtype == torch.float32


@each_operator
def test_autocast_changes_nothing(name: str) -> None:
    z, codes = example(torch.float32)
    tested, results = case(name, z, codes, 0.5, LEFT_OUT), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(everything(tested.call, leaves(z, codes), tested.upstream))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@each_operator
def test_any_number_of_threads_agrees(name: str) -> None:
    z, codes = example(torch.float32)
    tested = case(name, z, codes)
    first, *others = with_threads((1, 2, 3), lambda: everything(tested.call, leaves(z, codes), tested.upstream))
    for result in others:
        soft_rounding.assert_within(result, first, twice_rounded(tested, z, codes))


@pytest.mark.gpu
@each_operator
def test_a_gpu_agrees(name: str) -> None:
    z, codes = (tensor.cuda() for tensor in example(torch.float32))
    tested = case(name, z, codes, 0.1, LEFT_OUT)
    found = everything(tested.call, leaves(z, codes), tested.upstream)
    exact = everything(tested.plain, leaves(z, codes, dtype=torch.float64), tested.upstream)
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("name", REGISTERED)
def test_memory_does_not_grow_with_rows_times_codes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    z, codes = example(torch.float32, 3000, 6000, 4)
    tested = case(name, z, codes)
    with Watch() as watch:
        tested.module._forward(z, codes, *tested.arguments)
        tested.module._backward(*tested.upstream, z, codes, *tested.arguments)
    bound = 4 * max(softmax_rows.BLOCK, softmax_rows.FEWEST_ROWS * len(codes))
    assert watch.largest <= bound < 4 * len(z) * len(codes) / 10


def entropies(metric: str, z: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    found = assignment_entropy(z, codes, temperature=0.5, metric=metric, weights=indices.to(z.dtype))
    return found.per_sample, entropy(found.mean_probabilities)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "function", [index_backpropagation, reinmax, partial(entropies, "dot"), partial(entropies, "euclidean")]
)
def test_compile_and_export(function: Callable) -> None:
    z, codes = example(torch.float32)
    indices, upstream = torch.randint(K, (N,)), torch.randn(N, D)
    compiled, exported = traced(function, (z, codes, indices), [0, 2])
    for rows in (N, 17):
        results = []
        for module in (compiled, function):
            inputs = leaves(z[:rows], codes)
            found = module(*inputs, indices[:rows])
            loss = found[0].sum() - found[1] if isinstance(found, tuple) else (found * upstream[:rows]).sum()
            results.append([found, torch.autograd.grad(loss, inputs)])
        torch.testing.assert_close(*results)
        torch.testing.assert_close(exported(z[:rows], codes, indices[:rows]), results[1][0])


@pytest.mark.parametrize("name", REGISTERED)
def test_the_operators_are_registered_right(name: str, device: torch.device) -> None:
    z, codes = example_on(device, 5, 3, 2)
    tested = case(name, z, codes)
    operators = torch.ops.vqkit
    torch.library.opcheck(getattr(operators, tested.operator).default, (*leaves(z, codes), *tested.arguments))
    backward = getattr(operators, f"{tested.operator}_backward").default
    torch.library.opcheck(backward, (*tested.upstream, z, codes, *tested.arguments))


@each_operator
def test_a_second_derivative_is_refused(name: str) -> None:
    z, codes = example()
    tested, inputs = case(name, z, codes), leaves(z, codes)
    (dz,) = torch.autograd.grad(tested.call(*inputs)[0].square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=f"vqkit::{tested.operator} has no second derivative"):
        dz.sum().backward()


@each_operator
@pytest.mark.parametrize(
    "dtypes",
    [
        pytest.param((torch.bfloat16,) * 2, marks=pytest.mark.slow),
        pytest.param((torch.float16,) * 2, marks=pytest.mark.slow),
        (torch.bfloat16, torch.float32),
    ],
)
def test_half_precision_is_taken_at_its_values(name: str, dtypes: tuple, device: torch.device) -> None:
    z, codes = (tensor.to(dtype) for tensor, dtype in zip(example_on(device, 20, 20, 4), dtypes, strict=True))
    tested = case(name, z, codes)
    tested.upstream[:] = [value.to(codes.dtype) for value in tested.upstream]
    found = everything(tested.call, leaves(z, codes), tested.upstream)
    expected = everything(tested.call, leaves(z, codes, dtype=torch.float32), tested.upstream)
    kinds = [*([torch.float32] * 2 if name.startswith("entropy") else [codes.dtype]), z.dtype, codes.dtype]
    assert [value.dtype for value in found] == kinds
    expected = [value.to(kind) for value, kind in zip(expected, kinds, strict=True)]
    torch.testing.assert_close(found[:-2], expected[:-2])
    for value, other in zip(found[-2:], expected[-2:], strict=True):  # two gradients are rounded, and their sum
        rounding = 2 * torch.finfo(value.dtype).eps
        torch.testing.assert_close(value, other, rtol=rounding, atol=rounding)


@each_operator
def test_strides_change_nothing_but_the_order_of_sums(name: str, device: torch.device) -> None:
    z, codes = example_on(device)
    tested = case(name, z, codes)
    given = [z.T.contiguous().T.requires_grad_(), codes.repeat(1, 2)[:, :D].detach().requires_grad_()]
    found = everything(tested.call, given, [value.repeat_interleave(2, 0)[::2] for value in tested.upstream])
    expected = everything(tested.call, leaves(z, codes), tested.upstream)
    soft_rounding.assert_within(found, expected, twice_rounded(tested, z, codes))


def chosen(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the largest logits, and a gradient to the codes that are chosen."""
    return (z @ codes.T).argmax(1), torch.randn_like(z)


def test_the_value_is_the_code_bit_for_bit() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        z, codes = example(dtype)
        indices = chosen(z, codes)[0]
        indices[LEFT_OUT] = -1
        found = index_backpropagation(z, codes, indices)
        assert torch.equal(found[indices >= 0], codes[indices[indices >= 0]])
        assert (found[indices < 0] == 0).all() and found.dtype == dtype
        assert torch.equal(index_backpropagation(z, codes, indices.int()), found)


def test_the_identities_of_the_paper() -> None:
    """dz is Cov_p[e] g, positive along g; the codes' gradients add up to the gradients of the rows."""
    z, codes = example()
    indices, gradient = chosen(z, codes)
    dz, dcodes = torch.autograd.grad(index_backpropagation(*(ours := leaves(z, codes)), indices), ours, gradient)
    for row in range(N):
        p = (codes @ z[row]).softmax(0)
        centred = codes - p @ codes
        covariance = centred.T @ (p[:, None] * centred)
        torch.testing.assert_close(dz[row], covariance @ gradient[row], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dcodes.sum(0), gradient.sum(0), rtol=1e-12, atol=1e-12)
    assert ((gradient * dz).sum(1) >= 0).all()
    assert (dcodes != 0).all()  # every code moves


def test_it_is_attention_over_the_codebook() -> None:
    """The gradient to z is that of scaled_dot_product_attention with the codebook as keys and values."""
    z, codes = example()
    indices, gradient = chosen(z, codes)
    ours, theirs = leaves(z, codes), leaves(z, codes)
    found = torch.autograd.grad(index_backpropagation(*ours, indices, temperature=0.5), ours, gradient)
    query, keys = theirs
    attended = F.scaled_dot_product_attention(query[None], keys[None], keys.detach()[None], scale=1 / 0.5)[0]
    expected = torch.autograd.grad(attended + keys[indices], theirs, gradient)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e12])
def test_saturated_and_flat_softmax(scale: float) -> None:
    z, codes = example(torch.float32)
    indices, gradient = chosen(z, codes)
    codes[7] = codes[6]  # a tie, also of the best
    z[0], indices[0] = 10 * codes[6], 6
    ours, theirs = leaves(scale * z, codes), leaves(scale * z, codes, dtype=torch.float64)
    found = torch.autograd.grad(index_backpropagation(*ours, indices), ours, gradient)
    reference = naive.index_backpropagation(*theirs, indices)
    expected = torch.autograd.grad(reference, theirs, gradient.double())
    assert all(value.isfinite().all() for value in found)
    errors = soft_rounding.index_backpropagation(indices, 1.0)
    bounds = errors(*(tensor.detach() for tensor in theirs), gradient.double())[1:]
    soft_rounding.assert_within(found, expected, bounds)


test_wrong_arguments_are_named = refused(
    ({"z": torch.zeros(2, 3, 4)}, r"z has shape \(2, 3, 4\)"),
    ({"z": torch.zeros(2, 4).int()}, "z has .* dtype torch.int32, expected"),
    ({"codes": torch.zeros(0, 4)}, r"codes \(0, 4\), expected .* K >= 1"),
    ({"codes": torch.zeros(5, 3)}, r"codes \(5, 3\)"),
    ({"codes": torch.zeros(5, 4, device="meta")}, "codes is on meta, expected cpu"),
    ({"temperature": 0.0}, "temperature is 0.0, expected a positive number"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"indices": torch.zeros(3, dtype=torch.int64)}, r"indices has shape \(3,\) .* expected \(2,\)"),
    ({"indices": torch.zeros(2)}, "indices has dtype torch.float32, expected integers"),
    ({"indices": torch.tensor([0, 5])}, "indices holds 5, expected values below 5"),
    by=lambda changes: index_backpropagation(
        **{
            "z": torch.zeros(2, 4),
            "codes": torch.zeros(5, 4),
            "indices": torch.zeros(2, dtype=torch.int64),
            "temperature": 1.0,
        }
        | changes
    ),
)
