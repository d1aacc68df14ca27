"""Soft assignment by the fused kernels: the values and gradients of the plain forms in float64, to within the rounding
of the kernels' form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.few import few
from tests.kernels import soft_rounding
from tests.kernels.graphs import leaves
from vqkit.kernels import assignment_entropy, gpu, index_backpropagation, naive, reinmax

pytest.importorskip("triton")

# Several tiles of rows and of codes, parts of both, chunks of the depth; padding of all three
SHAPES = [(300, 700, 6), (130, 520, 300)] if torch.cuda.is_available() else [(50, 40, 6), (20, 50, 20)]
TENSOR_CORES = 10.0 if torch.cuda.is_available() else 1.0  # their sums truncate, by how much no vendor states
METRICS = ("dot", "euclidean")


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program streams is split into parts at the sizes of these tests; on a GPU it is anyway."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(gpu, "multiprocessors", lambda device: 4)


def example(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, codes with an offset, and gradients to results of the rows' shape."""
    number, size, depth = shape
    z, codes, gradient = torch.randn(number, depth), torch.randn(size, depth) + 3, torch.randn(number, depth)
    return z.to(device) / depth**0.5, codes.to(device), gradient.to(device)


def assert_equal(
    ours: Callable[..., tuple[Tensor, ...]],
    theirs: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    upstream: list[Tensor],
    errors: Callable[..., list[Tensor]],
) -> None:
    """Values and gradients, each entry to within its bound (`soft_rounding.py`), those expected in float64."""
    given, wide = leaves(*inputs), leaves(*inputs, dtype=torch.float64)
    found, expected = ours(*given), theirs(*wide)
    found = (*found, *torch.autograd.grad(found, given, upstream))
    expected = (*expected, *torch.autograd.grad(expected, wide, [value.double() for value in upstream]))
    bounds = errors(*(tensor.detach() for tensor in wide), *(value.double() for value in upstream))
    assert all(value.dtype == torch.float32 for value in found)
    soft_rounding.assert_within(found, expected, [TENSOR_CORES * bound for bound in bounds])


def test_the_parts_are_all_there_is(gpu_path: torch.device) -> None:
    from vqkit.kernels.gpu.tiles import parts_of

    for programs in range(1, 12):
        for tiles in range(1, 12):
            parts, per_part = parts_of(programs, tiles, gpu_path)
            assert (parts - 1) * per_part < tiles <= parts * per_part


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[0]))
def test_index_backpropagation(shape: tuple[int, int, int], temperature: float, gpu_path: torch.device) -> None:
    z, codes, gradient = example(shape, gpu_path)
    indices = torch.randint(shape[1], shape[:1], device=gpu_path)
    indices[3], indices[11] = -1, -5
    assert_equal(
        lambda z, codes: (index_backpropagation(z, codes, indices, temperature=temperature),),
        lambda z, codes: (naive.index_backpropagation(z, codes, indices, temperature=temperature),),
        [z, codes],
        [gradient],
        soft_rounding.index_backpropagation(indices, temperature),
    )


def test_index_backpropagation_with_tensor_memory(monkeypatch: pytest.MonkeyPatch, gpu_path: torch.device) -> None:
    """The other loop over the depth, for GPUs that have it, in the interpreter."""
    if gpu_path.type == "cuda":
        pytest.skip("a GPU has one of the two loops")
    monkeypatch.setattr("vqkit.kernels.gpu.soft_passes.has_tensor_memory", lambda device: True)
    test_index_backpropagation((20, 20, 40), 0.5, gpu_path)


@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[0]))
def test_reinmax(shape: tuple[int, int, int], gpu_path: torch.device) -> None:
    z, codes, gradient = example(shape, gpu_path)
    indices = torch.randint(shape[1], shape[:1], device=gpu_path)
    indices[3], indices[11] = -1, -5
    assert_equal(
        lambda z, codes: (reinmax(z, codes, indices),),
        lambda z, codes: (naive.reinmax(z, codes, indices),),
        [z, codes],
        [gradient],
        soft_rounding.reinmax(indices),
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[0]))
def test_entropies(shape: tuple[int, int, int], temperature: float, metric: str, gpu_path: torch.device) -> None:
    z, codes, _ = example(shape, gpu_path)
    codes = codes - 3 if metric == "euclidean" else codes
    weights = torch.rand(shape[0], device=gpu_path)
    weights[[2, 13]] = 0
    assert_equal(
        lambda z, codes: assignment_entropy(z, codes, temperature=temperature, metric=metric, weights=weights),
        lambda z, codes: naive.assignment_entropy(
            z, codes, temperature=temperature, metric=metric, weights=weights.double()
        ),
        [z, codes],
        [torch.randn(shape[0], device=gpu_path), torch.randn(shape[1], device=gpu_path)],
        soft_rounding.assignment_entropy(temperature, metric, weights),
    )


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", few([0.0, 10.0, 1000.0], 1000.0))
def test_temperature_one_hundredth(offset: float, metric: str, gpu_path: torch.device) -> None:
    """As `test_entropy.py` asks of the torch engine: what is lost is the rounding of the logits, a hundred times."""
    z, codes = 0.14 * torch.randn(20, 32), 0.14 * torch.randn(40, 32) + offset
    z = z + offset if metric == "euclidean" else z
    weights = torch.ones(20, dtype=torch.float64, device=gpu_path)
    assert_equal(
        lambda z, codes: assignment_entropy(z, codes, metric=metric),
        lambda z, codes: naive.assignment_entropy(z, codes, metric=metric, weights=weights),
        [z.to(gpu_path), codes.to(gpu_path)],
        [torch.randn(20, device=gpu_path), torch.randn(40, device=gpu_path)],
        soft_rounding.assignment_entropy(0.01, metric, weights),
    )


