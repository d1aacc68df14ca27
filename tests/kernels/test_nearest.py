"""The search against a float64 oracle over all rows, and everything that must not change its answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vqkit.kernels import nearest, reference

METRICS = ("euclidean", "dot", "cosine")


def oracle(x: Tensor, codes: Tensor, metric: str) -> Tensor:
    """Argmin over elementwise float64 scores, all of them formed: no matrix product, no expansion of the square."""
    x, codes = x.double(), codes.double()
    if metric == "euclidean":
        return torch.stack([(row - codes).square().sum(1).argmin() for row in x])
    if metric == "cosine":
        x, codes = (torch.nn.functional.normalize(rows, dim=1, eps=1e-300) for rows in (x, codes))
    return torch.stack([(row * codes).sum(1).argmax() for row in x])


def data_set(name: str, rows: int = 600, size: int = 300, depth: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(len(name))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, codes = normal(rows, depth), normal(size, depth)
    if name == "clustered":
        centers = 5 * normal(20, depth)
        x, codes = x * 0.3 + centers[torch.arange(rows) % 20], codes * 0.1 + centers[torch.arange(size) % 20]
    elif name == "tiny initial codes":
        codes = (2 * torch.rand(size, depth, generator=generator) - 1) / size
    elif name.startswith("offset"):
        x, codes = x + float(name.split()[1]), codes + float(name.split()[1])
    elif name == "unit norm":
        x, codes = (torch.nn.functional.normalize(rows, dim=1) for rows in (x, codes))
    elif name == "near duplicates":
        codes = codes[torch.arange(size) // 3] + 1e-6 * codes
    elif name == "wide range":
        x, codes = x * torch.logspace(-3, 3, rows)[:, None], codes * torch.logspace(-3, 3, size)[:, None]
    return x, codes


DATA = (
    "gaussian",
    "clustered",
    "tiny initial codes",
    "offset 10",
    "offset 100",
    "offset 1000",
    "offset 1e5",
    "unit norm",
    "near duplicates",
    "wide range",
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions, the float32 pass for every size, and the settings as they were."""
    monkeypatch.setattr(reference, "FEW_SCORES", 0)
    monkeypatch.setattr(reference, "_tile_shape", lambda rows, size, depth: (96, max(1, min(rows, 70))))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_equals_the_float64_argmin(name: str, metric: str) -> None:
    x, codes = data_set(name)
    assert torch.equal(nearest(x, codes, metric=metric).indices, oracle(x, codes, metric))


def test_the_shipped_tiles_equal_the_float64_argmin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for rows, size, depth in ((700, 1100, 40), (300, 9000, 5), (200, 1500, 130), (3, 50, 8)):
        x, codes = data_set("gaussian", rows, size, depth)
        assert torch.equal(nearest(x, codes).indices, oracle(x, codes, "euclidean"))


def test_the_fast_pass_decides_most_rows_and_only_right_ones() -> None:
    for name in DATA:
        for metric in METRICS:
            x, codes = data_set(name)
            finite, mean = torch.ones(len(codes), dtype=torch.bool), codes.double().mean(0).float().double()
            mean = torch.zeros_like(mean) if metric == "cosine" else mean
            indices, certain = reference._search_float32(x, codes, metric, finite, mean)
            assert torch.equal(indices[certain], oracle(x, codes, metric)[certain])
            if name in ("gaussian", "clustered", "unit norm"):
                assert certain.float().mean() > 0.9, (name, metric)


def test_the_error_bound_holds_and_is_not_slack_by_orders() -> None:
    """Scores of the float32 product against float64, on inputs with large errors (all terms of one sign)."""
    torch.manual_seed(0)
    x, codes = torch.rand(200, 512) + 1, torch.rand(200, 512) + 1
    bias = 0.5 * codes.double().square().sum(1)
    exact = bias[:, None] - codes.double() @ x.double().T
    computed = torch.addmm(bias.float()[:, None], codes, x.T, alpha=-1)
    error = (computed.double() - exact).abs().amax(0)
    bound = reference._error(x.norm(dim=1), codes.norm(dim=1).amax(), exact.amin(0).float(), "euclidean", 512)
    assert (error <= bound).all()
    assert (bound < 4 * 512 * 2**-24 * exact.abs().amax() + 4 * 512 * 2**-24 * bias.max()).all()


