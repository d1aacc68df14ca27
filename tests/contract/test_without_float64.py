"""Devices without float64: what a user does first, of every quantizer, and how good the indices are there."""

import pytest
import torch

from tests.contract.cases import CASES, Case
from tests.contract.test_contract import initialized
from tests.contract.worlds import NoFloat64, without_float64
from tests.few import few
from vqkit import bake, kernels
from vqkit.distributed import counter_random, open_uniform
from vqkit.kernels import search_path
from vqkit.kernels.bounds import score_error
from vqkit.methods import METHODS


@pytest.mark.parametrize("case", few(CASES, *METHODS))
def test_a_device_without_float64_runs_it(case: Case) -> None:
    with without_float64():
        quantizer = initialized(case)
        x = case.example().requires_grad_()
        output = quantizer(x)
        (output.quantized.square().mean() + output.loss).backward()
        quantizer.step()
        assert x.grad.isfinite().all() and quantizer.health()["nonfinite"] == 0
        quantizer = bake(quantizer.eval())
        assert quantizer.decode(quantizer.encode(x)).isfinite().all()


def test_the_search_looks_into_operators() -> None:
    """The condition of this module finds float64 where it is used: in the search of near ties."""
    codes = torch.ones(2, 4)
    with NoFloat64(), pytest.raises(TypeError, match="made a tensor of float64"):
        kernels.nearest(codes, codes, impl="torch")


@pytest.mark.parametrize("metric", ["euclidean", "dot", "cosine"])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_indices_lie_within_the_bound_of_float32(metric: str, offset: float) -> None:
    """A chosen code is worse than the best by no more than 4 E, E the bound of docs/search.md in float32."""
    generator = torch.Generator().manual_seed(0)
    x, codes = (torch.randn(size, 16, generator=generator) + offset for size in (4000, 500))
    codes[250:] = codes[:250] + 2.0**-20 * codes[250:]  # near ties, of which float32 scores tell few apart
    with without_float64():
        found = kernels.nearest(x, codes, metric=metric).indices
        assert search_path("cpu").precision == "high"
    rows, books = x.double(), codes.double()
    if metric == "cosine":
        books = torch.nn.functional.normalize(books, dim=1)
    else:
        centre = books.median(0).values
        rows, books = rows - centre if metric == "euclidean" else rows, books - centre
    scores = (0.5 * books.square().sum(1) if metric == "euclidean" else 0) - rows @ books.T
    best = scores.amin(1)
    bound = score_error(rows.float(), books.norm(dim=1).amax().float(), best.float(), metric)
    worse = scores.gather(1, found[:, None])[:, 0] - best
    assert (worse <= 4 * bound).all()


def test_random_numbers_are_those_of_float64_cut_off() -> None:
    positions = torch.arange(10_000)
    wide, open_wide = counter_random(positions, seed=1, step=2), open_uniform(positions, seed=1, step=2)
    with without_float64():
        short, open_short = counter_random(positions, seed=1, step=2), open_uniform(positions, seed=1, step=2)
    assert torch.equal(short.double(), (wide * 2**24).floor() / 2**24)
    assert ((open_short.double() - open_wide).abs() <= 2.0**-24).all()
    assert ((open_short > 0) & (open_short < 1)).all()
