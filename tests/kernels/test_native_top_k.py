"""The compiled search for several codes a row: every variant against the float64 order and the torch path."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.data import DATA, METRICS, data_set
from tests.kernels.stand_ins import only
from tests.kernels.test_top_k import assert_same_where_clear, ranked
from tests.kernels.variants import compiled, needs_compiler
from vqkit.kernels import native, nearest

built = pytest.mark.skipif(not native.variants(), reason="the compiled search is not built: make native")
MOST = native.MOST_CODES


@pytest.fixture(params=native.variants() or ("none",))
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with only(request.param):
        yield request.param


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_torch(x: Tensor, codes: Tensor, metric: str, k: int, valid: Tensor | None = None) -> Tensor:
    found = nearest(x, codes, metric=metric, k=k, valid=valid, impl="torch")  # type: ignore[arg-type]
    return found.indices.view(len(x), k)


def compiled_search(x: Tensor, codes: Tensor, metric: str, k: int, valid: Tensor | None = None) -> Tensor:
    return native.search(x[None], codes[None], valid if valid is None else valid[None], metric, k)[0]


def whole_numbers(rows: int, size: int, depth: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and codes of small whole numbers: most codes tie with others, and many are equal."""
    x, codes = (torch.randint(-2, 3, (number, depth), generator=generator).float() for number in (rows, size))
    return x, codes


@built
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_equals_the_float64_order(variant: str, name: str, metric: str) -> None:
    x, codes = data_set(name, rows=150, size=200)
    for k in (1, 2, 5):
        assert_same_where_clear(compiled_search(x, codes, metric, k), *ranked(x, codes, metric, k))


@built
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [100, MOST])
def test_equals_the_float64_order_for_many_codes(variant: str, k: int, metric: str) -> None:
    for rows, size, depth in ((150, 3000, 24), (40, k, 8), (40, k + 1, 8), (7, 1000, 65)):
        x, codes = data_set("gaussian", rows, size, depth)
        assert torch.equal(compiled_search(x, codes, metric, k), ranked(x, codes, metric, k)[0])


