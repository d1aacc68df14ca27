"""The compiled search: every variant that runs here against the float64 argmin, its build, and its absence.

The tests of `nearest` run on it too (tests/kernels/conftest.py); these are of what only the compiled search has.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.kernels.data import oracle
from tests.kernels.stand_ins import only, without
from tests.kernels.test_bound import lost_products
from tests.kernels.variants import compiled, needs_compiler
from vqkit.kernels import native, nearest, residual_nearest
from vqkit.kernels.native import build

built = pytest.mark.skipif(not native.variants(), reason="the compiled search is not built: make native")
VARIANTS = native.variants() or ("none",)


@pytest.fixture(params=VARIANTS)
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


def by_torch(x: Tensor, codes: Tensor, metric: str = "euclidean") -> Tensor:
    return nearest(x, codes, metric=metric, impl="torch").indices  # type: ignore[arg-type]


def compiled_search(x: Tensor, codes: Tensor, metric: str = "euclidean", valid: Tensor | None = None) -> Tensor:
    return native.search(x[None], codes[None], valid if valid is None else valid[None], metric, 1)[0, :, 0]


@built
@pytest.mark.parametrize("metric", ["euclidean", "dot", "cosine"])
def test_ragged_sizes(variant: str, metric: str) -> None:
    """Around every block size: rows of a tile, codes of a panel, of a group and of the cache, depths of a register."""
    for rows in (1, 5, 6, 7, 12, 13, 100):
        for size in (1, 2, 7, 8, 9, 31, 33, 64, 129, 300):
            for depth in (1, 3, 4, 7, 8, 9, 17):
                if depth == 1 and metric == "cosine":
                    continue  # every cosine is 1 or -1: ties, which the order of rounding decides
                x, codes = normal(rows, depth, seed=rows), normal(size, depth, seed=size + 1)
                scores = torch.stack([(row - codes.double()).square().sum(1) for row in x.double()])
                if metric != "euclidean":
                    scores = -x.double() @ codes.double().T
                if metric == "cosine":
                    scores = scores / codes.double().norm(dim=1)
                found = compiled_search(x, codes, metric)
                assert torch.equal(found, scores.argmin(1)), (rows, size, depth)


@built
@pytest.mark.parametrize(("rows", "size", "depth"), [(5, 20_000, 8), (300, 2500, 16), (1, 9000, 3), (4500, 40, 2)])
def test_threads_share_rows_or_codes(variant: str, threads: int, rows: int, size: int, depth: int) -> None:
    x, codes = normal(rows, depth), normal(size, depth, seed=1)
    valid = torch.ones(size, dtype=torch.bool)
    valid[: size // 2] = False
    assert torch.equal(compiled_search(x, codes), by_torch(x, codes))
    found = compiled_search(x, codes, valid=valid)
    assert torch.equal(found, by_torch(x, codes[size // 2 :]) + size // 2)


@built
def test_groups_are_searched_in_one_call(variant: str, threads: int) -> None:
    x, codes = normal(7, 50, 9), normal(7, 70, 9, seed=1)
    expected = torch.stack([by_torch(rows, book) for rows, book in zip(x, codes, strict=True)])
    assert torch.equal(native.search(x, codes, None, "euclidean", 1)[..., 0], expected)


@built
def test_rows_far_from_all_codes_keep_their_digits(variant: str) -> None:
    """|x - e|^2 is 1e16 and differs by about 1 between the best two: sums of squares would lose the difference."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(40, 16, generator=generator)
    codes = torch.cat([codes, codes + 1e-7 * torch.randn(40, 16, generator=generator)])
    x = 1e8 * torch.nn.functional.normalize(torch.randn(400, 16, generator=generator), dim=1)
    scores = torch.stack([((0.5 * codes.double() - row) * codes.double()).sum(1) for row in x.double()])
    found = compiled_search(x, codes)
    two = scores.topk(2, largest=False).values
    clear = two[:, 1] - two[:, 0] > 1e-4
    assert clear.sum() > 300 and torch.equal(found[clear], scores.argmin(1)[clear])
    assert torch.equal(found, by_torch(x, codes))


@built
@pytest.mark.parametrize("metric", ["euclidean", "dot", "cosine"])
def test_ties_go_to_the_lowest_index_whichever_step_decides(variant: str, metric: str) -> None:
    """Few undecided rows are searched alone, many are looked at twice, and more ties than it collects search all."""
    codes = normal(200, 24)
    x = normal(400, 24, seed=1)
    expected = by_torch(x, codes, metric)
    for copies, rows in ((2, 3), (2, 400), (20, 400), (60, 30)):
        found = compiled_search(x[:rows], codes.repeat(copies, 1), metric)
        assert torch.equal(found, expected[:rows]), (copies, rows)


