"""Index backpropagation against its plain form, and what must not disturb it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels import soft_rounding
from tests.kernels.graphs import Watch, few_rows, leaves
from vqkit.kernels import index_backpropagation, naive, softmax_rows
from vqkit.kernels.index_backpropagation import _backward

N, K, D = 50, 30, 6


@pytest.fixture(autouse=True)
def several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    few_rows(monkeypatch, 7)


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    z, codes, gradient = torch.randn(N, D), torch.randn(K, D), torch.randn(N, D)
    indices = (z @ codes.T).argmax(1)
    indices[3], indices[20] = -1, -5
    return z.to(dtype), codes.to(dtype), indices, gradient.to(dtype)


def twice_rounded(z: Tensor, codes: Tensor, indices: Tensor, gradient: Tensor) -> list[Tensor]:
    """How far gradients at temperature 1 may be apart whose sums are taken in two orders."""
    errors = soft_rounding.index_backpropagation(indices, 1.0)
    return [2 * bound for bound in errors(z.double(), codes.double(), gradient.double())[1:]]


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01, 30.0])
def test_index_backpropagation_equals_the_plain_form(temperature: float) -> None:
    z, codes, indices, gradient = example()
    ours, theirs = leaves(z, codes), leaves(z, codes)
    found = index_backpropagation(*ours, indices, temperature=temperature)
    expected = naive.index_backpropagation(*theirs, indices, temperature=temperature)
    torch.testing.assert_close(found, expected)
    for ours_d, theirs_d in zip(
        torch.autograd.grad(found, ours, gradient), torch.autograd.grad(expected, theirs, gradient), strict=True
    ):
        torch.testing.assert_close(ours_d, theirs_d, rtol=1e-10, atol=1e-10)


def test_the_value_is_the_code_bit_for_bit() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        z, codes, indices, _ = example(dtype)
        found = index_backpropagation(z, codes, indices)
        assert torch.equal(found[indices >= 0], codes[indices[indices >= 0]])
        assert (found[indices < 0] == 0).all() and found.dtype == dtype


def test_the_identities_of_the_paper() -> None:
    """dz is Cov_p[e] g, positive along g; the codes' gradients add up to the gradients of the rows."""
    z, codes, indices, gradient = example()
    indices = indices.clamp(min=0)
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
    z, codes, indices, gradient = example()
    indices = indices.clamp(min=0)
    ours, theirs = leaves(z, codes), leaves(z, codes)
    found = torch.autograd.grad(index_backpropagation(*ours, indices, temperature=0.5), ours, gradient)
    query, keys = theirs
    attended = F.scaled_dot_product_attention(query[None], keys[None], keys.detach()[None], scale=1 / 0.5)[0]
    expected = torch.autograd.grad(attended + keys[indices], theirs, gradient)
    torch.testing.assert_close(found, expected)


def test_rows_that_are_left_out_disturb_nothing() -> None:
    z, codes, indices, gradient = example()
    kept = indices >= 0
    expected = torch.autograd.grad(
        index_backpropagation(*(ours := leaves(z[kept], codes)), indices[kept]), ours, gradient[kept]
    )
    z[~kept], gradient[~kept] = torch.nan, torch.inf
    dz, dcodes = torch.autograd.grad(index_backpropagation(*(ours := leaves(z, codes)), indices), ours, gradient)
    torch.testing.assert_close((dz[kept], dcodes), expected)
    assert (dz[~kept] == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e4, 1e12])
def test_saturated_and_flat_softmax(scale: float) -> None:
    z, codes, indices, gradient = example(torch.float32)
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


def test_one_code_one_dimension_and_no_row() -> None:
    for rows, size, depth in ((0, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1)):
        inputs = leaves(torch.randn(rows, depth), torch.randn(size, depth))
        indices = torch.zeros(rows, dtype=torch.int64)
        quantized = index_backpropagation(*inputs, indices)
        dz, dcodes = torch.autograd.grad(quantized.sum(), inputs)
        assert quantized.shape == dz.shape == (rows, depth) and dcodes.shape == (size, depth)
        assert dz.isfinite().all() and dcodes.isfinite().all()
        if size == 1:  # no choice: nothing is to be gained by another z
            assert (dz == 0).all()


