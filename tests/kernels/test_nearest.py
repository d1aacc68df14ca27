"""The search against a float64 oracle over all rows, and everything that must not change its answer."""

import pytest
import torch
from torch import Tensor

from tests.kernels.data import DATA, METRICS, data_set, oracle, oracle_scores
from tests.kernels.graphs import Watch, matmul_precision, with_threads
from tests.kernels.stand_ins import without
from vqkit.kernels import native, nearest, search_path
from vqkit.kernels.torch_search import float64_ties
from vqkit.kernels.torch_search import search as torch_search


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_equals_the_float64_argmin(path: str, name: str, metric: str) -> None:
    x, codes = data_set(name)
    assert torch.equal(nearest(x, codes, metric=metric).indices, oracle(x, codes, metric))


@pytest.mark.parametrize(("rows", "size", "depth"), [(700, 1100, 40), (300, 9000, 5), (200, 1500, 130), (3, 50, 8)])
def test_the_shipped_tiles_equal_the_float64_argmin(torch_path: None, rows: int, size: int, depth: int) -> None:
    x, codes = data_set("gaussian", rows, size, depth)
    assert torch.equal(nearest(x, codes).indices, oracle(x, codes, "euclidean"))


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_index(path: str, metric: str) -> None:
    x, codes = data_set("gaussian", size=130)
    repeated = torch.cat([codes, codes, codes])  # equal codes in the same tile and in others
    assert torch.equal(nearest(x, repeated, metric=metric).indices, nearest(x, codes, metric=metric).indices)
    assert (nearest(x, codes[:1].expand(100, -1), metric=metric).indices == 0).all()
    assert (nearest(x, torch.zeros(100, 24), metric=metric).indices == 0).all()


def test_symmetric_ties_go_to_the_lowest_index(path: str) -> None:
    """Rows in the middle of a cell of a grid that float32 holds exactly; in tenths they are no ties."""
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    corners = torch.cartesian_prod(*[torch.arange(3)] * 3)
    expected = corners[:, 0] * 16 + corners[:, 1] * 4 + corners[:, 2]
    assert torch.equal(nearest(corners + 0.5, grid).indices, expected)
    x = (corners + 0.5) * 0.1
    assert torch.equal(nearest(x, grid * 0.1).indices, oracle(x, grid * 0.1, "euclidean"))


@pytest.mark.parametrize("metric", METRICS)
def test_ties_whose_sums_round_differently_go_to_the_lowest_index(path: str, metric: str) -> None:
    """Codes that are one vector with its coordinates shuffled, and rows that have one value in all coordinates."""
    vector, x = torch.randn(24), torch.tensor([0.1, -0.7, 1e3])[:, None].expand(-1, 24)
    codes = torch.stack([vector[torch.randperm(24)] for _ in range(100)])
    assert (codes.double() * codes.double()).sum(1).unique().numel() > 1
    assert (codes.double() * x[:1].double()).sum(1).unique().numel() > 1
    assert nearest(x, codes, metric=metric).indices.tolist() == [0, 0, 0]
    assert nearest(x, codes, metric=metric, k=3).indices.tolist() == [[0, 1, 2]] * 3


def test_a_row_among_the_corners_of_a_cube(path: str) -> None:
    """1,024 codes at one distance: more than are compared one by one before equal codes are looked for."""
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 10)
    assert nearest(torch.zeros(2, 10), corners).indices.tolist() == [0, 0]
    assert nearest(1e-3 * corners[700:701], corners).indices.tolist() == [700]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["gaussian", "near duplicates", "offset 100", "offset 1e5"])
def test_any_split_of_the_batch_gives_the_same_codes(shipped_path: None, name: str, metric: str) -> None:
    x, codes = data_set(name, rows=72, size=2000, depth=64)
    whole = nearest(x, codes, metric=metric).indices
    for size in (1, 17):
        assert torch.equal(torch.cat([nearest(part, codes, metric=metric).indices for part in x.split(size)]), whole)