@built
def test_a_code_that_is_not_finite_never_wins_and_a_row_gets_the_first_usable(variant: str) -> None:
    x, codes = normal(40, 8), normal(50, 8, seed=1)
    codes[::2, 3] = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(9)[:25]
    x[7, 0], x[9] = torch.nan, torch.inf
    found = compiled_search(x, codes)
    finite = [row for row in range(40) if row not in (7, 9)]
    assert torch.equal(found[finite], by_torch(x[finite], codes[1::2]) * 2 + 1)
    assert found[7] == found[9] == 1


@built
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e25, 5e37])
def test_scales_at_which_float32_overflows_or_underflows(variant: str, scale: float) -> None:
    x, codes = scale * normal(60, 6), scale * normal(40, 6, seed=1)
    for metric in ("euclidean", "dot", "cosine"):
        a, b = x.double(), codes.double()
        scores = torch.cdist(a, b) if metric == "euclidean" else -(a @ b.T)
        scores = scores / b.norm(dim=1) if metric == "cosine" else scores
        assert torch.equal(compiled_search(x, codes, metric), scores.argmin(1)), metric


@built
def test_levels_equal_the_loop(variant: str, threads: int) -> None:
    x = normal(130, 12)
    books = [0.5**level * normal(40 + level, 12, seed=level + 1) for level in range(6)]
    books[2][20:] = books[2][:22].clone()  # ties on the way
    with without(native):
        expected = residual_nearest(x, books)
    found = residual_nearest(x, books)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.quantized, expected.quantized)


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
    assert search(x, codes, "dot").tolist() == [1 if roundings is None else 0]


@built
def test_one_code_far_out_leaves_the_others_to_float32(variant: str) -> None:
    """With a length of 1e19 its scores could overflow: it is left out of the tiles, and found by rows that are near."""
    x, codes = normal(300, 16), normal(200, 16, seed=1)
    codes[7] = 1e19
    x[3] = 0.9e19
    for metric in ("euclidean", "dot", "cosine"):
        found = compiled_search(x, codes, metric)
        assert torch.equal(found, oracle(x, codes, metric)) and found[3] == 7


@built
def test_takes_only_what_it_can_search() -> None:
    x, codes = normal(2, 3)[None], normal(4, 3)[None]
    assert native.can_search(x, codes, 1) and native.can_search(x.half(), codes.bfloat16(), 1)
    assert native.can_search(x, codes, 128) and not native.can_search(x, codes, 129)
    assert not native.can_search(x.double(), codes, 1)
    assert not native.can_search(x.to("meta"), codes.to("meta"), 1)


@built
@pytest.mark.parametrize(
    ("x", "codes", "valid", "message"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(2, 4, 3), None, "codes and x do not match"),
        (torch.zeros(1, 2, 3), torch.zeros(1, 4, 2), None, "codes and x do not match"),
        (
            torch.zeros(1, 2, 3),
            torch.zeros(1, 4, 3),
            torch.ones(1, 5, dtype=torch.bool),
            "valid and codes do not match",
        ),
        (torch.zeros(1, 2, 3), torch.zeros(1, 4, 3), torch.ones(1, 4), "valid has another dtype"),
        (torch.zeros(2, 3), torch.zeros(1, 4, 3), None, "x has 2 dimensions, expected 3"),
        (torch.zeros(1, 2, 6)[..., ::2], torch.zeros(1, 4, 3), None, "x has to be contiguous"),
    ],
)
def test_the_operator_checks_what_it_reads(x: Tensor, codes: Tensor, valid: Tensor | None, message: str) -> None:
    """It walks raw memory: a wrong shape must not get that far, whoever calls it."""
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vqkit_native.search(x, [codes], valid, 0, 1, "")


@built
@pytest.mark.parametrize(
    ("books", "k", "message"),
    [
        (1, 0, "k is 0, expected 1 to 128"),
        (1, 129, "k is 129, expected 1 to 128"),
        (2, 2, "k is 2, expected 1 where there are several codebooks"),
    ],
)
def test_the_operator_checks_k(books: int, k: int, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.vqkit_native.search(torch.zeros(1, 2, 3), [torch.zeros(1, 4, 3)] * books, None, 0, k, "")


@built
@pytest.mark.parametrize("k", [1, 100])
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