@built
@given(
    rows=st.integers(0, 70),
    size=st.integers(1, 300),
    depth=st.integers(1, 20),
    k=st.sampled_from([1, 2, 10, 100, MOST]),
    kind=st.sampled_from([*DATA, "whole numbers"]),
    metric=st.sampled_from(METRICS),
    copies=st.integers(1, 40),
    masked=st.booleans(),
    broken=st.booleans(),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_torch_path(
    variant: str,
    rows: int,
    size: int,
    depth: int,
    k: int,
    kind: str,
    metric: str,
    copies: int,
    masked: bool,
    broken: bool,
    seed: int,
) -> None:
    """Ties, equal codes, masks, rows and codes that are not finite, rows of zeros, fewer usable codes than k."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "whole numbers":
        x, codes = whole_numbers(rows, size, depth, generator)
    else:
        x, codes = data_set(kind, rows, size, depth)
    codes = codes[torch.randint(0, -(-size // copies), (size,), generator=generator)]
    if broken:
        codes[torch.rand(size, generator=generator) < 0.3, 0] = torch.nan
        codes[torch.rand(size, generator=generator) < 0.1, -1] = -torch.inf
        x[::3, 0], x[1::5], x[2::7] = torch.inf, torch.nan, 0
    valid = torch.rand(size, generator=generator) < 0.6
    valid[-1] = True
    mask, number = valid if masked else None, min(k, size)
    found = compiled_search(x, codes, metric, number, mask)
    assert torch.equal(found, by_torch(x, codes, metric, number, mask))


@built
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [2, 10, MOST])
def test_ties_have_one_order_whichever_step_decides(variant: str, k: int, metric: str) -> None:
    """Few copies of each code stay in the list, more are looked at twice, and of still more all codes are compared."""
    x, codes = data_set("gaussian", 200, 150, 24)
    order = by_torch(x, codes, metric, 150)
    for copies, rows in ((2, 200), (20, 3), (20, 200), (k // 2 + 60, 30)):
        repeated = order[:rows, : -(-k // copies), None] + 150 * torch.arange(copies)
        found = compiled_search(x[:rows], codes.repeat(copies, 1), metric, k)
        assert torch.equal(found, repeated.flatten(1)[:, :k]), (copies, rows)


@built
@pytest.mark.parametrize("k", [2, 33, MOST])
@pytest.mark.parametrize(("rows", "size", "depth"), [(5, 20_000, 8), (60, 9000, 16), (1, 9000, 3), (2500, 300, 2)])
def test_threads_share_rows_or_codes(variant: str, threads: int, rows: int, size: int, depth: int, k: int) -> None:
    """With the codes in parts, the lists of the parts are merged; some parts have no usable code."""
    x, codes = data_set("gaussian", rows, size, depth)
    valid = torch.arange(size) >= size // 2
    expected = ranked(x, codes, "euclidean", k)
    assert_same_where_clear(compiled_search(x, codes, "euclidean", k), *expected)
    found = compiled_search(x, codes, "euclidean", k, valid)
    assert torch.equal(found, by_torch(x, codes, "euclidean", k, valid))


@built
def test_groups_are_searched_in_one_call(variant: str, threads: int) -> None:
    x = torch.stack([data_set(name, 50, 140, 9)[0] for name in DATA])
    codes = torch.stack([data_set(name, 50, 140, 9)[1] for name in DATA])
    expected = torch.stack([by_torch(rows, book, "cosine", 12) for rows, book in zip(x, codes, strict=True)])
    assert torch.equal(native.search(x, codes, None, "cosine", 12), expected)


@built
def test_a_code_far_out_is_found_by_the_rows_near_it(variant: str) -> None:
    """Its length of 1e19 keeps it out of the tiles; of rows that need it for their k codes, all codes are compared."""
    x, codes = data_set("gaussian", 200, 90, 16)
    codes[7] = 1e19
    x[3] = 0.9e19
    for metric in METRICS:
        for k in (2, 90):
            assert torch.equal(compiled_search(x, codes, metric, k), by_torch(x, codes, metric, k)), (metric, k)


@built
def test_half_precision_is_searched_at_its_exact_values(variant: str) -> None:
    x, codes = data_set("gaussian", 80, 300, 16)
    x, codes = x.half(), codes.bfloat16()
    assert torch.equal(nearest(x, codes, k=20).indices, nearest(x.float(), codes.float(), k=20).indices)
    assert torch.equal(nearest(x, codes, k=20).indices, by_torch(x, codes, "euclidean", 20))


MERGED = "other.bounds_[row] < bounds_[row] ? other.bounds_[row] : bounds_[row]"
LOWERED = "    bounds_[row] = bound;\n    numbers_[row] = static_cast<int32_t>(kept);"


@needs_compiler
@pytest.mark.parametrize(
    "replaced",
    [
        None,
        ("!(lists_.bounds()[r] > *limit)", "false"),  # the list holds all that matters, whatever was left out
        ("<= width) ++end;", "<= 0) ++end;"),  # scores are in order, whatever their rounding errors
        (LOWERED, LOWERED.replace("= bound;", "= scores[0];")),  # the list takes too few of the later codes
        (MERGED, "bounds_[row]"),  # what another part of the codes left out is forgotten
    ],
    ids=["shipped", "lists", "runs", "bound", "parts"],
)
def test_near_ties_are_not_left_to_float32(tmp_path: Path, replaced: tuple[str, str] | None) -> None:
    """Codes of which a few, or more than a list holds, differ by rounding only, in float32 scores."""
    search = compiled(tmp_path, "portable", replaced=replaced)
    right = []
    for copies in (1, 4, 40):
        x, codes = data_set("gaussian", 100, 2000, 16)
        codes = codes[torch.arange(2000) // copies] + 2.0**-22 * codes
        expected = by_torch(x, codes, "euclidean", 10)
        right += [torch.equal(search(x, codes, "euclidean", parts=parts, k=10), expected) for parts in (1, 2)]
    assert all(right) == (replaced is None), right