@pytest.mark.parametrize("depth", [2, 8, 64])
@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
def test_a_row_called_certain_is_right_however_far_the_data_lie(shipped_path: None, offset: float, depth: int) -> None:
    """Codes less one rounding of their mean and rows less another differ by a shift that no bound on |x| |e| covers."""
    generator = torch.Generator().manual_seed(depth)
    x, codes = (torch.randn(rows, depth, generator=generator) + offset for rows in (4096, 512))
    found = nearest(x, codes).indices
    distances = torch.cdist(x.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    excess = distances.gather(1, found[:, None])[:, 0] - distances.amin(1)
    assert excess.max() <= 1e-12 * distances.amin(1).max()


@pytest.mark.parametrize("name", ["gaussian", "near duplicates"])
def test_any_number_of_threads_gives_the_same_codes(shipped_path: None, name: str) -> None:
    x, codes = data_set(name, rows=400, size=700, depth=64)
    first, *others = with_threads((1, 2, 3), lambda: nearest(x, codes).indices)
    assert all(torch.equal(other, first) for other in others)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(path: str, precision: str) -> None:
    """Processors with bfloat16 units would round the inputs of a float32 product; so none may be formed."""
    x, codes = data_set("gaussian", rows=2000, size=500)
    expected = nearest(x, codes).indices
    with matmul_precision(precision):
        with Watch() as watch:
            indices = torch_search.nearest_indices(x[None], codes[None], None, "euclidean", 1, "exact")
        assert watch.products == {torch.float64}
        assert torch.equal(indices[0, :, 0], expected)
        assert torch.equal(nearest(x, codes).indices, expected)
    with Watch() as watch:
        torch_search.nearest_indices(x[None], codes[None], None, "euclidean", 1, "exact")
    assert torch.float32 in watch.products


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_changes_nothing(path: str, metric: str) -> None:
    x, codes = data_set("gaussian")
    expected = nearest(x, codes, metric=metric, return_scores=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest(x, codes, metric=metric, return_scores=True)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores, expected.scores)


def test_half_precision_inputs_are_taken_at_their_values(path: str) -> None:
    x, codes = data_set("gaussian")
    for dtype in (torch.bfloat16, torch.float16):
        found = nearest(x.to(dtype), codes.to(dtype), return_scores=True)
        assert torch.equal(found.indices, oracle(x.to(dtype), codes.to(dtype), "euclidean"))
        assert found.scores.dtype == torch.float32


def test_float64_inputs_are_searched_in_float64(path: str) -> None:
    codes = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    for precision in ("exact", "high"):
        found = nearest(torch.tensor([[1.0 + 2e-12]], dtype=torch.float64), codes, precision=precision)
        assert found.indices.tolist() == [1]
    assert nearest(codes, codes, return_scores=True).scores.dtype == torch.float64


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_not_finite(path: str, metric: str) -> None:
    x, codes = data_set("gaussian")
    expected = nearest(x, codes, metric=metric).indices
    assert (expected[[3, 100, 500]] > 0).all()
    x[3, 5], x[100, 0], x[500] = torch.nan, torch.inf, -torch.inf
    found = nearest(x, codes, metric=metric, return_scores=True)
    expected[[3, 100, 500]] = 0
    assert torch.equal(found.indices, expected)
    assert torch.equal(torch.nonzero(found.scores.isnan()).flatten(), torch.tensor([3, 100, 500]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_codes_that_are_not_finite_never_win(path: str, metric: str, value: float) -> None:
    x, codes = data_set("gaussian")
    broken = codes.clone()
    broken[::3, 2] = value
    kept = torch.arange(len(codes))[torch.arange(len(codes)) % 3 != 0]
    assert torch.equal(nearest(x, broken, metric=metric).indices, kept[oracle(x, codes[kept], metric)])
    assert (nearest(x, torch.full_like(codes, value), metric=metric).indices == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_huge_and_tiny_values(path: str, scale: float) -> None:
    x, codes = (scale * rows for rows in data_set("gaussian", rows=100))
    for metric in METRICS:
        assert torch.equal(nearest(x, codes, metric=metric).indices, oracle(x, codes, metric))


def test_a_code_whose_norm_overflows_can_win(path: str) -> None:
    x, codes = data_set("gaussian", rows=20)
    codes[7] *= 1e20
    x[3] = codes[7] * 0.9
    for metric in METRICS:
        found = nearest(x, codes, metric=metric).indices
        assert torch.equal(found, oracle(x, codes, metric)) and found[3] == 7


def test_zero_rows_and_codes_under_cosine(path: str) -> None:
    x, codes = data_set("gaussian")
    x[7], codes[11] = 0, 0
    found = nearest(x, codes, metric="cosine", return_scores=True)
    assert found.indices[7] == 0 and found.scores[7] == 0
    assert torch.equal(found.indices, oracle(x, codes, "cosine"))
    assert nearest(-codes[:1], codes[[0, 11]], metric="cosine").indices.tolist() == [1]  # cosine 0 beats cosine -1
    ties = torch.tensor([[10.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 20.0, 0.0]])  # a zero code among long ones
    rows = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert nearest(rows, ties, metric="cosine").indices.tolist() == [0, 0, 1, 2]


def test_scores(path: str) -> None:
    x, codes = data_set("offset 1000")
    found = nearest(x, codes, return_scores=True)
    chosen = codes[found.indices]
    torch.testing.assert_close(found.scores, (x.double() - chosen.double()).square().sum(1).float())
    assert nearest(x, codes).scores is None and nearest(x, codes).margin is None
    for metric in METRICS:
        found = nearest(x - 1000, codes - 1000, metric=metric, return_scores=True)
        best = oracle_best(x - 1000, codes - 1000, metric)
        torch.testing.assert_close(found.scores, best if metric == "euclidean" else -best)


def oracle_best(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    return oracle_scores(x, codes, metric).amin(1).float()


def test_high_precision_differs_in_near_ties_only(small_tiles: None) -> None:
    for name in ("gaussian", "clustered", "near duplicates"):
        x, codes = data_set(name)
        found = nearest(x, codes, precision="high", return_scores=True)
        best = nearest(x, codes, return_scores=True)
        torch.testing.assert_close(found.scores, best.scores, rtol=1e-4, atol=1e-5)
    # equal scores are decided in float64
    assert torch.equal(nearest(x, torch.cat([codes, codes]), precision="high").indices, best.indices)


def test_the_path_is_named() -> None:
    with without(native):
        assert search_path("cpu")[:2] == ("torch", "exact")
        assert search_path("mps" if torch.backends.mps.is_available() else "cpu").name == "torch"
    if native.variant() is not None:
        assert search_path("cpu")[:2] == (f"native {native.variant()}", "exact")
        assert search_path("cpu", torch.float64).name == "torch"


def test_shapes_strides_and_gradients(path: str) -> None:
    x, codes = data_set("gaussian", rows=120)
    expected = nearest(x, codes).indices
    assert torch.equal(nearest(x.T.contiguous().T, codes.T.contiguous().T).indices, expected)
    assert torch.equal(nearest(x.repeat(1, 2)[:, :24], codes.repeat_interleave(2, 0)[::2]).indices, expected)
    assert torch.equal(nearest(x.view(2, 3, 20, 24), codes).indices, expected.view(2, 3, 20))
    assert nearest(x[0], codes).indices.shape == ()
    assert nearest(x.view(2, 60, 24)[:, :0], codes, return_scores=True).scores.shape == (2, 0)
    found = nearest(x.requires_grad_(), codes.requires_grad_(), return_scores=True, return_margin=True)
    assert torch.equal(found.indices, expected) and not found.scores.requires_grad and not found.margin.requires_grad
    with torch.inference_mode():
        assert torch.equal(nearest(x, codes).indices, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 3])
def test_equal_codes_among_codes_that_may_not_win(path: str, k: int, dtype: torch.dtype) -> None:
    """Many equal codes, at the centre, behind masked and non-finite ones: those must not count as their copies."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        codes = torch.randint(0, 3, (150, 1), generator=generator).to(dtype)
        codes[torch.rand(150, generator=generator) < 0.1] = torch.nan
        valid = torch.rand(150, generator=generator) < 0.7
        x = torch.randint(0, 3, (8, 1), generator=generator).to(dtype)
        scores = torch.where(valid & codes[:, 0].isfinite(), (x - codes.T).abs(), torch.inf)
        expected = scores.sort(dim=1, stable=True).indices[:, :k]
        found = nearest(x, codes, valid=valid, k=k).indices
        assert torch.equal(found.view(8, k), expected)


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_a_zero_row_is_not_compared_with_every_code(
    torch_path: None, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ties with all of them, as masked rows do: K comparisons for each would take longer than the search."""
    compared = []
    select = float64_ties.select

    def counted(x: Tensor, codes: Tensor, code: Tensor, *rest: object) -> Tensor:
        compared.append(len(code))
        return select(x, codes, code, *rest)

    monkeypatch.setattr(float64_ties, "select", counted)
    monkeypatch.setattr(torch_search, "select", counted)
    x, codes = data_set("gaussian")
    x[::2] = 0
    assert (nearest(x, codes, metric=metric).indices[::2] == 0).all()
    assert sum(compared) < len(codes)