@pytest.mark.parametrize("metric", METRICS)
def test_ties_go_to_the_lowest_index(metric: str) -> None:
    x, codes = data_set("gaussian", size=130)
    repeated = torch.cat([codes, codes, codes])  # equal codes in the same tile and in others
    assert torch.equal(nearest(x, repeated, metric=metric).indices, nearest(x, codes, metric=metric).indices)
    assert (nearest(x, codes[:1].expand(100, -1), metric=metric).indices == 0).all()


def test_one_code_far_out_costs_neither_precision_nor_certainty() -> None:
    x, codes = data_set("gaussian")
    far = torch.cat([codes, 1e5 * codes[:1]])
    assert torch.equal(nearest(x, far).indices, oracle(x, codes, "euclidean"))
    mean = torch.zeros(24, dtype=torch.float64)
    certain = [
        reference._search_float32(x, book, "euclidean", torch.ones(len(book), dtype=torch.bool), mean)[1]
        for book in (codes, far)
    ]
    assert certain[1].float().mean() > 0.9


def test_symmetric_ties_go_to_the_lowest_index() -> None:
    """Rows in the middle of a cell of a grid that float32 holds exactly; in tenths they are no ties."""
    grid = torch.cartesian_prod(*[torch.arange(4.0)] * 3)
    corners = torch.cartesian_prod(*[torch.arange(3)] * 3)
    expected = corners[:, 0] * 16 + corners[:, 1] * 4 + corners[:, 2]
    assert torch.equal(nearest(corners + 0.5, grid).indices, expected)
    x = (corners + 0.5) * 0.1
    assert torch.equal(nearest(x, grid * 0.1).indices, oracle(x, grid * 0.1, "euclidean"))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["gaussian", "near duplicates", "offset 100", "offset 1e5"])
