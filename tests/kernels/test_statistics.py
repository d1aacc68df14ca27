"""Counts and sums by segment, in plain torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.graphs import Watch, traced, with_threads
from tests.refusals import refused
from vqkit.kernels import naive, segment_stats, statistics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_one_hot_product(dtype: torch.dtype, weighted: bool) -> None:
    x, indices = torch.randn(300, 5).to(dtype), torch.randint(-2, 40, (300,))
    weights = torch.rand(300, dtype=torch.float64) if weighted else None
    found = segment_stats(x, indices, 50, weights=weights)
    expected = naive.segment_stats(x, indices, 50, weights=weights)
    assert found.sums.dtype == found.counts.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.counts.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.sums.double(), expected[1], rtol=1e-5, atol=1e-5)
    assert (found.counts[40:] == 0).all() and (found.sums[40:] == 0).all()


@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 5), st.sampled_from([1, 7, 2**16]), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_whole_numbers_add_up_exactly(rows: int, num_segments: int, depth: int, chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-1000, 1000, (rows, depth), generator=generator).to(torch.float32)
    indices = torch.randint(-1, num_segments, (rows,), generator=generator)
    weights = torch.randint(0, 3, (rows,), generator=generator).to(torch.float32)
    counts, sums = naive.segment_stats(x, indices, num_segments, weights=weights)
    before, statistics.CHUNK = statistics.CHUNK, chunk
    try:
        found = segment_stats(x, indices.int(), num_segments, weights=weights, dtype=torch.float64)
    finally:
        statistics.CHUNK = before
    assert torch.equal(found.counts, counts) and torch.equal(found.sums, sums)


def test_large_batches() -> None:
    rows, num_segments = 200_000, 37
    x = torch.arange(rows, dtype=torch.float32)[:, None] % 13
    indices = torch.arange(rows) * 7919 % num_segments
    found = segment_stats(x, indices, num_segments)
    assert torch.equal(found.counts, torch.bincount(indices, minlength=num_segments).float())
    assert torch.equal(found.sums.double(), naive.segment_stats(x, indices, num_segments)[1])


def test_counts_go_past_the_last_whole_number_of_float32() -> None:
    rows = 2**24 + 2  # adding ones in float32 ends at 2^24
    found = segment_stats(torch.empty(rows, 0), torch.zeros(1, dtype=torch.int64).expand(rows), 1)
    assert found.counts.item() == rows


def test_empty_segments_no_rows_and_rows_left_out() -> None:
    x = torch.randn(6, 2)
    nothing = torch.zeros(4), torch.zeros(4, 2)
    none, left_out = torch.zeros(0, dtype=torch.int64), torch.full((6,), -1)
    for found in (segment_stats(x[:0], none, 4), segment_stats(x, left_out, 4)):
        torch.testing.assert_close((found.counts, found.sums), nothing)
    for num_segments in (1, 3):
        found = segment_stats(x, torch.zeros(6, dtype=torch.int64), num_segments)
        assert found.counts.tolist() == [6.0] + [0.0] * (num_segments - 1)
        torch.testing.assert_close(found.sums[0], x.sum(0))


def test_what_is_left_out_may_hold_anything() -> None:
    x, indices, weights = torch.randn(6, 2), torch.tensor([0, -1, 1, 1, -7, 0]), torch.ones(6)
    expected = segment_stats(x[[0, 2, 5]], indices[[0, 2, 5]], 2)
    x[[1, 4]], x[3], weights[3], weights[1] = torch.nan, torch.inf, 0, torch.nan
    found = segment_stats(x, indices, 2, weights=weights)
    torch.testing.assert_close(found, expected)


def test_one_tensor_for_the_collective() -> None:
    x, indices = torch.randn(30, 3), torch.randint(5, (30,))
    found = segment_stats(x, indices, 5)
    assert found.packed.shape == (5 + 5 * 3,) and found.packed.is_contiguous()
    assert torch.equal(found.packed, torch.cat([found.counts, found.sums.flatten()]))
    counts, sums = found.counts.clone(), found.sums.clone()
    found.packed.mul_(2)  # as a collective does, in place: counts and sums are views
    assert torch.equal(found.counts, 2 * counts) and torch.equal(found.sums, 2 * sums)
    counts_alone = segment_stats(x[:, :0], indices, 5)
    assert torch.equal(counts_alone.packed, counts)


@pytest.mark.parametrize("weighted", [False, True])
def test_any_number_of_threads_gives_the_same_bits(weighted: bool) -> None:
    x, indices = torch.randn(20_000, 16), torch.randint(7, (20_000,))  # long runs: the order of additions would show
    weights = torch.rand(20_000) if weighted else None
    results = with_threads((1, 2, 3, 8), lambda: segment_stats(x, indices, 7, weights=weights).packed)
    assert all(torch.equal(result, results[0]) for result in results)
    order = torch.randperm(20_000)
    shuffled = segment_stats(x[order], indices[order], 7).sums
    assert weighted or not torch.equal(shuffled, results[0][7:].view(7, -1))  # it could have shown


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gpu_is_deterministic(dtype: torch.dtype) -> None:
    """Float32 always, by the fused kernels; float64 where it is told to be."""
    x, indices, weights = torch.randn(20_000, 16), torch.randint(-1, 7, (20_000,)), torch.rand(20_000)
    expected = segment_stats(x, indices, 7, weights=weights, dtype=torch.float64).packed
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(dtype == torch.float64)
    try:
        found = [
            segment_stats(x.cuda(), indices.cuda(), 7, weights=weights.cuda(), dtype=dtype).packed for _ in range(3)
        ]
    finally:
        torch.use_deterministic_algorithms(before)
    torch.testing.assert_close(found[0].double().cpu(), expected, rtol=1e-4, atol=1e-2)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_memory_is_that_of_the_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "CHUNK", 2**10)
    x, indices = torch.randn(4000, 8), torch.randint(3000, (4000,))
    for weights in (None, torch.rand(4000)):
        with Watch() as watch:
            statistics._segment_stats(x, indices, 3000, weights, torch.float32)
        assert watch.largest == 4 * (3000 + 3001 * 8) < 4 * x.numel()  # no copy of x, no one-hot


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compile_and_export() -> None:
    x, indices = torch.randn(40, 3), torch.randint(-1, 6, (40,))

    def statistics(x: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        return segment_stats(2 * x, indices, 6)[:2]

    compiled, exported = traced(statistics, (x, indices), [0, 1])
    for module in (compiled, exported):
        for number in (40, 11):
            torch.testing.assert_close(module(x[:number], indices[:number]), statistics(x[:number], indices[:number]))
    with pytest.raises(ValueError, match="indices holds 6"):
        exported(x, indices + (indices == 5))


def test_the_operator_is_registered_right() -> None:
    x, indices = torch.randn(9, 3), torch.randint(-1, 6, (9,))
    operator = torch.ops.vqkit.segment_stats.default
    torch.library.opcheck(operator, (x, indices, 6, None, torch.float32))
    torch.library.opcheck(operator, (x[:0], indices[:0], 6, torch.rand(0), torch.float64))


def test_nothing_is_differentiated() -> None:
    found = segment_stats(torch.randn(3, 2, requires_grad=True), torch.tensor([0, 1, 0]), 2)
    assert not found.sums.requires_grad


test_wrong_arguments_are_named = refused(
    ({"x": torch.zeros(3)}, r"x has shape \(3,\)"),
    ({"x": torch.zeros(3, 2).int()}, "x has .* dtype torch.int32"),
    ({"indices": torch.zeros(3)}, "indices has dtype torch.float32, expected integers"),
    ({"indices": torch.zeros(2, dtype=torch.int64)}, r"indices has shape \(2,\) .* expected \(3,\)"),
    ({"indices": torch.tensor([0, 4, 1])}, "indices holds 4, expected values below 4"),
    ({"weights": torch.zeros(4)}, r"weights has shape \(4,\)"),
    ({"weights": torch.zeros(3).int()}, "weights has dtype torch.int32"),
    ({"num_segments": 0}, "num_segments is 0, expected at least 1"),
    ({"dtype": torch.float16}, "dtype is torch.float16, expected torch.float32"),
    by=lambda changes: segment_stats(
        **{"x": torch.zeros(3, 2), "indices": torch.zeros(3, dtype=torch.int64), "num_segments": 4} | changes
    ),
)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.uint8, 256), (torch.uint8, 300), (torch.int8, 128), (torch.int16, 2**15)]
)
def test_narrow_indices_may_use_their_whole_range(dtype: torch.dtype, size: int) -> None:
    indices = torch.tensor([0, torch.iinfo(dtype).max, 50]).to(dtype)
    found = segment_stats(torch.ones(3, 2), indices, size)
    assert torch.equal(found.counts, torch.bincount(indices.long(), minlength=size).float())
