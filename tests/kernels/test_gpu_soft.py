"""Soft assignment by the fused kernels: the values and gradients of the plain forms in float64, to within the rounding
of the kernels' form. `test_soft.py` has what must not disturb them."""

import pytest
import torch
from torch import Tensor

from tests.few import few
from tests.kernels import soft_rounding
from tests.kernels.graphs import leaves
from tests.kernels.soft_operators import OPERATORS, TENSOR_CORES, assert_right, case
from vqkit.kernels import assignment_entropy, index_backpropagation, naive, reinmax

pytest.importorskip("triton")

# Several tiles of rows and of codes, parts of both, chunks of the depth; padding of all three
SHAPES = [(300, 700, 6), (130, 520, 300)] if torch.cuda.is_available() else [(50, 40, 6), (20, 50, 20)]
METRICS = ("dot", "euclidean")


def example(shape: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows, and codes with an offset."""
    number, size, depth = shape
    z, codes = torch.randn(number, depth), torch.randn(size, depth) + 3
    return z.to(device) / depth**0.5, codes.to(device)


def test_the_parts_are_all_there_is(several_parts: torch.device) -> None:
    from vqkit.kernels.gpu.tiles import parts_of

    for programs in range(1, 12):
        for tiles in range(1, 12):
            parts, per_part = parts_of(programs, tiles, several_parts)
            assert (parts - 1) * per_part < tiles <= parts * per_part


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("temperature", few([1.0, 0.1], 0.1))
@pytest.mark.parametrize("shape", few(SHAPES, SHAPES[0]))
def test_equals_the_plain_form(
    shape: tuple[int, int, int], temperature: float, name: str, several_parts: torch.device
) -> None:
    z, codes = example(shape, several_parts)
    codes = codes - 3 if name == "entropy, euclidean" else codes
    assert_right(case(name, z, codes, temperature, [3, 11]), z, codes)


def test_index_backpropagation_with_tensor_memory(monkeypatch: pytest.MonkeyPatch, several_parts: torch.device) -> None:
    """The other loop over the depth, for GPUs that have it, in the interpreter."""
    if several_parts.type == "cuda":
        pytest.skip("a GPU has one of the two loops")
    monkeypatch.setattr("vqkit.kernels.gpu.soft_passes.has_tensor_memory", lambda device: True)
    test_equals_the_plain_form((20, 20, 40), 0.5, "index_backpropagation", several_parts)


@pytest.mark.slow
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("offset", few([0.0, 10.0, 1000.0], 1000.0))
def test_temperature_one_hundredth(offset: float, metric: str, several_parts: torch.device) -> None:
    """As `test_entropy.py` asks of the torch engine: what is lost is the rounding of the logits, a hundred times."""
    z, codes = 0.14 * torch.randn(20, 32), 0.14 * torch.randn(40, 32) + offset
    z, codes = (z + offset if metric == "euclidean" else z).to(several_parts), codes.to(several_parts)
    assert_right(case(f"entropy, {metric}", z, codes, 0.01), z, codes)


def log_sum_exp_gradients(z: Tensor, codes: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of the passes without a term: g p for each row, in which nothing cancels."""
    from vqkit.kernels.gpu import soft

    problem = soft._prepare(z, codes, 1.0, torch.ones_like(z[:, 0], dtype=torch.bool))
    sums = soft.row_sums(problem, soft.Terms())
    dz, dcodes = soft.gradients(problem, sums, soft.Terms(), -soft._zero_padded(gradient, problem))
    return dz.addcmul_(gradient[:, None], problem.mean), dcodes


def test_gradients_of_any_size_keep_their_digits(several_parts: torch.device) -> None:
    """Float16 halves hold 40 powers of two; probabilities, upstream gradients and rows have more."""
    z, codes = example((20, 20, 4), several_parts)
    z, codes, gradient = 8 * z, codes - 3, torch.randn(20, device=several_parts)
    z, gradient = z * torch.logspace(-6, 0, 20, device=several_parts)[:, None], gradient * 1e-20
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


def test_nothing_to_choose_from(several_parts: torch.device) -> None:
    inputs = leaves(*example((20, 20, 4), several_parts))
    found = assignment_entropy(*inputs, weights=torch.zeros(20, device=several_parts))
    assert (found.per_sample == 0).all() and (found.mean_probabilities == 0).all()
    gradients = torch.autograd.grad([*found], inputs, [torch.ones_like(value) for value in found])
    assert all((gradient == 0).all() for gradient in gradients)


def test_every_operator_takes_the_kernels(several_parts: torch.device, launched: list[str]) -> None:
    inputs = leaves(*example((20, 20, 4), several_parts))
    found = assignment_entropy(*inputs)
    indices = torch.zeros(20, dtype=torch.int64, device=several_parts)
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
