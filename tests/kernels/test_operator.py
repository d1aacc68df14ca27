"""The search as an operator: memory, compile, export, vmap, dispatch, and what is refused."""

import resource

import pytest
import torch
from torch import Tensor

from tests.kernels.data import METRICS, data_set, oracle
from tests.kernels.graphs import Watch, traced
from tests.kernels.stand_ins import without
from vqkit.kernels import native, nearest
from vqkit.kernels.torch_search import search as torch_search


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", ["gaussian", "near duplicates"])
def test_memory_does_not_grow_with_rows_times_codes(torch_path: None, name: str, k: int) -> None:
    rows, size, depth = 6000, 6000, 4
    x, codes = data_set(name, rows, size, depth)
    with Watch() as watch:
        torch_search.nearest_indices(x[None], codes[None], None, "euclidean", k, "exact")
    bound = 8 * max((rows + size) * depth, 4 * 2 * torch_search.TILE_SCORES)
    assert watch.largest <= bound < 4 * rows * size


@pytest.mark.parametrize("k", [1, 3])
def test_half_a_million_codes(torch_path: None, k: int) -> None:
    """N x K would take 512 MB here; no tensor takes a tenth, and the process grows by less than half."""
    rows, size, depth = 256, 500_000, 4
    x, codes = torch.randn(rows, depth), torch.randn(size, depth)
    x[7] = torch.nan
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Watch() as watch:
        found = torch_search.nearest_indices(x[None], codes[None], None, "euclidean", k, "exact")[0]
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert watch.largest <= 32e6 < 4 * rows * size / 8
    assert grown < 4 * rows * size / 2
    kept = torch.tensor([0, 5, 64, 255])
    assert torch.equal(found[kept, 0], oracle(x[kept], codes, "euclidean"))
    assert found[7].tolist() == list(range(k))