def test_any_split_of_the_batch_gives_the_same_codes(name: str, metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, codes = data_set(name, rows=192, size=2000, depth=64)
    whole = nearest(x, codes, metric=metric).indices
    for size in (1, 17, 64):
        assert torch.equal(torch.cat([nearest(part, codes, metric=metric).indices for part in x.split(size)]), whole)


@pytest.mark.parametrize("depth", [2, 8, 64])
@pytest.mark.parametrize("offset", [1e3, 1e5, 1e6])
def test_a_row_that_is_called_certain_is_right_however_far_the_data_lie(offset: float, depth: int) -> None:
    """Codes less one rounding of their mean and rows less another differ by a shift that no bound on |x| |e| covers."""
    generator = torch.Generator().manual_seed(depth)
    x, codes = (torch.randn(rows, depth, generator=generator) + offset for rows in (4096, 512))
    found = nearest(x, codes).indices
    distances = torch.cdist(x.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    excess = distances.gather(1, found[:, None])[:, 0] - distances.amin(1)
    assert excess.max() <= 1e-12 * distances.amin(1).max()


def test_any_number_of_threads_gives_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    x, codes = data_set("near duplicates", rows=400, size=700, depth=64)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            results.append(nearest(x, codes).indices)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


class Products(TorchDispatchMode):
    """Records the dtypes of matrix products and the largest tensor that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "bmm", "baddbmm"):
            self.dtypes.update(arg.dtype for arg in args if isinstance(arg, Tensor))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_lowered_matmul_precision_changes_nothing(precision: str) -> None:
    """Processors with bfloat16 units would round the inputs of a float32 product; so none may be formed."""
    x, codes = data_set("gaussian", rows=2000, size=500)
    expected = nearest(x, codes).indices
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        with Products() as products:
            indices = reference.nearest_indices(x, codes, "euclidean")
        assert products.dtypes == {torch.float64}
        assert torch.equal(indices, expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)
    with Products() as products:
        reference.nearest_indices(x, codes, "euclidean")
    assert torch.float32 in products.dtypes


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_changes_nothing(metric: str) -> None:
    x, codes = data_set("gaussian")
    expected = nearest(x, codes, metric=metric, return_scores=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = nearest(x, codes, metric=metric, return_scores=True)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores, expected.scores)


def test_half_precision_inputs_are_taken_at_their_values() -> None:
    x, codes = data_set("gaussian")
    for dtype in (torch.bfloat16, torch.float16):
        found = nearest(x.to(dtype), codes.to(dtype), return_scores=True)
        assert torch.equal(found.indices, oracle(x.to(dtype), codes.to(dtype), "euclidean"))
        assert found.scores.dtype == torch.float32


def test_float64_inputs_are_searched_in_float64() -> None:
    codes = torch.tensor([[1.0], [1.0 + 1e-12]], dtype=torch.float64)
    found = nearest(torch.tensor([[1.0 + 2e-12]], dtype=torch.float64), codes, return_scores=True)
    assert found.indices.tolist() == [1]
    assert found.scores.dtype == torch.float64


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_not_finite(metric: str) -> None:
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
def test_codes_that_are_not_finite_never_win(metric: str, value: float) -> None:
    x, codes = data_set("gaussian")
    broken = codes.clone()
    broken[::3, 2] = value
    kept = torch.arange(len(codes))[torch.arange(len(codes)) % 3 != 0]
    assert torch.equal(nearest(x, broken, metric=metric).indices, kept[oracle(x, codes[kept], metric)])
    assert (nearest(x, torch.full_like(codes, value), metric=metric).indices == 0).all()


def test_huge_and_tiny_values() -> None:
    for scale in (1e-30, 1e-20, 1e20, 1e30):
        x, codes = (scale * rows for rows in data_set("gaussian"))
        for metric in METRICS:
            assert torch.equal(nearest(x, codes, metric=metric).indices, oracle(x, codes, metric)), (scale, metric)


def test_zero_rows_and_codes_under_cosine() -> None:
    x, codes = data_set("gaussian")
    x[7], codes[11] = 0, 0
    found = nearest(x, codes, metric="cosine", return_scores=True)
    assert found.indices[7] == 0 and found.scores[7] == 0
    assert torch.equal(found.indices, oracle(x, codes, "cosine"))
    assert nearest(-codes[:1], codes[[0, 11]], metric="cosine").indices.tolist() == [1]  # cosine 0 beats cosine -1


def test_scores() -> None:
    x, codes = data_set("offset 1000")
    found = nearest(x, codes, return_scores=True)
    chosen = codes[found.indices]
    torch.testing.assert_close(found.scores, (x.double() - chosen.double()).square().sum(1).float())
    assert nearest(x, codes).scores is None
    found = nearest(x - 1000, codes - 1000, metric="dot", return_scores=True)
    torch.testing.assert_close(found.scores, ((x - 1000) @ (codes - 1000).T).amax(1))
    found = nearest(x - 1000, codes - 1000, metric="cosine", return_scores=True)
    cosine = torch.nn.functional.cosine_similarity((x - 1000)[:, None], (codes - 1000)[None], dim=-1)
    torch.testing.assert_close(found.scores, cosine.amax(1))


@given(st.integers(0, 150), st.integers(1, 150), st.integers(1, 20), st.sampled_from(METRICS), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_ragged_shapes(rows: int, size: int, depth: int, metric: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, codes = torch.randn(rows, depth, generator=generator), torch.randn(size, depth, generator=generator)
    found = nearest(x, codes, metric=metric).indices
    assert found.shape == (rows,) and found.dtype == torch.int64
    if rows and (depth > 1 or metric != "cosine"):  # in one dimension all cosines are 1 or -1: ties of rounding
        assert torch.equal(found, oracle(x, codes, metric))


def test_shapes_strides_and_gradients() -> None:
    x, codes = data_set("gaussian", rows=120)
    expected = nearest(x, codes).indices
    assert torch.equal(nearest(x.T.contiguous().T, codes.T.contiguous().T).indices, expected)
    assert torch.equal(nearest(x.repeat(1, 2)[:, :24], codes.repeat_interleave(2, 0)[::2]).indices, expected)
    assert torch.equal(nearest(x.view(2, 3, 20, 24), codes).indices, expected.view(2, 3, 20))
    assert nearest(x[0], codes).indices.shape == ()
    assert nearest(x.view(2, 60, 24)[:, :0], codes, return_scores=True).scores.shape == (2, 0)
    found = nearest(x.requires_grad_(), codes.requires_grad_(), return_scores=True)
    assert torch.equal(found.indices, expected) and not found.scores.requires_grad
    with torch.inference_mode():
        assert torch.equal(nearest(x, codes).indices, expected)


def test_memory_does_not_grow_with_rows_times_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, size, depth = 6000, 6000, 4
    for make in ("gaussian", "near duplicates"):
        x, codes = data_set(make, rows, size, depth)
        with Products() as products:
            reference.nearest_indices(x, codes, "euclidean")
        bound = 8 * max((rows + size) * depth, 4 * 2 * reference.TILE_SCORES)
        assert products.largest <= bound < 4 * rows * size


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_and_export() -> None:
    x, codes = data_set("gaussian", rows=64)

    class Search(torch.nn.Module):
        def forward(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
            found = nearest(2 * x, codes, metric="cosine", return_scores=True)
            return found.indices, found.scores

    expected = Search()(x, codes)
    for module in (
        torch.compile(Search(), fullgraph=True, backend="aot_eager"),
        torch.export.export(Search(), (x, codes), dynamic_shapes=({0: torch.export.Dim("n")}, None)).module(),
    ):
        for rows in (64, 33):
            found = module(x[:rows], codes)
            assert torch.equal(found[0], expected[0][:rows])
            torch.testing.assert_close(found[1], expected[1][:rows])


def test_the_operator_is_registered_right() -> None:
    x, codes = data_set("gaussian", rows=8, size=5, depth=3)
    torch.library.opcheck(torch.ops.vqkit.nearest.default, (x, codes, "dot"))
    torch.library.opcheck(torch.ops.vqkit.nearest.default, (x[:0], codes, "euclidean"))


@pytest.mark.parametrize(
    ("x", "codes", "metric", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), "dot", r"x has shape \(2, 3\), expected \(..., 5\)"),
        (torch.zeros(2, 3), torch.zeros(0, 3), "dot", r"codes has shape \(0, 3\), expected \(K, D\) with K >= 1"),
        (torch.zeros(2, 3), torch.zeros(3), "dot", r"codes has shape \(3,\), expected \(K, D\)"),
        (torch.zeros(2, 0), torch.zeros(3, 0), "dot", r"codes has shape \(3, 0\), expected .* D >= 1"),
        (torch.zeros(()), torch.zeros(3, 1), "dot", r"x has shape \(\)"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 3), "dot", "x has dtype torch.int64, expected"),
        (torch.zeros(2, 3), torch.zeros(4, 3).int(), "dot", "codes has dtype torch.int32, expected"),
        (torch.zeros(2, 3), torch.zeros(4, 3), "l2", "metric is 'l2', expected 'euclidean', 'dot' or 'cosine'"),
        (torch.zeros(2, 3), torch.zeros(4, 3, device="meta"), "dot", "codes is on meta, expected cpu"),
    ],
)
def test_wrong_arguments_are_named(x: Tensor, codes: Tensor, metric: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(x, codes, metric=metric)  # type: ignore[arg-type]
