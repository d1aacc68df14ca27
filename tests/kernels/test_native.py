"""The compiled search: every variant that runs here against the float64 order and the torch path, its build, and its
absence.

The tests of `nearest` run on it too (tests/kernels/conftest.py); these are of what only the compiled search has.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.few import few
from tests.kernels.data import DATA, METRICS, data_set, oracle
from tests.kernels.stand_ins import only, without
from tests.kernels.test_bound import lost_products
from tests.kernels.test_top_k import assert_same_where_clear, ranked
from tests.kernels.variants import compiled, needs_compiler
from vqkit.kernels import native, nearest, residual_nearest
from vqkit.kernels.native import build

built = pytest.mark.skipif(not native.variants(), reason="the compiled search is not built: make native")
MOST = native.MOST_CODES


@pytest.fixture(params=native.variants() or ("none",))
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with only(request.param):
        yield request.param


@pytest.fixture(params=[1, 2, 3], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_torch(x: Tensor, codes: Tensor, metric: str = "euclidean", k: int = 1, valid: Tensor | None = None) -> Tensor:
    found = nearest(x, codes, metric=metric, k=k, valid=valid, impl="torch")  # type: ignore[arg-type]
    return found.indices.view(len(x), k)


def by_native(x: Tensor, codes: Tensor, metric: str = "euclidean", k: int = 1, valid: Tensor | None = None) -> Tensor:
    return native.search(x[None], codes[None], valid if valid is None else valid[None], metric, k)[0]


@built
@pytest.mark.parametrize("metric", METRICS)
def test_ragged_sizes(variant: str, metric: str) -> None:
    """Around every block size: rows of a tile, codes of a panel, of a group and of the cache, depths of a register."""
    for rows in (1, 5, 6, 7, 12, 13, 100):
        for size in (1, 2, 7, 8, 9, 31, 33, 64, 129, 300):
            for depth in (1, 3, 4, 7, 8, 9, 17):
                if depth == 1 and metric == "cosine":
                    continue  # every cosine is 1 or -1: ties, which the order of rounding decides
                x, codes = normal(rows, depth, seed=rows), normal(size, depth, seed=size + 1)
                assert torch.equal(by_native(x, codes, metric)[:, 0], oracle(x, codes, metric)), (rows, size, depth)


@built
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", DATA)
def test_equals_the_float64_order(variant: str, name: str, metric: str) -> None:
    x, codes = data_set(name, rows=150, size=200)
    for k in (1, 2, 5):
        assert_same_where_clear(by_native(x, codes, metric, k), *ranked(x, codes, metric, k))


@built
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [100, MOST])
def test_equals_the_float64_order_for_many_codes(variant: str, k: int, metric: str) -> None:
    for rows, size, depth in ((150, 3000, 24), (40, k, 8), (40, k + 1, 8), (7, 1000, 65)):
        x, codes = data_set("gaussian", rows, size, depth)
        assert torch.equal(by_native(x, codes, metric, k), ranked(x, codes, metric, k)[0])


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
    if kind == "whole numbers":  # most codes tie with others, and many are equal
        x, codes = (torch.randint(-2, 3, (number, depth), generator=generator).float() for number in (rows, size))
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
    found = by_native(x, codes, metric, number, mask)
    assert torch.equal(found, by_torch(x, codes, metric, number, mask))
    for row, among_others in zip(x[:4, None], found, strict=False):
        assert torch.equal(by_native(row, codes, metric, number, mask)[0], among_others)


@built
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [1, 2, 10, MOST])
def test_ties_have_one_order_whichever_step_decides(variant: str, k: int, metric: str) -> None:
    """Few copies of each code stay in the list, more are looked at twice, and of still more all codes are compared."""
    x, codes = data_set("gaussian", 400, 150, 24)
    order = by_torch(x, codes, metric, 150)
    for copies, rows in ((2, 3), (2, 400), (20, 3), (20, 400), (k // 2 + 60, 30)):
        repeated = order[:rows, : -(-k // copies), None] + 150 * torch.arange(copies)
        found = by_native(x[:rows], codes.repeat(copies, 1), metric, k)
        assert torch.equal(found, repeated.flatten(1)[:, :k]), (copies, rows)


@built
@pytest.mark.parametrize("k", few([1, 2, 33, MOST], 1, MOST))
@pytest.mark.parametrize(
    ("rows", "size", "depth"),
    [
        (60, 9000, 16),
        (1, 9000, 3),
        pytest.param(5, 20_000, 8, marks=pytest.mark.slow),
        pytest.param(4500, 300, 2, marks=pytest.mark.slow),
    ],
)
def test_threads_share_rows_or_codes(variant: str, threads: int, rows: int, size: int, depth: int, k: int) -> None:
    """With the codes in parts, the lists of the parts are merged; some parts have no usable code."""
    x, codes = data_set("gaussian", rows, size, depth)
    valid = torch.arange(size) >= size // 2
    assert_same_where_clear(by_native(x, codes, k=k), *ranked(x, codes, "euclidean", k))
    assert torch.equal(by_native(x, codes, k=k, valid=valid), by_torch(x, codes, k=k, valid=valid))


@built
@pytest.mark.parametrize("k", [1, 12])
def test_groups_are_searched_in_one_call(variant: str, threads: int, k: int) -> None:
    x, codes = (torch.stack(groups) for groups in zip(*(data_set(name, 50, 140, 9) for name in DATA), strict=True))
    expected = torch.stack([by_torch(rows, book, "cosine", k) for rows, book in zip(x, codes, strict=True)])
    assert torch.equal(native.search(x, codes, None, "cosine", k), expected)


@built
def test_a_code_far_out_is_found_by_the_rows_near_it(variant: str) -> None:
    """Its length of 1e19 keeps it out of the tiles; of rows that need it for their k codes, all codes are compared."""
    x, codes = data_set("gaussian", 200, 90, 16)
    codes[7] = 1e19
    x[3] = 0.9e19
    for metric in METRICS:
        assert by_native(x, codes, metric)[3] == 7
        for k in (1, 2, 90):
            assert torch.equal(by_native(x, codes, metric, k), by_torch(x, codes, metric, k)), (metric, k)


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
    few(
        {
            "shipped": None,
            "lists": ("!(lists_.bounds()[r] > *limit)", "false"),  # as if it held all that matters
            "runs": ("<= width) ++end;", "<= 0) ++end;"),  # scores are in order, whatever their rounding errors
            "bound": (LOWERED, LOWERED.replace("= bound;", "= scores[0];")),  # too few of the later codes are taken
            "parts": (MERGED, "bounds_[row]"),  # what another part of the codes left out is forgotten
        },
        "shipped",
    ),
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


@built
def test_rows_far_from_all_codes_keep_their_digits(variant: str) -> None:
    """|x - e|^2 is 1e16 and differs by about 1 between the best two: sums of squares would lose the difference."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(40, 16, generator=generator)
    codes = torch.cat([codes, codes + 1e-7 * torch.randn(40, 16, generator=generator)])
    x = 1e8 * torch.nn.functional.normalize(torch.randn(400, 16, generator=generator), dim=1)
    scores = torch.stack([((0.5 * codes.double() - row) * codes.double()).sum(1) for row in x.double()])
    found = by_native(x, codes)[:, 0]
    two = scores.topk(2, largest=False).values
    clear = two[:, 1] - two[:, 0] > 1e-4
    assert clear.sum() > 300 and torch.equal(found[clear], scores.argmin(1)[clear])
    assert torch.equal(found, by_torch(x, codes)[:, 0])


