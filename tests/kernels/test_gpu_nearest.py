"""The fused search against the float64 oracle: on a GPU where there is one, else in Triton's interpreter.

The interpreter takes milliseconds for each row and stands for a GPU with tiles of 32 rows by 32 codes, so the sizes are
small there, and still several tiles in each direction.
"""

import pytest
import torch

from tests.few import few
from tests.kernels.data import DATA, METRICS, data_set, oracle, oracle_scores
from tests.kernels.stand_ins import without
from vqkit.kernels import bounds, gpu, nearest, search_path
from vqkit.kernels.gpu import nearest as fused
from vqkit.kernels.gpu.split_operands import split_codes

ROWS = 600 if torch.cuda.is_available() else 16
CODES = 300 if torch.cuda.is_available() else 70


def search(device: torch.device, x: torch.Tensor, codes: torch.Tensor, **options) -> torch.Tensor:
    options = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in options.items()}
    return nearest(x.to(device), codes.to(device), **options).indices.cpu()


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
@pytest.mark.parametrize("name", few(DATA, "offset 1000", "near duplicates"))
def test_equals_the_float64_argmin(gpu_path: torch.device, name: str, metric: str) -> None:
    x, codes = data_set(name, rows=ROWS, size=CODES)
    assert torch.equal(search(gpu_path, x, codes, metric=metric), oracle(x, codes, metric))


@pytest.mark.parametrize("depth", few([1, 16, 17, 70, 300], 17))
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (33, 31), (4, 100)])
def test_any_size(gpu_path: torch.device, rows: int, size: int, depth: int) -> None:
    x, codes = data_set("gaussian", rows, size, depth)
    assert torch.equal(search(gpu_path, x, codes), oracle(x, codes, "euclidean"))


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
@pytest.mark.parametrize("types", [(torch.bfloat16,) * 2, (torch.float16,) * 2, (torch.float16, torch.float32)])
def test_half_precision_is_taken_at_its_values(gpu_path: torch.device, types: tuple, metric: str) -> None:
    x, codes = data_set("gaussian", rows=ROWS, size=CODES)
    x, codes = x.to(types[0]), codes.to(types[1])
    assert torch.equal(search(gpu_path, x, codes, metric=metric), oracle(x, codes, metric))


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codes_that_differ_in_last_bits(gpu_path: torch.device, dtype: torch.dtype, metric: str) -> None:
    """Rounded once more to the dtype, as unit vectors would be, they could not be told apart."""
    x, base = data_set("gaussian", rows=ROWS, size=4)
    copies = base.repeat(16, 1) * (1 + torch.finfo(dtype).eps * torch.randint(-2, 3, (64, 24)))
    x, codes = (base[torch.arange(ROWS) % 4] + 1e-3 * x).to(dtype), copies.to(dtype)
    assert torch.equal(search(gpu_path, x, codes, metric=metric), oracle(x, codes, metric))


@pytest.mark.parametrize("metric", few(METRICS, "cosine"))
def test_groups_and_masks(gpu_path: torch.device, metric: str) -> None:
    x, codes = data_set("offset 10", rows=16, size=100)
    x, codes = x.view(2, 8, -1), codes.view(2, 50, -1)
    valid = (torch.arange(50)[:, None] % 3 != torch.tensor([0, 1])).T
    found = search(gpu_path, x, codes, metric=metric, valid=valid)
    for group in range(2):
        scores = oracle_scores(x[group], codes[group], metric).masked_fill(~valid[group], torch.inf)
        assert torch.equal(found[group], scores.argmin(1))


