"""Counts and sums by segment in the GPU's kernels, which have several chunks and passes even in the interpreter."""

import pytest
import torch
from torch import Tensor

from tests.few import few
from vqkit.kernels import gpu, naive, segment_stats

NUM_SEGMENTS = 9
pytestmark = pytest.mark.usefixtures("poisoned_memory")


def problem(device: torch.device, indices: Tensor, depth: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(len(indices), depth, generator=generator).to(device, dtype)


def random_indices(device: torch.device) -> Tensor:
    rows = 61 if device.type == "cpu" else 6100  # the interpreter's chunks are small, and it is slow
    return torch.randint(-2, NUM_SEGMENTS - 1, (rows,), generator=torch.Generator().manual_seed(1))


def expected(x: Tensor, indices: Tensor, num_segments: int, weights: Tensor | None = None) -> Tensor:
    """(K + K D,) in float64."""
    weights = None if weights is None else weights.cpu()
    counts, sums = naive.segment_stats(x.cpu(), indices.cpu(), num_segments, weights=weights)
    return torch.cat([counts, sums.flatten()])


@pytest.mark.parametrize("dtype", few([torch.float32, torch.bfloat16, torch.float16], torch.bfloat16))
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_one_hot_product(gpu_path: torch.device, dtype: torch.dtype, weighted: bool) -> None:
    indices = random_indices(gpu_path)
    x = problem(gpu_path, indices, dtype=dtype)
    weights = torch.rand(len(x), device=gpu_path) if weighted else None
    found = segment_stats(x, indices.to(gpu_path), NUM_SEGMENTS, weights=weights)
    assert found.packed.dtype == torch.float32
    reference = expected(x, indices, NUM_SEGMENTS, weights)
    torch.testing.assert_close(found.packed.double().cpu(), reference, rtol=1e-6, atol=1e-5)
    if not weighted:
        assert torch.equal(found.counts.double().cpu(), reference[:NUM_SEGMENTS])


@pytest.mark.parametrize(
    "lengths",
    [
        (37,),  # all in one segment: each chunk's run goes on at both ends
        (1,) * 18,
        (4, 4, 8, 16, 1),  # runs end where the interpreter's chunks end
        (3, 1, 5, 2, 9, 0, 1, 12),
        (2, 33, 2),
        (0, 0, 5),
        (17, 0, 17),
        (1,),
        (),
    ],
)
@pytest.mark.parametrize("left_out", few([0, 1, 6], 6))
def test_runs_of_any_length_add_up_exactly(gpu_path: torch.device, lengths: tuple[int, ...], left_out: int) -> None:
    segments = [segment for segment, length in enumerate(lengths) for _ in range(length)] + [-1] * left_out
    indices = torch.tensor(segments, dtype=torch.int64)
    indices = indices[torch.randperm(len(indices))]
    x = torch.randint(-1000, 1000, (len(indices), 1)).float()
    num_segments = len(lengths) + 1
    found = segment_stats(x.to(gpu_path), indices.to(gpu_path), num_segments).packed
    assert torch.equal(found.double().cpu(), expected(x, indices, num_segments))


@pytest.mark.parametrize("depth", [0, 1, 4, 9])
def test_depths(gpu_path: torch.device, depth: int) -> None:
    indices = torch.arange(40) % 3
    x = torch.randint(-9, 9, (depth, 40)).float().T  # strides of another layout
    weights = torch.randint(0, 3, (40,)).float()
    found = segment_stats(x.to(gpu_path), indices.to(gpu_path), 3, weights=weights.to(gpu_path)).packed
    assert torch.equal(found.double().cpu(), expected(x, indices, 3, weights))


def test_weights_of_any_strides(gpu_path: torch.device) -> None:
    x, indices = torch.randint(-8, 9, (40, 3)).float(), torch.arange(40) % 5
    for weights in (torch.arange(80.0)[::2], torch.tensor(2.0).expand(40)):
        given = weights.to(gpu_path)
        assert given.stride() == weights.stride()
        found = segment_stats(x.to(gpu_path), indices.to(gpu_path), 5, weights=given).packed
        assert torch.equal(found.double().cpu(), expected(x, indices, 5, weights))


def test_the_same_bits_whatever_rows_of_other_segments_lie_between(gpu_path: torch.device) -> None:
    indices = random_indices(gpu_path)
    x, weights = problem(gpu_path, indices), torch.rand(len(indices), device=gpu_path)
    order = torch.argsort(indices, stable=True)
    found = segment_stats(x, indices.to(gpu_path), NUM_SEGMENTS, weights=weights).packed
    indices, order = indices[order].to(gpu_path), order.to(gpu_path)
    assert torch.equal(segment_stats(x[order], indices, NUM_SEGMENTS, weights=weights[order]).packed, found)


def test_what_is_left_out_may_hold_anything(gpu_path: torch.device) -> None:
    indices = random_indices(gpu_path)
    x, weights = problem(gpu_path, indices), torch.ones(len(indices), device=gpu_path)
    reference = expected(torch.where((torch.arange(len(x)) % 7 == 0)[:, None], 0, x.cpu()), indices, NUM_SEGMENTS)
    x[::7], weights[::7] = torch.nan, 0
    x[(indices < 0).to(gpu_path)] = torch.inf
    weights[(indices < 0).to(gpu_path)] = torch.nan
    found = segment_stats(x, indices.to(gpu_path), NUM_SEGMENTS, weights=weights)
    torch.testing.assert_close(found.sums.flatten().double().cpu(), reference[NUM_SEGMENTS:], rtol=1e-6, atol=1e-5)
    kept = indices[(torch.arange(len(x)) % 7 > 0) & (indices >= 0)]
    assert torch.equal(found.counts.cpu(), torch.bincount(kept, minlength=NUM_SEGMENTS).float())


def test_a_row_that_is_not_finite_stays_in_its_segment(gpu_path: torch.device) -> None:
    x, indices = torch.ones(24, 2), torch.arange(24) // 8
    x[9] = torch.nan
    sums = segment_stats(x.to(gpu_path), indices.to(gpu_path), 3).sums.cpu()
    assert sums[1].isnan().all() and sums[[0, 2]].eq(8).all()


def test_chains_of_additions_are_short(gpu_path: torch.device) -> None:
    rows = 64 if gpu_path.type == "cpu" else 2**14
    x = torch.ones(rows, 1)
    x[0] = 2**24  # to which float32 adds no single 1
    found = segment_stats(x.to(gpu_path), torch.zeros(rows, dtype=torch.int64, device=gpu_path), 1).sums.item()
    assert 2**24 + 0.9 * rows < found < 2**24 + rows


def test_counts_go_past_the_last_whole_number_of_float32(gpu_path: torch.device) -> None:
    rows = 2**24 + 2
    indices = torch.zeros(1, dtype=torch.int64, device=gpu_path).expand(rows)
    assert segment_stats(torch.empty(rows, 0, device=gpu_path), indices, 1).counts.item() == rows


def test_the_operator_is_registered_right(gpu_path: torch.device) -> None:
    x, indices = torch.randn(9, 3, device=gpu_path), torch.randint(-1, 6, (9,), device=gpu_path)
    torch.library.opcheck(torch.ops.vqkit.segment_stats.default, (x, indices, 6, None, torch.float32))


def test_double_precision_is_left_to_torch(gpu_path: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "launch", lambda *arguments, **options: pytest.fail("a kernel started"))
    x, indices = torch.randn(9, 3, device=gpu_path), torch.zeros(9, dtype=torch.int64, device=gpu_path)
    torch.testing.assert_close(segment_stats(x.double(), indices, 1).sums[0], x.double().sum(0))
    torch.testing.assert_close(segment_stats(x, indices, 1, dtype=torch.float64).sums[0], x.double().sum(0))
