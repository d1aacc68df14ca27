"""Autocast or a lowered matmul precision changes which code is nearest: tokens differ between machines.

Seen in: SimVQ, IBQ, LlamaGen, FVQ, vqtorch (read: all search inside autocast; measured: 1 to 10
% wrong codes in bfloat16), sglang-omni#774, transformers#35166.
Avoided since 0.1.0: the search leaves autocast, and forms its products in float64 where
`torch.set_float32_matmul_precision` is not "highest".
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.graphs import matmul_precision
from vqkit.kernels import nearest
from vqkit.kernels.torch_search.search import nearest_indices


def centred(x: Tensor, codes: Tensor) -> Tensor:
    x, codes = x - codes.mean(0), codes - codes.mean(0)
    return (0.5 * codes.square().sum(1) - x @ codes.T).argmin(1)


def centred_outside_autocast(x: Tensor, codes: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return centred(x, codes)


class RoundedProducts(TorchDispatchMode):
    """What "medium" does on a processor with bfloat16 units: the operands of a float32 product are rounded."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.vqkit.nearest.default:
            with self:
                return nearest_indices(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            args = tuple(
                arg.bfloat16().float() if isinstance(arg, Tensor) and arg.dtype == torch.float32 else arg
                for arg in args
            )
        return func(*args, **(kwargs or {}))


def data() -> tuple[Tensor, Tensor, Tensor]:
    x, codes = torch.randn(1500, 16), torch.randn(300, 16)
    return x, codes, torch.stack([(row - codes.double()).square().sum(1).argmin() for row in x.double()])


def check_autocast(find: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, codes, exact = data()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            assert torch.equal(find(x, codes), exact)


def check_matmul_precision(find: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, codes, exact = data()
    with matmul_precision("medium"), RoundedProducts():
        assert torch.equal(find(x, codes), exact)


def test_vqkit_does_not_have_the_fault() -> None:
    check_autocast(lambda x, codes: nearest(x, codes).indices)
    check_matmul_precision(lambda x, codes: nearest(x, codes).indices)


def test_the_check_catches_the_fault() -> None:
    x, codes, exact = data()
    assert torch.equal(centred(x, codes), exact)  # right in full precision
    with pytest.raises(AssertionError):
        check_autocast(centred)
    check_autocast(centred_outside_autocast)
    with pytest.raises(AssertionError):
        check_matmul_precision(centred_outside_autocast)