def log_sum_exp_gradients(z: Tensor, codes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of the passes without a term: g p for each row, in which nothing cancels."""
    from vqkit.kernels.gpu import soft

    problem = soft._prepare(z, codes, 1.0, torch.ones_like(z[:, 0], dtype=torch.bool))
    sums = soft.row_sums(problem, soft.Terms())
    dz, dcodes = soft.gradients(problem, sums, soft.Terms(), -soft._padded(gradient, problem))
    return dz.addcmul_(gradient[:, None], problem.mean), dcodes


def test_gradients_of_any_size_keep_their_digits(gpu_path: torch.device) -> None:
    """Float16 halves hold 40 powers of two; probabilities, upstream gradients and rows have more."""
    z, codes, gradient = example((20, 20, 4), gpu_path)
    z, codes = 8 * z, codes - 3
    z, gradient = z * torch.logspace(-6, 0, 20, device=gpu_path)[:, None], gradient * 1e-20
    codes[4] = -30 * z[19]  # probability e^-500 for that row and its kin, 1 / 20 for the short ones
    codes[17:19] = 20 * codes[17:19]
    wide = leaves(z, codes, dtype=torch.float64)
    found = log_sum_exp_gradients(z, codes, gradient[:, 0])
    upstream = gradient[:, 0].double()
    expected = torch.autograd.grad(naive.logits(*wide, 1.0).logsumexp(1), wide, upstream)
    of = soft_rounding.softmax(*(tensor.detach() for tensor in wide), 1.0)
    rows, to_codes = soft_rounding.gradients(of, nothing := torch.zeros_like(of.p), nothing, constant=upstream)
    # The mean code, a sum in float32, is added to the rows' gradients.
    added = (len(codes) + soft_rounding.FEW) * soft_rounding.UNIT * upstream.abs()[:, None] * codes.abs().mean(0)
    rows = rows + added + soft_rounding.UNIT * expected[0].abs()
    soft_rounding.assert_within(found, expected, [TENSOR_CORES * rows, TENSOR_CORES * to_codes])


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's, in the interpreter
def test_rows_that_are_left_out_disturb_nothing(gpu_path: torch.device) -> None:
    z, codes, gradient = example((20, 20, 4), gpu_path)
    kept = torch.arange(20, device=gpu_path) % 7 != 3
    indices = torch.where(kept, 5, -1)
    spoilt, spoilt_gradient = z.clone(), gradient.clone()
    spoilt[~kept], spoilt_gradient[~kept] = torch.nan, torch.nan

    def everything(z: Tensor, gradient: Tensor, indices: Tensor, kept: Tensor) -> list[Tensor]:
        inputs = leaves(z, codes)
        entropies = assignment_entropy(*inputs, temperature=0.2, weights=kept.float())
        results = index_backpropagation(*inputs, indices), *entropies, reinmax(*inputs, indices)
        upstream = [gradient, gradient[:, 0], torch.ones_like(codes[:, 0]).cumsum(0), gradient]
        dz, dcodes = torch.autograd.grad(results, inputs, upstream)
        assert all((result[~kept] == 0).all() for result in (results[0], results[1], results[3], dz))
        return [results[0][kept], results[1][kept], results[2], results[3][kept], dz[kept], dcodes]

    found = everything(spoilt, spoilt_gradient, indices, kept)
    everyone = torch.ones_like(kept[kept])
    torch.testing.assert_close(found, everything(z[kept], gradient[kept], indices[kept], everyone))


def test_few_rows_few_codes_one_dimension(gpu_path: torch.device) -> None:
    for rows, size, depth in ((0, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1)):
        inputs = leaves(torch.randn(rows, depth, device=gpu_path), torch.randn(size, depth, device=gpu_path))
        indices = torch.zeros(rows, dtype=torch.int64, device=gpu_path)
        found = assignment_entropy(*inputs)
        quantized, drawn = index_backpropagation(*inputs, indices), reinmax(*inputs, indices)
        assert quantized.shape == drawn.shape == (rows, depth) and found.per_sample.shape == (rows,)
        dz, dcodes = torch.autograd.grad(quantized.sum() + drawn.sum(), inputs)
        assert dz.shape == (rows, depth) and dcodes.shape == (size, depth) and dcodes.isfinite().all()
        if size == 1:  # no choice: nothing is to be gained by another z
            assert (dz == 0).all()
            assert (found.per_sample == 0).all() and (found.mean_probabilities == 1).all()
        if rows == 0:
            assert (dcodes == 0).all() and (found.mean_probabilities == 0).all()


def test_nothing_to_choose_from(gpu_path: torch.device) -> None:
    inputs = leaves(*example((20, 20, 4), gpu_path)[:2])
    found = assignment_entropy(*inputs, weights=torch.zeros(20, device=gpu_path))
    assert (found.per_sample == 0).all() and (found.mean_probabilities == 0).all()
    gradients = torch.autograd.grad([*found], inputs, [torch.ones_like(value) for value in found])
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_taken_at_their_values(dtype: torch.dtype, gpu_path: torch.device) -> None:
    z, codes, gradient = (tensor.to(dtype) for tensor in example((20, 20, 4), gpu_path))
    indices = torch.arange(20, device=gpu_path)
    results = []
    for kind in (dtype, torch.float32):
        inputs = leaves(z, codes, dtype=kind)
        values = index_backpropagation(*inputs, indices), *assignment_entropy(*inputs, temperature=0.1)
        upstream = [gradient.to(kind), gradient[:, 0].float(), gradient[:, 1].float()]
        results.append([*values, *torch.autograd.grad(values, inputs, upstream)])
    kinds = [dtype, torch.float32, torch.float32, dtype, dtype]
    assert [value.dtype for value in results[0]] == kinds
    expected = [value.to(kind) for value, kind in zip(results[1], kinds, strict=True)]
    torch.testing.assert_close(results[0][:3], expected[:3])
    rounding = 2 * torch.finfo(dtype).eps  # of each of the two gradients, and of their sum
    torch.testing.assert_close(results[0][3:], expected[3:], rtol=rounding, atol=rounding)


def test_strides_and_repetition(gpu_path: torch.device) -> None:
    z, codes, gradient = example((20, 20, 4), gpu_path)
    indices = torch.arange(20, device=gpu_path)
    expected = torch.autograd.grad(index_backpropagation(*(a := leaves(z, codes)), indices), a, gradient)
    a = [z.T.contiguous().T.requires_grad_(), codes.repeat(1, 2)[:, :4].detach().requires_grad_()]
    found = torch.autograd.grad(index_backpropagation(*a, indices.int()), a, gradient.T.contiguous().T)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_every_operator_takes_the_kernels(gpu_path: torch.device, launched: list[str]) -> None:
    inputs = leaves(*example((20, 20, 4), gpu_path)[:2])
    found = assignment_entropy(*inputs)
    indices = torch.zeros(20, dtype=torch.int64, device=gpu_path)
    quantized, drawn = index_backpropagation(*inputs, indices), reinmax(*inputs, indices)
    assert launched == ["row_sums_kernel", "code_sums_kernel"]
    for result in (found.per_sample, quantized, drawn):
        launched.clear()
        torch.autograd.grad(result.sum(), inputs, retain_graph=True)
        assert launched == ["row_sums_kernel", "gradient_kernel", "gradient_kernel"]
    launched.clear()
    assignment_entropy(*(tensor.double() for tensor in inputs))
    assignment_entropy(*inputs, impl="torch")
    assert not launched


@pytest.mark.parametrize("name", few(["assignment_entropy", "index_backpropagation", "reinmax"], "reinmax"))
@pytest.mark.parametrize("backward", [False, True])
def test_the_operators_are_registered_right(name: str, backward: bool, gpu_path: torch.device) -> None:
    z, codes, gradient = example((5, 3, 2), gpu_path)
    weights, indices = torch.full((5,), 0.2, device=gpu_path), torch.arange(5, device=gpu_path) % 3
    last = {
        "assignment_entropy": (weights, 0.5),
        "index_backpropagation": (indices, 0.5),
        "reinmax": (indices,),
    }
    upstream = {
        "assignment_entropy": (gradient[:, 0], codes[:, 0]),
        "index_backpropagation": (gradient,),
        "reinmax": (gradient,),
    }
    arguments = (*upstream[name], z, codes) if backward else leaves(z, codes)
    operator = getattr(torch.ops.vqkit, name + "_backward" * backward).default
    torch.library.opcheck(operator, (*arguments, *last[name]))
