"""Soft assignment by the fused kernels: the values and gradients of the plain forms in float64, to within the rounding
of the kernels' form."""

import pytest
import torch
from torch import Tensor

from tests.few import few
from tests.kernels import soft_rounding
from tests.kernels.graphs import leaves
from tests.kernels.soft_operators import OPERATORS, REGISTERED, assert_right, case, everything
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


def example(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows, and codes with an offset."""
    number, size, depth = shape
    z, codes = torch.randn(number, depth), torch.randn(size, depth) + 3
    return z.to(device) / depth**0.5, codes.to(device)


def test_the_parts_are_all_there_is(gpu_path: torch.device) -> None:
    from vqkit.kernels.gpu.tiles import parts_of

    for programs in range(1, 12):
        for tiles in range(1, 12):
            parts, per_part = parts_of(programs, tiles, gpu_path)
            assert (parts - 1) * per_part < tiles <= parts * per_part


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[0]))
def test_equals_the_plain_form(
    shape: tuple[int, int, int], temperature: float, name: str, gpu_path: torch.device
) -> None:
    z, codes = example(shape, gpu_path)
    codes = codes - 3 if name == "entropy, euclidean" else codes
    assert_right(case(name, z, codes, temperature, [3, 11]), z, codes, TENSOR_CORES)


def test_index_backpropagation_with_tensor_memory(monkeypatch: pytest.MonkeyPatch, gpu_path: torch.device) -> None:
    """The other loop over the depth, for GPUs that have it, in the interpreter."""
    if gpu_path.type == "cuda":
        pytest.skip("a GPU has one of the two loops")
    monkeypatch.setattr("vqkit.kernels.gpu.soft_passes.has_tensor_memory", lambda device: True)
    test_equals_the_plain_form((20, 20, 40), 0.5, "index_backpropagation", gpu_path)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", few([0.0, 10.0, 1000.0], 1000.0))
def test_temperature_one_hundredth(offset: float, metric: str, gpu_path: torch.device) -> None:
    """As `test_entropy.py` asks of the torch engine: what is lost is the rounding of the logits, a hundred times."""
    z, codes = 0.14 * torch.randn(20, 32), 0.14 * torch.randn(40, 32) + offset
    z, codes = (z + offset if metric == "euclidean" else z).to(gpu_path), codes.to(gpu_path)
    assert_right(case(f"entropy, {metric}", z, codes, 0.01), z, codes, TENSOR_CORES)


def log_sum_exp_gradients(z: Tensor, codes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of the passes without a term: g p for each row, in which nothing cancels."""
    from vqkit.kernels.gpu import soft

    problem = soft._prepare(z, codes, 1.0, torch.ones_like(z[:, 0], dtype=torch.bool))
    sums = soft.row_sums(problem, soft.Terms())
    dz, dcodes = soft.gradients(problem, sums, soft.Terms(), -soft._padded(gradient, problem))
    return dz.addcmul_(gradient[:, None], problem.mean), dcodes


def test_gradients_of_any_size_keep_their_digits(gpu_path: torch.device) -> None:
    """Float16 halves hold 40 powers of two; probabilities, upstream gradients and rows have more."""
    z, codes = example((20, 20, 4), gpu_path)
    z, codes, gradient = 8 * z, codes - 3, torch.randn(20, device=gpu_path)
    z, gradient = z * torch.logspace(-6, 0, 20, device=gpu_path)[:, None], gradient * 1e-20
    codes[4] = -30 * z[19]  # probability e^-500 for that row and its kin, 1 / 20 for the short ones
    codes[17:19] = 20 * codes[17:19]
    wide = leaves(z, codes, dtype=torch.float64)
    found = log_sum_exp_gradients(z, codes, gradient)
    upstream = gradient.double()
    expected = torch.autograd.grad(naive.logits(*wide, 1.0).logsumexp(1), wide, upstream)
    of = soft_rounding.softmax(*(tensor.detach() for tensor in wide), 1.0)
    rows, to_codes = soft_rounding.gradients(of, nothing := torch.zeros_like(of.p), nothing, constant=upstream)
    # The mean code, a sum in float32, is added to the rows' gradients.
    added = (len(codes) + soft_rounding.FEW) * soft_rounding.UNIT * upstream.abs()[:, None] * codes.abs().mean(0)
    rows = rows + added + soft_rounding.UNIT * expected[0].abs()
    soft_rounding.assert_within(found, expected, [TENSOR_CORES * rows, TENSOR_CORES * to_codes])


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("name", REGISTERED)
def test_rows_that_are_left_out_disturb_nothing(name: str, gpu_path: torch.device) -> None:
    z, codes = example((20, 20, 4), gpu_path)
    left_out = [3, 10, 17]
    tested = case(name, z, codes, 0.2, left_out)
    expected = everything(tested.call, leaves(z, codes), tested.upstream)
    z[left_out], tested.upstream[0][left_out] = torch.nan, torch.nan
    found = everything(tested.call, leaves(z, codes), tested.upstream)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert (found[0][left_out] == 0).all() and (found[-2][left_out] == 0).all()


@pytest.mark.parametrize("name", REGISTERED)
def test_few_rows_few_codes_one_dimension(name: str, gpu_path: torch.device) -> None:
    for shape in ((0, 4, 3), (5, 1, 3), (5, 4, 1), (1, 1, 1)):
        z, codes = example(shape, gpu_path)
        tested = case(name, z, codes)
        *found, dz, dcodes = everything(tested.call, leaves(z, codes), tested.upstream)
        assert len(found[0]) == shape[0] and dz.shape == z.shape and dcodes.shape == codes.shape
        assert dcodes.isfinite().all()
        if shape[1] == 1:  # no choice: nothing is to be gained by another z
            assert (dz == 0).all()
            assert not name.startswith("entropy") or ((found[0] == 0).all() and (found[1] == 1).all())
        if shape[0] == 0:
            assert (dcodes == 0).all() and all((value == 0).all() for value in found)


def test_nothing_to_choose_from(gpu_path: torch.device) -> None:
    inputs = leaves(*example((20, 20, 4), gpu_path))
    found = assignment_entropy(*inputs, weights=torch.zeros(20, device=gpu_path))
    assert (found.per_sample == 0).all() and (found.mean_probabilities == 0).all()
    gradients = torch.autograd.grad([*found], inputs, [torch.ones_like(value) for value in found])
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["index_backpropagation", "entropy, dot"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_taken_at_their_values(dtype: torch.dtype, name: str, gpu_path: torch.device) -> None:
    z, codes = (tensor.to(dtype) for tensor in example((20, 20, 4), gpu_path))
    tested = case(name, z, codes, 0.1)
    tested.upstream[:] = [value.to(dtype) for value in tested.upstream]
    found, expected = (
        everything(tested.call, leaves(z, codes, dtype=kind), tested.upstream) for kind in (dtype, torch.float32)
    )
    kinds = [*([torch.float32] * 2 if name.startswith("entropy") else [dtype]), dtype, dtype]
    assert [value.dtype for value in found] == kinds
    expected = [value.to(kind) for value, kind in zip(expected, kinds, strict=True)]
    torch.testing.assert_close(found[:-2], expected[:-2])
    rounding = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found[-2:], expected[-2:], rtol=rounding, atol=rounding)


def test_strides_and_repetition(gpu_path: torch.device) -> None:
    z, codes = example((20, 20, 4), gpu_path)
    tested = case("index_backpropagation", z, codes)
    expected = everything(tested.call, leaves(z, codes), tested.upstream)
    given = [z.T.contiguous().T.requires_grad_(), codes.repeat(1, 2)[:, :4].detach().requires_grad_()]
    found = everything(tested.call, given, [value.T.contiguous().T for value in tested.upstream])
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_every_operator_takes_the_kernels(gpu_path: torch.device, launched: list[str]) -> None:
    inputs = leaves(*example((20, 20, 4), gpu_path))
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


@pytest.mark.parametrize("name", few(REGISTERED, "reinmax"))
@pytest.mark.parametrize("backward", [False, True])
def test_the_operators_are_registered_right(name: str, backward: bool, gpu_path: torch.device) -> None:
    z, codes = example((5, 3, 2), gpu_path)
    tested = case(name, z, codes)
    operator = getattr(torch.ops.vqkit, tested.operator + "_backward" * backward).default
    arguments = (*tested.upstream, z, codes) if backward else leaves(z, codes)
    torch.library.opcheck(operator, (*arguments, *tested.arguments))
