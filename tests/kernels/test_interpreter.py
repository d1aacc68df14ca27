"""Triton's interpreter: its known fault, the way around it, and that every kernel runs in it."""

import pytest
import torch

from tests.kernels.machine_code import calls, kernel_names, launching
from tests.kernels.stand_ins import interpreted

triton = pytest.importorskip("triton")
tl = triton.language

pytestmark = [
    pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="kernels are compiled where there is a GPU"),
    # Triton 3.6 makes numbers of NumPy arrays of one element.
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning"),
]


@triton.jit
def plain_product(a_ptr, b_ptr, out_ptr):
    place = 16 * tl.arange(0, 16)[:, None] + tl.arange(0, 16)[None, :]
    tl.store(out_ptr + place, tl.dot(tl.load(a_ptr + place), tl.load(b_ptr + place)))


@triton.jit
def own_product(a_ptr, b_ptr, out_ptr, product: tl.constexpr):
    place = 16 * tl.arange(0, 16)[:, None] + tl.arange(0, 16)[None, :]
    start = tl.full([16, 16], 2.0, tl.float32)
    tl.store(out_ptr + place, product(tl.load(a_ptr + place), tl.load(b_ptr + place), start))


def numbers(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Small whole numbers: their products and sums are exact in every dtype here."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 9, (16, 16), generator=generator) for _ in range(2))
    return a.to(dtype), b.to(dtype)


def test_the_fault_of_the_interpreter_is_still_there() -> None:
    a, b = numbers(torch.bfloat16)
    found = torch.zeros(16, 16)
    plain_product[(1,)](a, b, found)
    assert not torch.equal(found, a.float() @ b.float()), (
        f"Triton {triton.__version__} multiplies bfloat16 right in its interpreter: the conversion in "
        "vqkit.kernels.gpu.split_operands.product can go, and this test with it"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_product(dtype: torch.dtype) -> None:
    from vqkit.kernels.gpu.split_operands import product

    a, b = numbers(dtype)
    found = torch.zeros(16, 16)
    own_product[(1,)](a, b, found, product)
    assert torch.equal(found, a.float() @ b.float() + 2)


def test_every_kernel_runs() -> None:
    """The kernels that are compiled for the gates on machine code are those that run here, and no others."""
    launched: set[str] = set()
    with interpreted(), launching(lambda name, launch: (launched.add(name), launch())):
        for call in calls(5, 7, 3):
            call.call()
    assert launched == kernel_names()