def test_the_operator_is_registered_right() -> None:
    x, codes = (rows[None] for rows in data_set("gaussian", rows=8, size=5, depth=3))
    valid = torch.tensor([[True, False, True, True, False]])
    operator = torch.ops.vqkit.nearest.default
    for arguments in (
        (x, codes, None, "dot", 1, "exact"),
        (x[:, :0], codes, None, "euclidean", 1, "high"),
        (x.expand(2, -1, -1), codes.expand(2, -1, -1), valid.expand(2, -1), "cosine", 4, "exact"),
    ):
        torch.library.opcheck(operator, arguments)
        with without(native):
            torch.library.opcheck(operator, arguments)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_and_export() -> None:
    def search(x: Tensor, codes: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        best = nearest(2 * x, codes, metric="cosine", valid=valid, return_scores=True, return_margin=True)
        several = nearest(x, codes, k=3, return_scores=True)
        return (*best, several.indices, several.scores)

    x, codes = data_set("gaussian", rows=64)
    arguments = (x, codes, torch.arange(len(codes)) % 4 != 0)
    for module in traced(search, arguments, [0]):
        for rows in (64, 33):
            torch.testing.assert_close(module(x[:rows], *arguments[1:]), search(x[:rows], *arguments[1:]))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("metric", METRICS)
def test_vmap_gives_what_a_loop_gives(metric: str, k: int) -> None:
    x, codes = torch.randn(3, 20, 5), torch.randn(3, 30, 5)
    valid = torch.rand(3, 30) < 0.7

    def search(x: Tensor, codes: Tensor, valid: Tensor | None) -> Tensor:
        return torch.ops.vqkit.nearest(x[None], codes[None], None if valid is None else valid[None], metric, k, "exact")

    for dims, arguments in (
        ((0, None, None), (x, codes[0], None)),
        ((1, None, None), (x.movedim(0, 1), codes[0], valid[0])),
        ((0, 0, None), (x, codes, None)),
        ((None, 0, 0), (x[0], codes, valid)),
        ((None, 2, None), (x[0], codes.movedim(0, 2), valid[0])),
        ((0, None, 0), (x, codes[0], valid)),
    ):
        looped = [
            search(*(a if a is None or d is None else a.select(d, i) for a, d in zip(arguments, dims, strict=True)))
            for i in range(3)
        ]
        assert torch.equal(torch.vmap(search, in_dims=dims)(*arguments), torch.stack(looped))
    batched = torch.vmap(lambda x, m: nearest(x, codes[0], metric=metric, k=k, valid=m, return_scores=True)[:2])
    for found, mask, rows in zip(zip(*batched(x, valid), strict=True), valid, x, strict=True):
        alone = nearest(rows, codes[0], metric=metric, k=k, valid=mask, return_scores=True)
        assert torch.equal(found[0], alone.indices) and torch.equal(found[1], alone.scores)


def test_nested_vmap() -> None:
    x, codes = torch.randn(2, 3, 7, 4), torch.randn(2, 11, 4)
    found = torch.vmap(lambda x, codes: torch.vmap(lambda rows: nearest(rows, codes).indices)(x))(x, codes)
    assert torch.equal(found, nearest(x, codes).indices)


@pytest.mark.parametrize(
    ("x", "codes", "options", "message"),
    [
        ((2, 3), (4, 5), {}, r"x has shape \(2, 3\), expected \(..., 5\)"),
        ((2, 3), (0, 3), {}, r"codes has shape \(0, 3\), expected \(K, D\) or \(G, K, D\) with K >= 1"),
        ((2, 3), (3,), {}, r"codes has shape \(3,\), expected \(K, D\)"),
        ((2, 0), (3, 0), {}, r"codes has shape \(3, 0\), expected .* D >= 1"),
        ((2, 3), (1, 1, 4, 3), {}, r"codes has shape \(1, 1, 4, 3\), expected"),
        ((), (3, 1), {}, r"x has shape \(\)"),
        ((3,), (2, 4, 3), {}, r"x has shape \(3,\), expected \(2, ..., 3\)"),
        ((5, 3), (2, 4, 3), {}, r"x has shape \(5, 3\), expected \(2, ..., 3\)"),
        ((2, 3), (4, 3), {"metric": "l2"}, "metric is 'l2', expected 'euclidean', 'dot' or 'cosine'"),
        ((2, 3), (4, 3), {"k": 0}, "k is 0, expected 1 to 4"),
        ((2, 3), (4, 3), {"k": 5}, "k is 5, expected 1 to 4"),
        ((2, 3), (4, 3), {"precision": "best"}, "precision is 'best', expected 'exact', 'high', 'fast' or None"),
        ((2, 3), (4, 3), {"valid": torch.ones(3, dtype=torch.bool)}, r"valid has shape \(3,\), .* expected \(4,\)"),
        ((2, 3), (4, 3), {"valid": torch.ones(4)}, r"valid has .* dtype torch.float32"),
        ((2, 3), (4, 3), {"valid": torch.ones(4, device="meta") > 0}, "valid has .* is on meta"),
        ((2, 3), (4, 3), {"valid": torch.zeros(4, dtype=torch.bool)}, "valid is False for all codes of a group"),
        ((2, 3), (2, 4, 3), {"valid": torch.arange(8).view(2, 4) < 4}, "valid is False for all codes of a group"),
    ],
)
def test_wrong_arguments_are_named(x: tuple, codes: tuple, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(torch.zeros(x), torch.zeros(codes), **options)


def test_wrong_dtypes_and_devices_are_named() -> None:
    x, codes = torch.zeros(2, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"x has dtype torch\.int64"):
        nearest(x.long(), codes)
    with pytest.raises(ValueError, match=r"codes has dtype torch\.int32"):
        nearest(x, codes.int())
    with pytest.raises(ValueError, match="codes is on meta, expected cpu"):
        nearest(x, codes.to("meta"))


def test_a_device_without_float64_says_high(monkeypatch: pytest.MonkeyPatch, torch_path: None) -> None:
    """Such a device searches in float32 throughout, and refuses to promise more."""
    from vqkit import precision
    from vqkit.kernels import search_path

    assert precision.widest_dtype(torch.device("mps")) == torch.float32
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"cpu"})
    assert search_path("cpu")[:2] == ("torch", "high")
    x, codes = data_set("gaussian")
    with pytest.raises(ValueError, match="precision is 'exact', but cpu has no float64"):
        nearest(x, codes, precision="exact")
    with Watch() as watch:
        found = torch_search.nearest_indices(x[None], codes[None], None, "euclidean", 1, "high")[0, :, 0]
    assert watch.products == {torch.float32}
    assert (found == oracle(x, codes, "euclidean")).float().mean() > 0.99
    assert (nearest(x, codes[:1].expand(50, -1), k=2).indices == torch.tensor([0, 1])).all()
