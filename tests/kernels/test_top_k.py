"""Several codes a row, groups of codebooks, masks of valid codes, margins: each against a float64 oracle."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.data import DATA, METRICS, data_set, oracle_scores
from vqkit.kernels import nearest
from vqkit.kernels.torch_search import float64_ties


def ranked(x: Tensor, codes: Tensor, metric: str, k: int, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Indices (N, k) and scores (N, k + 1), less is better, of the best codes; infinite where there is none."""
    scores = oracle_scores(x, codes, metric)
    if valid is not None:
        scores[:, ~valid] = torch.inf
    scores = torch.nn.functional.pad(scores, (0, 1), value=torch.inf)
    values, indices = scores.sort(dim=1, stable=True)
    return indices[:, :k], values[:, : k + 1]


def assert_same_where_clear(found: Tensor, indices: Tensor, values: Tensor) -> None:
    """Equal indices but for rows where float64 scores themselves differ by a few roundings only."""
    clear = (values.diff(dim=1) > 1e-13 * values[:, 1:].abs().nan_to_num(0, 0)).all(1)
    assert clear.double().mean() > 0.75
    assert torch.equal(found[clear], indices[clear])


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_the_k_best_codes(path: str, name: str, metric: str, k: int) -> None:
    x, codes = data_set(name, rows=200)
    found = nearest(x, codes, metric=metric, k=k, return_scores=True, return_margin=True)
    indices, values = ranked(x, codes, metric, k)
    if k == 1:
        assert torch.equal(found.indices, indices[:, 0])
    else:
        assert_same_where_clear(found.indices, indices, values)
    values = values if metric == "euclidean" else -values
    torch.testing.assert_close(found.scores.view(-1, k), values[:, :k].float(), rtol=1e-6, atol=1e-30)
    margin = (values[:, k] - values[:, k - 1]).abs()
    torch.testing.assert_close(found.margin.double(), margin, rtol=1e-5, atol=1e-12 * values.abs().max().item())


def test_the_shipped_tiles_find_the_k_best_codes(torch_path: None) -> None:
    for size, depth, k in ((5000, 8, 3), (1100, 40, 3), (70, 8, 65)):
        x, codes = data_set("gaussian", 150, size, depth)
        assert torch.equal(nearest(x, codes, k=k).indices, ranked(x, codes, "euclidean", k)[0])


def test_a_margin_far_below_the_scores_keeps_its_digits(shipped_path: None) -> None:
    codes = torch.tensor([[1e4, 0.0], [1e4, 2.0**-10]])
    margin = nearest(torch.tensor([[0.0, 0.0]]), codes, return_margin=True).margin
    assert margin.tolist() == [2.0**-20]
    assert nearest(codes[:1], codes[:1], return_margin=True).margin.tolist() == [math.inf]
    assert nearest(codes[:1], codes[[0, 0]], return_margin=True).margin.tolist() == [0]


@pytest.mark.parametrize("metric", METRICS)
def test_ties_are_ranked_by_index(path: str, metric: str) -> None:
    x, codes = data_set("gaussian", rows=50, size=40)
    best = nearest(x, codes, metric=metric, k=2).indices
    found = nearest(x, codes.repeat(4, 1), metric=metric, k=6).indices
    expected = torch.cat([best[:, :1] + torch.arange(4) * 40, best[:, 1:] + torch.arange(2) * 40], 1)
    assert torch.equal(found, expected)
    assert nearest(x, torch.ones(200, 24), metric=metric, k=3).indices.unique(dim=0).tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 3])
def test_groups_are_searched_as_if_alone(path: str, metric: str, k: int) -> None:
    x = torch.stack([data_set(name, 90, 110)[0] for name in DATA[:4]])
    codes = torch.stack([data_set(name, 90, 110)[1] for name in DATA[:4]])
    options = {"metric": metric, "k": k, "return_scores": True, "return_margin": True}
    for valid in ([None] * 4, torch.rand(4, 110) < 0.5):
        mask = valid if isinstance(valid, Tensor) else None
        found = nearest(x.view(4, 9, 10, 24), codes, valid=mask, **options)
        for group in range(4):
            alone = nearest(x[group], codes[group], valid=valid[group], **options)
            for together, single in zip(found, alone, strict=True):
                assert torch.equal(together[group].reshape(single.shape), single)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_codes_that_are_not_valid_never_win(path: str, name: str, metric: str) -> None:
    x, codes = data_set(name, rows=200)
    valid = torch.arange(len(codes)) % 3 == 1
    codes[::3] *= 1e10  # what is not valid decides nothing else either
    found = nearest(x, codes, metric=metric, valid=valid).indices[:, None]
    assert_same_where_clear(found, *ranked(x, codes, metric, 1, valid))
    found = nearest(x, codes, metric=metric, k=4, valid=valid).indices
    assert_same_where_clear(found, *ranked(x, codes, metric, 4, valid))