def test_strides_and_mixed_dtypes() -> None:
    z, codes, indices, gradient = example(torch.float32)
    expected = torch.autograd.grad(index_backpropagation(*(a := leaves(z, codes)), indices), a, gradient)
    a = [z.T.contiguous().T.requires_grad_(), codes.repeat(1, 2)[:, :D].detach().requires_grad_()]
    found = torch.autograd.grad(index_backpropagation(*a, indices.int()), a, gradient.T.contiguous().T)
    soft_rounding.assert_within(found, expected, twice_rounded(z, codes, indices, gradient))
    a = [z.bfloat16().requires_grad_(), codes.clone().requires_grad_()]
    quantized = index_backpropagation(*a, indices)
    dz, dcodes = torch.autograd.grad(quantized, a, gradient)
    assert (quantized.dtype, dz.dtype, dcodes.dtype) == (torch.float32, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(precision: str) -> None:
    """Processors with bfloat16 units would round the inputs of a float32 product; so none may be formed."""
    z, codes, indices, gradient = example(torch.float32)
    arguments = (gradient, z, codes, indices, 0.1)
    expected = _backward(*arguments)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with Watch() as watch:
            found = _backward(*arguments)
        assert watch.products == {torch.float64}
    finally:
        torch.set_float32_matmul_precision(before)
    errors = soft_rounding.index_backpropagation(indices, 0.1)
    soft_rounding.assert_within(found, expected, errors(*(tensor.double() for tensor in (z, codes, gradient)))[1:])
    assert found[0].dtype == torch.float32


def test_autocast_changes_nothing() -> None:
    z, codes, indices, gradient = example(torch.float32)
    results = []
    for enabled in (False, True):
        inputs = leaves(z, codes)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            quantized = index_backpropagation(*inputs, indices)
            gradients = torch.autograd.grad(quantized, inputs, gradient)
        results.append((quantized, *gradients))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_any_number_of_threads_agrees() -> None:
    z, codes, indices, gradient = example(torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            inputs = leaves(z, codes)
            results.append(torch.autograd.grad(index_backpropagation(*inputs, indices), inputs, gradient))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        soft_rounding.assert_within(result, results[0], twice_rounded(z, codes, indices, gradient))


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    z, codes, indices, gradient = example(torch.float32)
    results = []
    for device in ("cpu", "cuda"):
        inputs = leaves(z.to(device), codes.to(device))
        found = index_backpropagation(*inputs, indices.to(device))
        results.append([found.cpu(), *(part.cpu() for part in torch.autograd.grad(found, inputs, gradient.to(device)))])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


def test_memory_does_not_grow_with_rows_times_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, size, depth = 3000, 6000, 4
    z, codes, gradient = torch.randn(rows, depth), torch.randn(size, depth), torch.randn(rows, depth)
    indices = torch.randint(size, (rows,))
    with Watch() as watch:
        _backward(gradient, z, codes, indices, 1.0)
    bound = 4 * max(softmax_rows.BLOCK, softmax_rows.FEWEST_ROWS * size)
    assert watch.largest <= bound < 4 * rows * size / 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_and_export() -> None:
    z, codes, indices, gradient = example(torch.float32)

    class Soft(torch.nn.Module):
        def forward(self, z: Tensor, codes: Tensor, indices: Tensor) -> Tensor:
            return index_backpropagation(2 * z, codes, indices)

    for rows in (N, 17):
        inputs, others = leaves(z[:rows], codes), leaves(z[:rows], codes)
        compiled = torch.compile(Soft(), fullgraph=True, backend="aot_eager")
        for module in (Soft(), compiled):
            expected = Soft()(*inputs, indices[:rows])
            found = module(*others, indices[:rows])
            upstream = gradient[:rows]
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(
                torch.autograd.grad(found, others, upstream), torch.autograd.grad(expected, inputs, upstream)
            )
    rows = torch.export.Dim("rows")
    exported = torch.export.export(Soft(), (z, codes, indices), dynamic_shapes=({0: rows}, None, {0: rows})).module()
    torch.testing.assert_close(exported(z[:9], codes, indices[:9]), Soft()(z[:9], codes, indices[:9]))


def test_the_operators_are_registered_right() -> None:
    z, codes, indices, gradient = example()
    torch.library.opcheck(torch.ops.vqkit.index_backpropagation.default, (*leaves(z, codes), indices, 0.5))
    torch.library.opcheck(torch.ops.vqkit.index_backpropagation_backward.default, (gradient, z, codes, indices, 0.5))


def test_a_second_derivative_is_refused() -> None:
    z, codes, indices, _ = example()
    inputs = leaves(z, codes)
    (dz,) = torch.autograd.grad(index_backpropagation(*inputs, indices).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="vqkit::index_backpropagation has no second derivative"):
        dz.sum().backward()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
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
    ],
)
def test_wrong_arguments_are_named(changes: dict, message: str) -> None:
    arguments = {"z": torch.zeros(2, 4), "codes": torch.zeros(5, 4), "indices": torch.zeros(2, dtype=torch.int64)}
    arguments |= {"temperature": 1.0} | changes
    with pytest.raises(ValueError, match=message):
        index_backpropagation(**arguments)
