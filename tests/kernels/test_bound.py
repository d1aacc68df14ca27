"""The bound on the rounding error, at inputs built to reach it: each constant of it is needed.

Errors are those of one legitimate order of additions (one after another, the bias first), written out here, so that the
tests hold on any BLAS. `docs/search.md` names each term.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels.data import DATA, METRICS, data_set, oracle
from vqkit.kernels import bounds, nearest
from vqkit.kernels.bounds import UNIT, score_error
from vqkit.kernels.torch_search import search

DEPTH = 512
NEARLY = 1 - 2.0**-10  # a term just below half a unit in the last place is lost whole


def one_by_one(bias: Tensor, vectors: Tensor, x: Tensor) -> Tensor:
    """bias (K, 1) - vectors (K, D) @ x (D, N) in the dtype of vectors, each product and each addition rounded."""
    scores = bias.expand(-1, x.shape[1]).clone()
    for depth in range(vectors.shape[1]):
        scores -= vectors[:, depth, None] * x[depth]
    return scores


def bound_of(x: Tensor, codes: Tensor, scores: Tensor, metric: str) -> Tensor:
    return score_error(x, codes.double().norm(dim=1).amax().float(), scores.amin(0), metric)


def error_of(x: Tensor, codes: Tensor, scores: Tensor, metric: str) -> Tensor:
    """(K, N) by how much computed scores differ from exact ones; the products of float32 are exact in float64."""
    bias = 0.5 * codes.double().square().sum(1, keepdim=True) if metric == "euclidean" else 0
    return (scores.double() - (bias - codes.double() @ x.double().T)).abs()


def lost_products(x_scale: float = 1.0, code_scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A row, and two codes that the row's small terms speak for and against; all those terms are lost.

    Returns (1, D), (2, D) and the two scores (2, 1) under "dot". Code 1 is truly better, code 0 is computed so, by
    nearly twice the error of each.
    """
    x = torch.full((1, DEPTH), 2.0**-12)
    x[0, 0] = 1
    codes = torch.full((2, DEPTH), 2.0**-12 * NEARLY)
    codes[0] *= -1
    codes[:, 0] = torch.tensor([1 + round(1.9 * DEPTH * UNIT / 2**-22) * 2.0**-22, 1.0])
    x, codes = x_scale * x, code_scale * codes
    return x, codes, one_by_one(torch.zeros(2, 1), codes, x.T)


def lost_beside_the_bias() -> tuple[Tensor, Tensor, Tensor]:
    """The same under "euclidean", with |e|^2 / 2 about 1 and a row so small that |x| |e| is nothing: all is lost in the
    bias.
    """
    x = torch.full((1, DEPTH), 2.0**-20 * NEARLY)
    codes = torch.full((2, DEPTH), 2.0**-4)
    codes[0] *= -1
    codes[1, 0] += 2.0**-10
    bias = 0.5 * codes.double().square().sum(1, keepdim=True)
    return x, codes, one_by_one(bias.float(), codes, x.T)