@built
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e25, 5e37])
def test_scales_at_which_float32_overflows_or_underflows(variant: str, scale: float) -> None:
    x, codes = scale * normal(60, 6), scale * normal(40, 6, seed=1)
    for metric in METRICS:
        expected = oracle(x, codes, metric)
        assert torch.equal(by_native(x, codes, metric)[:, 0], expected), metric
        assert torch.equal(torch.cat([by_native(row, codes, metric)[:, 0] for row in x[:, None]]), expected), metric


@built
def test_levels_equal_the_loop(variant: str, threads: int) -> None:
    x = normal(130, 12)
    books = [0.5**level * normal(40 + level, 12, seed=level + 1) for level in range(6)]
    books[2][20:] = books[2][:22].clone()  # ties on the way
    with without(native):
        expected = residual_nearest(x, books)
    found = residual_nearest(x, books)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.quantized, expected.quantized)
    assert torch.equal(torch.cat([residual_nearest(row, books).indices for row in x[:, None]]), expected.indices)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("roundings", [None, "0.5 * (depth + 3)", "__builtin_sqrt(depth + 3)"])
def test_a_smaller_bound_certifies_a_wrong_code(tmp_path: Path, roundings: str | None) -> None:
    """On rows whose small terms are all lost: with half of the roundings counted, or their root, it is certain of the
    wrong code. The portable variant adds one after another, as the rows are made for.
    """
    x, codes, scores = lost_products()
    codes = torch.cat([codes, torch.zeros(14, codes.shape[1])])  # so that the centre is 0
    assert scores.argmin() == 0 and oracle(x, codes, "dot").tolist() == [1]
    replaced = None
    if roundings:
        shipped = "const double operations = depth + 3, relative = operations * 0x1p-24"
        replaced = (shipped, shipped.replace("depth + 3", roundings))
    search = compiled(tmp_path, "portable", replaced=replaced)
    twice = x.repeat(2, 1)  # a row alone would not be scanned
    assert search(twice, codes, "dot").tolist() == 2 * [1 if roundings is None else 0]