@pytest.mark.parametrize("metric", METRICS)
def test_what_is_missing_is_minus_one(path: str, metric: str) -> None:
    x, codes = data_set("gaussian", rows=60, size=100)
    x[5, 3] = torch.nan
    codes[10] = torch.inf
    valid = torch.zeros(100, dtype=torch.bool)
    valid[[10, 20, 90]] = True
    found = nearest(x, codes, metric=metric, k=3, valid=valid, return_scores=True, return_margin=True)
    assert (found.indices[:, 2] == -1).all() and found.scores[:, 2].isnan().all() and found.margin.isnan().all()
    assert found.indices[:, :2].sort(1).values.unique(dim=0).tolist() == [[20, 90]]
    assert found.indices[5].tolist() == [20, 90, -1] and found.scores[5].isnan().all()
    last = nearest(x, codes, metric=metric, k=2, valid=valid, return_margin=True)
    assert (last.margin[:5] == torch.inf).all() and last.margin[5].isnan()
    codes[[20, 90]] = torch.nan
    found = nearest(x, codes, metric=metric, k=2, valid=valid, return_scores=True)
    assert found.indices.unique(dim=0).tolist() == [[10, -1]] and found.scores.isnan().all()
    assert nearest(x, codes, metric=metric, valid=valid).indices.unique().tolist() == [10]


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_not_finite_have_the_lowest_usable_codes(path: str, metric: str) -> None:
    x, codes = torch.full((3, 24), torch.nan), data_set("gaussian")[1]
    codes[[0, 2]] = torch.inf
    valid = torch.arange(300) != 3
    assert nearest(x, codes, metric=metric).indices.tolist() == [1, 1, 1]
    assert nearest(x, codes, metric=metric, k=3, valid=valid).indices.tolist() == [[1, 4, 5]] * 3
    assert nearest(x, codes, metric=metric, valid=torch.arange(300) > 7).indices.tolist() == [8, 8, 8]


def test_codes_that_overflow_do_not_hide_their_neighbours(shipped_path: None) -> None:
    """inf - inf = NaN in every group of codes: rows and codes are finite, and their products are not."""
    x, codes = torch.randn(40, 4), torch.randn(3200, 4)
    x, codes = 1e10 * x, 1e10 * codes
    codes[5::32] *= 1e20
    for k in (1, 2, 5):
        found = nearest(x, codes, k=k).indices.view(40, k)
        assert_same_where_clear(found, *ranked(x, codes, "euclidean", k))


def test_rows_with_many_candidates_in_blocks(torch_path: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 1,024 corners of a cube tie: more pairs than are compared at once, in several blocks of rows."""
    monkeypatch.setattr(float64_ties, "BLOCK_SCORES", 4096)
    monkeypatch.setattr(float64_ties, "PAIR_NUMBERS", 1000)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 10)
    found = nearest(torch.zeros(10, 10), corners, k=3).indices
    assert found.tolist() == [[0, 1, 2]] * 10


@given(
    rows=st.integers(0, 100),
    size=st.integers(1, 130),
    depth=st.integers(1, 20),
    k=st.integers(1, 9),
    groups=st.integers(1, 3),
    metric=st.sampled_from(METRICS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    masked=st.booleans(),
    transposed=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ragged_shapes(
    path: str,
    rows: int,
    size: int,
    depth: int,
    k: int,
    groups: int,
    metric: str,
    dtype: torch.dtype,
    masked: bool,
    transposed: bool,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, codes = (torch.randn(groups, number, depth, generator=generator).to(dtype) for number in (rows, size))
    if transposed:
        x, codes = x.mT.contiguous().mT, codes.mT.contiguous().mT
    valid = torch.rand(groups, size, generator=generator) < 0.7
    valid[:, -1] = True
    k = min(k, size)
    found = nearest(x, codes, metric=metric, k=k, valid=valid if masked else None, return_scores=True)
    assert found.indices.shape == ((groups, rows) if k == 1 else (groups, rows, k))
    for group in range(groups):
        indices, values = ranked(x[group], codes[group], metric, k, valid[group] if masked else None)
        scores = found.scores[group].reshape(rows, k).double() * (1 if metric == "euclidean" else -1)
        torch.testing.assert_close(scores.nan_to_num(torch.inf), values[:, :k], rtol=1e-6, atol=1e-6)
        # In half precision many codes tie, where the oracle's order is that of its rounding errors.
        if k == 1 and dtype == torch.float32 and (depth > 1 or metric != "cosine"):
            assert torch.equal(found.indices[group], indices[:, 0])