def lost_beside_a_long_row() -> tuple[Tensor, Tensor, Tensor]:
    """`lost_products` under "euclidean", with codes so short that |e|^2 / 2 is nothing; the bias is added last."""
    x, codes, scores = lost_products(1.0, 2.0**-10)
    return x, codes, scores + 0.5 * codes.square().sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("metric", "built"),
    [("dot", lost_products), ("euclidean", lost_beside_the_bias), ("euclidean", lost_beside_a_long_row)],
)
def test_the_bound_holds_and_is_reached(metric: str, built: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> None:
    """Errors of 90 % of the bound: no constant in it can be halved."""
    x, codes, scores = built()
    error, bound = error_of(x, codes, scores, metric).amax(), bound_of(x, codes, scores, metric)
    assert 0.9 * bound < error <= bound


@pytest.mark.parametrize("factor", [2, 1])
def test_two_errors_have_to_fit_between_the_best_two_scores(factor: int) -> None:
    """Both scores err by nearly the bound, in opposite directions: a gap of one bound certifies the wrong code."""
    x, codes, scores = lost_products()
    assert oracle(x, codes, "dot").tolist() == [1] and scores.argmin(0).tolist() == [0]
    certain = scores[1] - scores[0] > factor * bound_of(x, codes, scores, "dot")
    assert certain.tolist() == [factor == 1]


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("unchanged", None, False),
        ("half of the roundings", lambda n, dtype: n / 2 * UNIT, True),
        ("roundings of the square root of D", lambda n, dtype: math.sqrt(n) * UNIT, True),
    ],
)
def test_a_smaller_bound_certifies_a_wrong_code(
    name: str, value, wrong: bool, torch_path: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole search, on a product that adds one after another."""
    x, codes, _ = lost_products()

    def addmm(bias: Tensor, vectors: Tensor, rows: Tensor, *, alpha: int, out: Tensor | None = None) -> Tensor:
        scores = one_by_one(bias, vectors, rows)
        return scores if out is None else out.copy_(scores)

    monkeypatch.setattr(torch, "addmm", addmm)
    monkeypatch.setattr(search, "centre_of", lambda codes, metric: torch.zeros(codes.shape[1]))
    if value is not None:
        monkeypatch.setattr(bounds, "gamma", value)
    assert nearest(x, codes, metric="dot").indices.tolist() == [0 if wrong else 1]


def test_each_rounding_of_a_single_product_is_counted() -> None:
    """Depth 1: rounding x, e, the product or the bias, and the sum. Errors of more than three units do occur."""
    generator = torch.Generator().manual_seed(1)
    x = -1 - 0.02 * torch.rand(2**20, 1, generator=generator, dtype=torch.float64)
    e = 2 + 0.04 * torch.rand(2**20, 1, generator=generator, dtype=torch.float64)
    rounded_x, rounded_e = x.float(), e.float()
    bias = (0.5 * rounded_e.double().square()).float()
    computed = bias - rounded_e * rounded_x
    exact = 0.5 * e.square() - e * x
    error = (computed.double() - exact).abs() / (0.5 * e.square() + (e * x).abs())
    assert 2 * UNIT < error.max() <= bounds.gamma(1 + bounds.ROUNDINGS, torch.float32)


def test_rows_whose_squares_underflow_still_have_a_norm() -> None:
    """Of a row of norm 1e-24 the squares vanish, the products with long codes do not."""
    x, codes, scores = lost_products(2.0**-80, 2.0**60)
    error = error_of(x, codes, scores, "dot").amax()
    assert x.square().sum() == 0
    assert error <= bound_of(x, codes, scores, "dot")
    underflow = 2 * (DEPTH + bounds.ROUNDINGS) * torch.finfo(torch.float32).tiny
    assert error > underflow * (1 + codes.norm(dim=1).amax())  # what is left of the bound with a norm of 0


@pytest.mark.parametrize("flushed", [False, True])
def test_products_that_underflow_are_counted(flushed: bool) -> None:
    """Subnormal numbers are rounded coarsely, or to zero where the processor was told so: u is no bound for them."""
    if not torch.set_flush_denormal(flushed):
        pytest.skip("this processor cannot flush subnormal numbers")
    try:
        x, codes = torch.full((1, 4), 2.0**-75), torch.full((1, 4), 2.0 ** (-76 if not flushed else -60))
        scores = one_by_one(torch.zeros(1, 1), codes, x.T)
        assert scores.abs().max() == 0
        bound = bound_of(x, codes, scores, "dot")
    finally:
        torch.set_flush_denormal(False)
    error = error_of(x, codes, scores, "dot").amax()
    assert bounds.gamma(7, torch.float32) * x.double().norm() * codes.double().norm() < error <= bound


def test_nothing_is_certain_where_the_derivation_ends() -> None:
    assert bounds.gamma(2**16 + 1, torch.float32) == math.inf
    assert bounds.gamma(2**16 + 1, torch.float64) < 1e-11
    x, codes = torch.ones(1, 2**16), torch.ones(2, 2**16)
    for metric in METRICS:
        assert bound_of(x, codes, torch.zeros(2, 1), metric).isinf().all()


def scanned(x: Tensor, codes: Tensor, metric: str) -> search.BestScores:
    tiles = search.CodeTiles(codes, None, metric)
    return search.scan(x - tiles.centre if metric == "euclidean" else x, tiles, 1)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_the_fast_pass_decides_most_rows_and_only_right_ones(small_tiles: None, name: str, metric: str) -> None:
    x, codes = data_set(name)
    found = scanned(x, codes, metric)
    certain = (found.gaps > 2 * found.error)[0]
    assert torch.equal(found.indices[certain, 0], oracle(x, codes, metric)[certain])
    if name in ("gaussian", "clustered", "unit norm", "offset 10"):
        assert certain.float().mean() > 0.85


def test_one_code_far_out_costs_neither_precision_nor_certainty(small_tiles: None) -> None:
    x, codes = data_set("gaussian")
    for place in (0, 150, 299):
        far = codes.clone()
        far[place] *= 1e18
        for metric in METRICS:
            assert torch.equal(nearest(x, far, metric=metric).indices, oracle(x, far, metric))
        found = scanned(x, far, "euclidean")
        assert (found.gaps > 2 * found.error).float().mean() > 0.9


def test_the_centre_is_finite_and_near_most_codes() -> None:
    codes = torch.randn(200, 3) + 1000
    assert (search.centre_of(codes, "euclidean") - 1000).abs().max() < 2
    codes[::3] = torch.nan
    codes[1::9] = 3e38
    assert (search.centre_of(codes, "euclidean") - 1000).abs().max() < 5
    assert search.centre_of(torch.full((5, 3), 3e38), "dot").tolist() == [0, 0, 0]
    assert search.centre_of(torch.full((5, 3), torch.nan), "dot").tolist() == [0, 0, 0]
    assert search.centre_of(codes, "cosine").tolist() == [0, 0, 0]
