"""Two gloo processes must draw, sum and gather as one process with the joined batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqkit import distributed
from vqkit.distributed import all_reduce_sum, counter_random, gather_rows, shared_rows

COUNT = 6
CASES: dict[str, tuple[int, int]] = {  # rows of rank 0 and of rank 1
    "even": (20, 20),
    "ragged": (31, 4),
    "an empty rank": (0, 25),
    "the other rank empty": (25, 0),
    "fewer rows than drawn": (2, 3),
    "no rows": (0, 0),
    "a masked rank": (20, 20),
    "all masked": (20, 20),
    "partly masked": (20, 20),
    "not finite where masked": (20, 20),
}


def batch(case: str, rank: int) -> tuple[Tensor, Tensor]:
    """(rows (N, 3), valid (N,)) of one rank."""
    generator = torch.Generator().manual_seed(100 * list(CASES).index(case) + rank)
    rows = torch.randn(CASES[case][rank], 3, generator=generator)
    valid = torch.ones(len(rows), dtype=torch.bool)
    if case == "all masked" or (case == "a masked rank" and rank == 0):
        valid[:] = False
    elif case in ("partly masked", "not finite where masked"):
        valid = torch.rand(len(rows), generator=generator) < 0.2
    if case == "not finite where masked":
        rows[~valid] = torch.nan
    return rows, valid


def joined(case: str) -> tuple[Tensor, Tensor]:
    parts = [batch(case, rank) for rank in range(2)]
    return torch.cat([rows for rows, _ in parts]), torch.cat([valid for _, valid in parts])


def run_rank(rank: int, folder: str) -> None:
    """All cases in one pair of processes: starting one takes seconds."""
    torch.set_num_threads(1)
    before = (distributed.is_distributed(), distributed.world_size())
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {
        "before": before,
        "after": (distributed.is_distributed(), distributed.rank(), distributed.world_size()),
    }
    for case in CASES:
        rows, valid = batch(case, rank)
        results[case] = shared_rows(rows, valid, count=COUNT, seed=3, step=11), gather_rows(rows)
        results[case + " bfloat16"] = shared_rows(rows.bfloat16(), valid, count=COUNT, seed=3, step=11)
    tensor = torch.tensor([1.0, 2.0], requires_grad=True) * (rank + 1)
    results["sum"] = all_reduce_sum(tensor), tensor.detach(), all_reduce_sum(torch.eye(2)[:, rank])
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, args=(str(folder),), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def test_decides_at_call_time(ranks: list[dict[str, Any]]) -> None:
    assert not distributed.is_distributed() and distributed.rank() == 0 and distributed.world_size() == 1
    for rank in range(2):
        assert ranks[rank]["before"] == (False, 1)
        assert ranks[rank]["after"] == (True, rank, 2)


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_draw_the_rows_of_one_process(case: str, ranks: list[dict[str, Any]]) -> None:
    rows, valid = joined(case)
    for suffix, dtype in (("", torch.float32), (" bfloat16", torch.bfloat16)):
        expected, filled = shared_rows(rows.to(dtype), valid, count=COUNT, seed=3, step=11)
        for result in ranks:
            drawn, drawn_filled = result[case + suffix] if suffix else result[case][0]
            assert drawn.dtype == dtype
            assert torch.equal(drawn, expected) and torch.equal(drawn_filled, filled)


@pytest.mark.parametrize("case", CASES)
def test_draws_are_valid_rows_without_replacement(case: str) -> None:
    rows, valid = joined(case)
    drawn, filled = shared_rows(rows, valid, count=COUNT, seed=3, step=11)
    assert drawn.shape == (COUNT, 3) and filled.sum() == min(COUNT, int(valid.sum()))
    assert (drawn[~filled] == 0).all()
    equal = (drawn[filled][:, None] == rows[valid]).all(-1)
    assert (equal.sum(1) == 1).all() and (equal.sum(0) <= 1).all()


def test_every_row_is_drawn_equally_often() -> None:
    rows, valid = torch.arange(20.0)[:, None], torch.arange(20) % 2 == 0
    steps = 1000
    drawn = [shared_rows(rows, valid, count=3, seed=0, step=step)[0] for step in range(steps)]
    counts = torch.bincount(torch.cat(drawn).flatten().long(), minlength=20)
    assert (counts[1::2] == 0).all()
    assert ((counts[::2] - 0.3 * steps).abs() < 5 * (steps * 0.3 * 0.7) ** 0.5).all()


def test_seed_and_step_choose_the_draw() -> None:
    rows, valid = torch.randn(100, 2, generator=torch.Generator().manual_seed(0)), torch.ones(100, dtype=torch.bool)

    def draw(seed: int | Tensor, step: int | Tensor) -> Tensor:
        return shared_rows(rows, valid, count=10, seed=seed, step=step)[0]

    assert torch.equal(draw(1, 2), draw(torch.tensor(1), torch.tensor(2)))
    assert len({tuple(draw(seed, step).flatten().tolist()) for seed in range(5) for step in range(5)}) == 25


def test_nothing_waits_for_the_device() -> None:
    """Tensors without data stop whatever reads a value; so does a shape that depends on one."""
    rows = torch.empty(30, 4, device="meta")
    valid = torch.empty(30, dtype=torch.bool, device="meta")
    drawn, filled = shared_rows(rows, valid, count=50, seed=0, step=torch.zeros((), dtype=torch.int64, device="meta"))
    assert drawn.shape == (50, 4) and filled.shape == (50,)


def test_count_must_be_positive() -> None:
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        shared_rows(torch.zeros(2, 2), torch.ones(2, dtype=torch.bool), count=0, seed=0, step=0)


@pytest.mark.parametrize("case", CASES)
def test_gathers_ragged_rows_in_the_order_of_ranks(case: str, ranks: list[dict[str, Any]]) -> None:
    expected = joined(case)[0]
    for result in ranks:
        assert torch.equal(result[case][1].nan_to_num(7.0), expected.nan_to_num(7.0))
    assert gather_rows(expected) is expected


def test_sums_over_ranks_without_touching_the_argument(ranks: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(ranks):
        total, argument, columns = result["sum"]
        assert total.tolist() == [3.0, 6.0] and not total.requires_grad
        assert argument.tolist() == [1.0 + rank, 2.0 + 2 * rank]
        assert columns.tolist() == [1.0, 1.0]
    tensor = torch.ones(2)
    all_reduce_sum(tensor).zero_()
    assert tensor.tolist() == [1.0, 1.0]


def test_counter_random_is_splitmix64() -> None:
    """The published mixing function in Python integers."""
    mask, golden = 2**64 - 1, 0x9E3779B97F4A7C15

    def mix(bits: int) -> int:
        bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & mask
        bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & mask
        return bits ^ (bits >> 31)

    positions = [0, 1, 2, 10**12]
    for seed, step in ((0, 0), (3, 7), (-5, 2**40)):
        key = mix((mix(seed * golden & mask) + step * golden) & mask)
        expected = [(mix((key + position * golden) & mask) % 2**53) / 2**53 for position in positions]
        assert counter_random(torch.tensor(positions), seed=seed, step=step).tolist() == expected


def test_counter_random_is_uniform_and_uncorrelated() -> None:
    positions = torch.arange(200_000)
    numbers = [counter_random(positions, seed=seed, step=step) for seed, step in ((0, 0), (0, 1), (1, 0))]
    for values in numbers:
        assert values.min() >= 0 and values.max() < 1
        counts = torch.histc(values, 100, 0, 1)
        assert ((counts - 2000).square().sum() / 2000) < 160  # chi-squared with 99 degrees of freedom
    series = torch.stack([*numbers, numbers[0].roll(1)])
    off_diagonal = torch.corrcoef(series) - torch.eye(4, dtype=torch.float64)
    assert off_diagonal.abs().max() < 5 / 200_000**0.5


def different_on_each_rank(rank: int) -> torch.Tensor:
    return distributed.from_first_rank(torch.full((2, 3), float(rank)).T)


def test_from_first_rank_gives_every_rank_the_tensor_of_rank_zero(rank_pair) -> None:
    first, second = rank_pair(different_on_each_rank)
    assert torch.equal(first, torch.zeros(3, 2)) and torch.equal(second, first)
    alone = torch.ones(3)
    assert distributed.from_first_rank(alone) is alone
