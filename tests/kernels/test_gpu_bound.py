"""The bound behind a certain row, against sums that round as the measured models of tensor cores do.

`sums` is written from the descriptions in arXiv 2512.07004: blocks of exact products, aligned with the running sum to
the largest exponent, cut off behind some guard bits, added, and cut off to float32.
"""

import numpy as np
import pytest
import torch

from vqkit.kernels import bounds
from vqkit.kernels.gpu import INTERPRETER

MODELS = {80: (8, 1), 90: (16, 2), 100: (16, 2)}  # terms of a block, guard bits
DATA = ("random", "one sign", "all bits", "halves")


def cut(values: np.ndarray, exponent: np.ndarray, bits: int) -> np.ndarray:
    unit = np.exp2(exponent - (bits - 1.0))
    return np.trunc(values / unit) * unit


def exponent(values: np.ndarray) -> np.ndarray:
    return np.floor(np.log2(np.maximum(np.abs(values), 1e-30)))


def sums(products: np.ndarray, block: int, guard: int) -> np.ndarray:
    """Sums (N,) of exact products (N, n) float64."""
    total = np.zeros(len(products))
    for start in range(0, products.shape[1], block):
        addends = np.column_stack([products[:, start : start + block], total])
        largest = exponent(addends).max(1)
        total = cut(addends, largest[:, None], 24 + guard).sum(1)
        total = cut(total, exponent(total), 24)
    return total


def vectors(name: str, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(depth)
    x, e = torch.randn(2, 400, depth, generator=generator)
    if name == "one sign":
        x, e = x.abs(), e.abs()
    elif name == "all bits":
        x, e = torch.full_like(x, 2 - 2**-23), torch.full_like(e, 2 - 2**-23)
    elif name == "halves":  # what is left of the rounding to bfloat16 is as large as it can be
        x = e = torch.full_like(x, 1 + 2**-8 - 2**-23)
    return x, e


def halves(x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    high = x.bfloat16()
    return high.double().numpy(), (x - high.float()).bfloat16().double().numpy()


def errors(x: torch.Tensor, e: torch.Tensor, block: int, guard: int) -> np.ndarray:
    """Of three products of halves, over |x| |e|."""
    (xh, xl), (eh, el) = halves(x), halves(e)
    computed = sums(np.concatenate([xl * eh, xh * el, xh * eh], axis=1), block, guard)
    x, e = x.double(), e.double()
    return np.abs(computed - (x * e).sum(1).numpy()) / (x.norm(dim=1) * e.norm(dim=1)).numpy()


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("depth", [16, 64, 256])
@pytest.mark.parametrize("architecture", MODELS)
def test_no_error_exceeds_the_bound(architecture: int, depth: int, name: str) -> None:
    block, guard = MODELS[architecture]
    limit = bounds.tensor_core_error(architecture, depth, products=3)
    assert errors(*vectors(name, depth), block, guard).max() <= limit
    assert errors(*vectors(name, depth), block, guard=0).max() <= limit  # the bound does not count on guard bits


def cut_off(depth: int) -> np.ndarray:
    """One product of 1, then products that are just too small to be added to it."""
    products = np.full((1, depth), 2.0**-23 * (1 - 2**-8))
    products[0, 0] = 1
    return products


@pytest.mark.parametrize("architecture", MODELS)
def test_the_bound_is_not_idle(architecture: int) -> None:
    """Sums come near to the bound's share for them, and halves within a factor of four of theirs."""
    products = cut_off(256)
    error = products.sum() - sums(products, MODELS[architecture][0], guard=0)[0]
    limit = bounds.accumulation_error(architecture, 256)
    assert 0.75 * limit < error <= limit
    assert errors(*vectors("halves", 16), *MODELS[architecture]).max() > bounds.SPLIT / 4


def test_a_bound_without_the_halves_would_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "SPLIT", 0.0)
    assert errors(*vectors("halves", 16), *MODELS[90]).max() > bounds.tensor_core_error(90, 16, products=3)


def test_a_bound_of_ieee_sums_would_not_hold() -> None:
    products = cut_off(1024)
    error = products.sum() - sums(products, 8, guard=0)[0]
    assert error > 1.5 * bounds.accumulation_error(INTERPRETER, 1024)


def test_what_is_not_known_is_not_proven() -> None:
    assert not bounds.is_proven(120)
    assert bounds.tensor_core_error(120, 16, products=3) == np.inf
    assert bounds.tensor_core_error(90, 2**16, products=3) == np.inf  # too long for the derivation