@built
def test_takes_only_what_it_can_search() -> None:
    x, codes = normal(2, 3)[None], normal(4, 3)[None]
    assert native.can_search(x, codes, 1) and native.can_search(x.half(), codes.bfloat16(), 1)
    assert native.can_search(x, codes, 128) and not native.can_search(x, codes, 129)
    assert not native.can_search(x.double(), codes, 1)
    assert not native.can_search(x.to("meta"), codes.to("meta"), 1)


@built
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"books": [torch.zeros(2, 4, 3)]}, "codes and x do not match"),
        ({"books": [torch.zeros(1, 4, 2)]}, "codes and x do not match"),
        ({"valid": torch.ones(1, 5, dtype=torch.bool)}, "valid and codes do not match"),
        ({"valid": torch.ones(1, 4)}, "valid has another dtype"),
        ({"x": torch.zeros(2, 3)}, "x has 2 dimensions, expected 3"),
        ({"x": torch.zeros(1, 2, 6)[..., ::2]}, "x has to be contiguous"),
        ({"k": 0}, "k is 0, expected 1 to 128"),
        ({"k": 129}, "k is 129, expected 1 to 128"),
        ({"books": [torch.zeros(1, 4, 3)] * 2, "k": 2}, "k is 2, expected 1 where there are several codebooks"),
    ],
)
def test_the_operator_checks_what_it_reads(changes: dict, message: str) -> None:
    """It walks raw memory: a wrong shape must not get that far, whoever calls it."""
    arguments = {"x": torch.zeros(1, 2, 3), "books": [torch.zeros(1, 4, 3)], "valid": None, "metric": 0, "k": 1}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vqkit_native.search(*(arguments | changes).values(), "")


@built
@pytest.mark.parametrize("k", few([1, 100], 1))
def test_memory_does_not_grow_with_rows_times_codes(k: int) -> None:
    """In a process of its own: the resident set beyond rows and codes, where an N x K matrix would need 1.6 GB."""
    code = (
        f"k = {k}\n"
        "import resource, torch\n"
        "from vqkit.kernels import native\n"
        "x, codes = torch.randn(1, 20_000, 4), torch.randn(1, 20_000, 4)\n"
        "assert native.can_search(x, codes, k)\n"
        "native.search(x[:, :200], codes[:, :200], None, 'euclidean', k)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "native.search(x, codes, None, 'euclidean', k)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(grown) < 16_384 + 20_000 * k * 8 // 1024  # KiB: besides the indices


def test_a_library_that_does_not_load_is_said_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "search-0.so"
    broken.write_bytes(b"not a library")
    monkeypatch.setattr(native, "library_path", lambda: broken)
    native.variants.cache_clear()
    try:
        with pytest.warns(
            UserWarning, match="cannot be loaded .* build it again with `python -m vqkit.kernels.native`"
        ):
            assert native.variants() == ()
        assert native.variant() is None
        monkeypatch.setattr(native, "library_path", lambda: tmp_path / "absent.so")
        native.variants.cache_clear()
        assert native.variants() == ()
    finally:
        native.variants.cache_clear()


def test_a_build_that_cannot_be_done_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"no C.. compiler: 'no-such-compiler' was not found; install g.. .12"):
        build.build()
    failing = tmp_path / "compiler"
    failing.write_text("#!/bin/sh\necho the reason >&2\nexit 1\n")
    failing.chmod(0o755)
    monkeypatch.setenv("CXX", str(failing))
    with pytest.raises(RuntimeError, match=r"this command failed:\n.*search_portable.cpp.*\nthe reason"):
        build.build()
    monkeypatch.setattr(build.platform, "system", lambda: "Windows")
    with pytest.raises(RuntimeError, match="platform is Windows: expected Linux or macOS"):
        build.build()
    assert not list(build.FOLDER.glob("tmp*"))  # nothing half built is left


def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So an upgrade never runs the search of an earlier version."""
    before = build.library_path()
    (tmp_path / "search.h").write_text("// changed")
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    build.library_path.cache_clear()
    try:
        assert build.library_path().name != before.name
    finally:
        build.library_path.cache_clear()
