"""All levels of a residual search in one launch, against the loop over levels in plain torch."""

import pytest
import torch
from torch import Tensor

from tests.few import few
from tests.kernels.stand_ins import without
from vqkit.kernels import gpu, native, residual_nearest
from vqkit.kernels.gpu.tiles import LONGER, TABLE

METRICS = ("euclidean", "dot")
pytestmark = pytest.mark.usefixtures("poisoned_memory")


class Launches(list[str]):
    """Names of the kernels that have started.

    Attributes:
        listed: how many rows the last search of all levels left to the second launch.
    """

    listed = -1


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    names, launch = Launches(), gpu.launch

    def counted(kernel: object, *arguments: object, **options: object) -> None:
        names.append(kernel.fn.__name__)
        if names[-1] == "settle_levels_kernel":
            names.listed = int(dict(zip(kernel.arg_names, arguments[1:], strict=False))["count_ptr"])
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(gpu, "launch", counted)
    return names


def problem(rows: int = 35, depth: int = 6, sizes: tuple[int, ...] = (40, 17, 20)) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    books = [0.6**level * torch.randn(size, depth, generator=generator) for level, size in enumerate(sizes)]
    return torch.randn(rows, depth, generator=generator), books


def check(device: torch.device, x: Tensor, books: list[Tensor], metric: str = "euclidean") -> None:
    """The codes are those of the loop on a processor."""
    with without(gpu), without(native):
        expected = residual_nearest(x, books, metric=metric)
    found = residual_nearest(x.to(device), [book.to(device) for book in books], metric=metric)
    assert torch.equal(found.indices.cpu(), expected.indices)
    torch.testing.assert_close(found.quantized.cpu(), expected.quantized, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
@pytest.mark.parametrize(("rows", "depth", "sizes"), [(50, 12, (40, 33, 50)), (1, 1, (1,)), (17, 17, (1, 2, 1))])
def test_equals_the_loop(
    gpu_path: torch.device, launches: Launches, metric: str, rows: int, depth: int, sizes: tuple[int, ...]
) -> None:
    check(gpu_path, *problem(rows, depth, sizes), metric)
    assert (
        launches.count("levels_kernel") == launches.count("settle_levels_kernel") == 1 and "scan_kernel" not in launches
    )
    assert launches.listed <= 1 or depth == 1


@pytest.mark.slow
def test_long_rows_are_multiplied_in_chunks(
    gpu_path: torch.device, launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entries in TABLE["levels"].values():
        monkeypatch.setitem(entries, LONGER, entries[LONGER]._replace(depth=16))
    check(gpu_path, *problem(rows=18, depth=35, sizes=(20, 20)))
    assert launches.listed <= 1


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_pairs_of_equal_codes_are_decided_at_once(gpu_path: torch.device, launches: Launches, metric: str) -> None:
    x, books = problem(depth=4)
    books[0][20:40] = books[0][:20].flip(0)
    check(gpu_path, x, books[:1], metric)
    assert launches.listed <= 1


@pytest.mark.slow
@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_more_equal_codes_are_listed(gpu_path: torch.device, launches: Launches, metric: str) -> None:
    x, books = problem(rows=6, depth=4, sizes=(8, 17))
    books[1][4:16] = books[1][:4].repeat(3, 1)
    books[1][16] = books[1][0]  # in the same slot of the interpreter's tiles
    check(gpu_path, x, books, metric)
    assert launches.listed >= 3


@pytest.mark.parametrize(("size", "rows"), [(20, 48), (64, 8)])
def test_two_codes_that_only_float64_tells_apart(
    gpu_path: torch.device, launches: Launches, size: int, rows: int
) -> None:
    """Codes 64 apart fall into one slot of any tile, which keeps one of them: these rows must be listed."""
    generator = torch.Generator().manual_seed(1)
    codes = torch.randn(size, 16, generator=generator).repeat(2, 1)
    codes[torch.arange(2 * size), torch.randint(16, (2 * size,), generator=generator)] *= 1 + 2.0**-22
    chosen = torch.randint(2 * size, (rows,), generator=generator)
    check(gpu_path, codes[chosen] + 0.1 * torch.randn(rows, 16, generator=generator), [codes])
    assert launches.listed <= 1 if size == 20 else launches.listed == rows


def test_symmetric_grids_have_ties(gpu_path: torch.device) -> None:
    grid = torch.cartesian_prod(torch.arange(-2.0, 3), torch.arange(-2.0, 3))
    x = torch.cartesian_prod(torch.arange(-2.5, 3), torch.arange(-2.0, 3))[:20]  # between two codes each
    check(gpu_path, x, [grid.flip(0), 0.5 * grid])


@pytest.mark.slow
def test_codes_far_from_the_origin(gpu_path: torch.device, launches: Launches) -> None:
    x, books = problem()
    check(gpu_path, x + 1000, [books[0] + 1000, *books[1:]])
    assert launches.listed <= 1


@pytest.mark.slow
def test_tiny_numbers(gpu_path: torch.device) -> None:
    x, books = problem(rows=3, sizes=(8, 8))
    check(gpu_path, 1e-20 * x, [1e-20 * book for book in books])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:(overflow|invalid value|All-NaN) .*:RuntimeWarning")  # the interpreter's arithmetic
@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_rows_and_codes_that_are_not_finite_or_huge(gpu_path: torch.device, metric: str) -> None:
    x, books = problem(rows=8, sizes=(8, 8, 4))
    x[0, 3], x[1], x[2], x[3], x[4], x[5, 0] = torch.nan, torch.inf, -torch.inf, 1e19, 0, 3e38
    books[0][0], books[1][:5], books[2][3] = torch.nan, torch.inf, 0
    check(gpu_path, x, books, metric)


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
@pytest.mark.slow
def test_rows_just_too_long_for_products(gpu_path: torch.device, metric: str) -> None:
    """Their coordinates from 2^62 on are left out of the products, so that these prove nothing."""
    x, books = problem(rows=9)
    x *= 1e18
    x[::2, 0] = 5e18
    check(gpu_path, x, [1e18 * book for book in books], metric)


@pytest.mark.parametrize("metric", few(METRICS, "euclidean"))
def test_a_code_that_products_would_overflow_with(gpu_path: torch.device, metric: str) -> None:
    x, books = problem(rows=3, sizes=(8,))
    books[0][7], x[1] = 2e19, 1e19
    check(gpu_path, x, books, metric)


@pytest.mark.slow
def test_codebooks_without_a_finite_code(gpu_path: torch.device) -> None:
    x, books = problem(rows=3)
    books[1][:] = torch.nan
    check(gpu_path, x, books)


@pytest.mark.parametrize(
    "left_out",
    few(["cosine", "long rows", "unequal codebooks", "few rows and many codes", "no proof"], "unequal codebooks"),
)
def test_what_is_searched_level_by_level(
    gpu_path: torch.device, launches: Launches, left_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = pytest.importorskip("vqkit.kernels.gpu.residual")
    x, books = problem(rows=3, sizes=(20, 17))
    if left_out == "long rows":
        monkeypatch.setattr(fused, "DEEPEST", 5)
    elif left_out == "unequal codebooks":
        x, books = problem(rows=2, sizes=(8, 1, 1))
    elif left_out == "few rows and many codes":
        monkeypatch.setattr(fused, "FEW_CODES", 19)
        monkeypatch.setattr(gpu, "multiprocessors", lambda device: 2)
    elif left_out == "no proof":
        monkeypatch.setattr(fused, "is_proven", lambda architecture: False)
    check(gpu_path, x, books, "cosine" if left_out == "cosine" else "euclidean")
    assert "levels_kernel" not in launches


def test_no_rows(gpu_path: torch.device) -> None:
    x, books = problem(rows=0)
    assert residual_nearest(x.to(gpu_path), [book.to(gpu_path) for book in books]).indices.shape == (0, 3)


@pytest.mark.slow
def test_rows_do_not_depend_on_each_other(gpu_path: torch.device) -> None:
    x, books = problem(rows=18, sizes=(20, 20))
    x, books = x.to(gpu_path), [book.to(gpu_path) for book in books]
    found = residual_nearest(x, books).indices
    assert torch.equal(residual_nearest(x[7:9], books).indices, found[7:9])


def test_the_operator_is_registered_right(gpu_path: torch.device) -> None:
    x, books = problem(rows=2, sizes=(4, 4))
    books = [book.to(gpu_path) for book in books]
    arguments = x.to(gpu_path), books[:1], "euclidean"
    checks = "test_schema", "test_faketensor"  # `test_residual.py` makes the others
    torch.library.opcheck(torch.ops.vqkit.residual_nearest.default, arguments, test_utils=checks)