@pytest.mark.slow
def test_more_groups_than_a_grid_holds(gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_GROUPS", 2)
    x, codes = torch.randn(5, 2, 4), torch.randn(5, 7, 4)
    expected = torch.stack([oracle(*group, "euclidean") for group in zip(x, codes, strict=True)])
    assert torch.equal(search(gpu_path, x, codes), expected)
    valid = torch.arange(7) > 0
    expected = torch.stack([oracle(a, b[1:], "euclidean") + 1 for a, b in zip(x, codes, strict=True)])
    assert torch.equal(search(gpu_path, x, codes, valid=valid.expand(5, 7)), expected)


def test_strides(gpu_path: torch.device) -> None:
    x, codes = data_set("gaussian", rows=9, size=40)
    found = search(gpu_path, x.T.contiguous().T, codes.repeat(1, 2)[:, : x.shape[1]])
    assert torch.equal(found, oracle(x, codes, "euclidean"))


def test_no_rows(gpu_path: torch.device) -> None:
    assert search(gpu_path, torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0,)


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_equal_codes_go_to_the_lowest_index(gpu_path: torch.device, metric: str) -> None:
    """Copies lie in the same group, in other groups and other tiles, and are more than a list holds."""
    x, codes = data_set("gaussian", rows=6, size=90)
    for copies in (torch.arange(90) // 2, torch.arange(90) % 30, torch.arange(90) % 45, torch.arange(90) % 2 + 1):
        found = search(gpu_path, x, codes[copies], metric=metric)
        assert torch.equal(found, oracle(x, codes[copies], metric))


@pytest.mark.parametrize("copies", few([2, 3], 2))
def test_any_of_a_few_near_copies(gpu_path: torch.device, copies: int) -> None:
    """Copies a tile apart are in one slot; which of them is nearest, halves cannot tell."""
    apart = 128 if gpu_path.type == "cuda" else 32
    noise, codes = data_set("gaussian", rows=34, size=apart)  # more rows than a tile has, so that codes are not split
    table = codes + 1e-6 * torch.randn(copies, *codes.shape)
    x = table.mean(0)[torch.arange(34) % apart] + 3e-7 * noise
    expected = oracle(x, table.flatten(0, 1), "euclidean")
    assert set((expected // apart).tolist()) == {*range(copies)}
    assert torch.equal(search(gpu_path, x, table.flatten(0, 1)), expected)


def test_masks_hold_where_all_codes_are_compared(gpu_path: torch.device) -> None:
    """A collapsed codebook: more codes tie than are written down, and nearer ones must not win."""
    codes = torch.ones(CODES, 4)
    codes[3], codes[9] = torch.zeros(4), torch.nan
    valid = torch.arange(CODES) > 3
    assert search(gpu_path, torch.zeros(2, 4), codes, valid=valid).tolist() == [4, 4]


@pytest.mark.parametrize("precision", ["exact", "high"])
def test_a_second_look_that_finds_nothing(
    gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """As when it adds in another order than the scan, and a score comes out just above the limit."""
    launch = gpu.launch

    def without_candidates(kernel, grid, *arguments, **options) -> None:
        if kernel is not fused.list_kernel:
            launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(gpu, "launch", without_candidates)
    x, codes = data_set("gaussian", rows=4, size=32, depth=8)
    assert torch.equal(search(gpu_path, x, codes.repeat(4, 1), precision=precision), oracle(x, codes, "euclidean"))


def test_rows_too_long_for_the_bound_take_the_torch_path(
    gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "MOST", 2.0**-13)
    monkeypatch.setattr(fused, "nearest", None)
    x, codes = data_set("gaussian", rows=4, size=20, depth=300)
    assert torch.equal(search(gpu_path, x, codes), oracle(x, codes, "euclidean"))


@pytest.mark.slow
@pytest.mark.parametrize("apart", [1, 10])
def test_multiples_of_a_code_have_one_cosine(gpu_path: torch.device, apart: int) -> None:
    """Their float64 scores differ by rounding, so that they are tied, and the lowest index wins."""
    codes = torch.randint(-8, 9, (10, 24)).float()
    factors = torch.tensor([3.0, 1.0, 7.0, 5.0])
    copies = torch.stack([factor * codes for factor in factors], dim=1 if apart == 1 else 0).flatten(0, 1)
    chosen = torch.arange(30) % 10
    x = codes[chosen] + torch.randn(30, 24)
    expected = oracle(x, codes, "cosine") * (4 if apart == 1 else 1)
    assert torch.equal(search(gpu_path, x, copies, metric="cosine"), expected)


def test_rows_between_codes_of_a_grid(gpu_path: torch.device) -> None:
    axis = torch.arange(9.0)
    codes = torch.cartesian_prod(axis, axis)
    x = torch.cartesian_prod(axis[:5] + 0.5, axis[:5] + 0.5)
    assert torch.equal(search(gpu_path, x, codes), oracle(x, codes, "euclidean"))


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_what_is_not_finite(gpu_path: torch.device, metric: str) -> None:
    x, codes = data_set("gaussian", rows=8, size=40)
    codes[0, 3], codes[7, 0], codes[33, 1] = torch.nan, torch.inf, -torch.inf
    x[2, 1], x[3, 2], x[4] = torch.nan, torch.inf, 0
    expected = oracle_scores(x, codes, metric).nan_to_num(torch.inf, torch.inf, torch.inf).argmin(1)
    expected[2] = expected[3] = 1  # they tie with all, so that the lowest usable code is theirs
    if metric != "euclidean":
        expected[4] = 1
    assert torch.equal(search(gpu_path, x, codes, metric=metric), expected)


def test_no_usable_code(gpu_path: torch.device) -> None:
    codes = torch.full((5, 4), torch.nan)
    valid = torch.tensor([False, False, True, True, False])
    assert search(gpu_path, torch.randn(3, 4), codes, valid=valid).tolist() == [2, 2, 2]


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
@pytest.mark.parametrize("scale", few([1e-25, 1e-12, 1e12, 1e19, 1e25], 1e-25, 1e25))
def test_far_from_one(gpu_path: torch.device, scale: float, metric: str) -> None:
    """Squares that overflow or vanish in float32, and halves that do."""
    x, codes = data_set("gaussian", rows=4, size=40, depth=8)
    assert torch.equal(search(gpu_path, x * scale, codes * scale, metric=metric), oracle(x, codes, metric))


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_one_code_far_out(gpu_path: torch.device, metric: str) -> None:
    x, codes = data_set("gaussian", rows=5, size=40, depth=8)
    codes[11] *= 1e20
    x[3] = codes[11] * (1 if metric == "euclidean" else 1e-20)
    assert torch.equal(search(gpu_path, x, codes, metric=metric), oracle(x, codes, metric))


@pytest.mark.slow
def test_less_than_exact(gpu_path: torch.device) -> None:
    """What is chosen is nearly the best, and the less of it is lost the more is asked for."""
    x, codes = data_set("gaussian", rows=ROWS, size=CODES)
    codes = codes[torch.arange(CODES) % 7] + 3e-4 * torch.randn(CODES, 24)
    scores, best = oracle_scores(x, codes, "euclidean"), oracle(x, codes, "euclidean")
    wrong = {}
    for precision, loss in (("exact", 0.0), ("high", 1e-4), ("fast", 0.05)):
        found = search(gpu_path, x, codes, precision=precision)
        wrong[precision] = int((found != best).sum())
        lost = scores.gather(1, found[:, None])[:, 0] - scores.amin(1)
        assert (lost <= loss * (x.square().sum(1) + codes.square().sum(1).amax())).all()
    assert wrong["exact"] == 0 <= wrong["high"] < wrong["fast"]


@pytest.mark.slow
def test_few_rows_need_a_second_look(gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """All do where codes are nearer to each other than halves can tell; hardly any does on ordinary data."""
    books = []
    monkeypatch.setattr(fused, "split_codes", lambda *args: books.append(split_codes(*args)) or books[-1])
    for name in ("gaussian", "near duplicates"):
        x, codes = data_set(name, rows=ROWS, size=CODES)
        search(gpu_path, x, codes[torch.randperm(CODES)])
    ordinary, close = (int(book.state[0, 3]) for book in books)
    assert ordinary <= ROWS // 8
    assert close > ROWS // 2


def test_an_architecture_whose_sums_are_unknown_is_not_exact(
    gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqkit.kernels.gpu.architecture", lambda device: 87)
    assert search_path(gpu_path)[:2] == ("triton sm_87", "high")


def test_the_path_is_told(gpu_path: torch.device) -> None:
    assert search_path(gpu_path)[:2] == (f"triton sm_{gpu.architecture(gpu_path)}", "exact")
    assert search_path(gpu_path, torch.float64)[:2] == ("torch", "exact")
    with without(gpu):
        assert search_path(gpu_path)[0] == "torch"
