"""CodebookUsage against a NumPy reference, over levels, batches and ranks."""

import math

import numpy as np
import pytest
import torch

from tests.refusals import refused
from vqkit.metrics import CodebookUsage


def reference(indices, codebook_size):
    """The figures of one level, written down a second time."""
    indices = np.asarray(indices).ravel()
    counts = np.array([(indices == code).sum() for code in range(codebook_size)])
    share = counts / counts.sum()
    entropy = -sum(p * math.log2(p) for p in share if p > 0)
    differences = np.abs(share[:, None] - share[None, :]).sum()
    top = sorted(share, reverse=True)
    return {
        "usage": np.mean(counts > 0),
        "perplexity": 2**entropy,
        "entropy": entropy,
        "normalized_entropy": entropy / math.log2(codebook_size),
        "gini": differences / (2 * codebook_size),
        "dead": (counts == 0).sum(),
        "top_code": top[0],
        "top_percent": sum(top[: math.ceil(codebook_size / 100)]),
        "tokens": counts.sum(),
    }


def skewed(shape, codebook_size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) ** 3 * codebook_size * 0.8).long()


@pytest.mark.parametrize("codebook_size", [2, 7, 250])
def test_equals_numpy_over_batches(codebook_size):
    batches = [skewed((3, 4, 5), codebook_size, seed) for seed in range(4)]
    usage = CodebookUsage(codebook_size)
    for batch in batches:
        usage.update(batch)
    expected = reference(torch.stack(batches), codebook_size)
    assert usage.compute() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("sizes", [(40, 40, 40), (40, 7, 250)])
def test_levels_are_counted_apart(sizes):
    """Each is described by its own K, and what lies beyond it is no dead code."""
    indices = torch.stack([skewed((6, 90), size, seed) for seed, size in enumerate(sizes)], dim=-1)
    indices[0, :, 2] = -1
    usage = CodebookUsage(sizes) if len(set(sizes)) > 1 else CodebookUsage(sizes[0], num_codebooks=3)
    usage.update(indices)
    report = usage.compute()
    levels = zip(indices.unbind(-1), sizes, strict=True)
    expected = [reference(level[level >= 0], size) for level, size in levels]
    for name in expected[0]:
        per_level = [level[name] for level in expected]
        assert report[f"{name}_per_level"] == pytest.approx(per_level)
        assert report[name] == pytest.approx(sum(per_level) if name in ("dead", "tokens") else np.mean(per_level))
    assert expected[0]["perplexity"] != pytest.approx(expected[2]["perplexity"])
    usage.reset()
    usage.update(torch.stack([torch.arange(280) % size for size in sizes], dim=-1))
    report = usage.compute()
    assert report["usage_per_level"] == [1, 1, 1] and report["dead"] == 0
    assert report["normalized_entropy_per_level"][1] == pytest.approx(1)


def test_levels_that_share_a_codebook_are_one_in_its_figures():
    """VAR's scales: what all of them chose is counted, and a code is dead that none chose."""
    indices = torch.stack([torch.arange(60) % 3, 2 + torch.arange(60) // 7 % 3, torch.arange(60) % 2], dim=-1)
    usage = CodebookUsage((3, 8, 3), books=(0, 0, 1))
    usage.update(indices)
    report, shared, own = usage.compute(), reference(indices[:, :2], 8), reference(indices[:, 2], 3)
    for name, figure in shared.items():
        total = figure + own[name]
        assert report[name] == pytest.approx(total if name in ("dead", "tokens") else total / 2, rel=1e-12)
    assert report["dead"] == 4 and report["dead_per_level"] == [0, 5, 1]
    with pytest.raises(ValueError, match=r"books=\(0, 1\): expected one number for each of 3 levels"):
        CodebookUsage((3, 8, 3), books=(0, 1))


def test_each_level_has_its_own_range():
    usage = CodebookUsage((3, 5))
    usage.update(torch.tensor([[2, 4], [-1, -1]]))
    for wrong in ([3, 0], [0, 5], [0, -2]):
        with pytest.raises(ValueError, match=r"at level \d: expected -1 \(left out\) or 0"):
            usage.update(torch.tensor([wrong]))
    assert usage.counts.sum() == 2


test_sizes_that_do_not_fit_are_refused = refused(
    (lambda: CodebookUsage((3, 5), num_codebooks=3), "lists 2 sizes"),
    (lambda: CodebookUsage(()), "expected at least 1"),
    (lambda: CodebookUsage((3, 0)), "expected at least 1"),
    (lambda: CodebookUsage(3, num_codebooks=0), "num_codebooks=0"),
    (lambda: CodebookUsage(8, num_codebooks=2).update(torch.zeros(4, 3, dtype=torch.int64)), "num_codebooks=2 levels"),
)


def test_left_out_positions_are_not_counted():
    usage = CodebookUsage(8)
    usage.update(torch.tensor([[-1, 3], [3, -1]]))
    usage.update(torch.empty(0, dtype=torch.int64))
    assert usage.compute()["tokens"] == 2
    assert usage.compute()["top_code"] == 1


def test_extremes():
    usage = CodebookUsage(16)
    empty = usage.compute()
    assert (empty["usage"], empty["perplexity"], empty["dead"], empty["tokens"]) == (0, 0, 16, 0)
    usage.update(torch.arange(16))
    uniform = usage.compute()
    assert uniform["perplexity"] == pytest.approx(16)
    assert uniform["normalized_entropy"] == pytest.approx(1)
    assert uniform["gini"] == pytest.approx(0, abs=1e-12)
    usage.reset()
    usage.update(torch.full((100,), 5))
    collapsed = usage.compute()
    assert (collapsed["perplexity"], collapsed["entropy"], collapsed["dead"]) == (1, 0, 15)
    assert collapsed["gini"] == pytest.approx(15 / 16)


def test_counts_are_exact_beyond_float32():
    usage = CodebookUsage(2)
    usage.counts.fill_(2**24)
    usage.update(torch.tensor([0]))
    assert usage.compute()["tokens"] == 2**25 + 1


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 8]), r"0 \.\.\. 8: expected -1 \(left out\) or 0 \.\.\. 7"),
        (torch.tensor([-2, 1]), r"-2 \.\.\. 1"),
        (torch.tensor([0.0]), "float32: expected integers"),
        (torch.tensor([True]), "bool: expected integers"),
    ],
)
def test_wrong_indices_are_refused_and_not_counted(indices, message):
    usage = CodebookUsage(8)
    with pytest.raises(ValueError, match=message):
        usage.update(indices)
    assert usage.counts.sum() == 0


def test_counts_stay_out_of_checkpoints():
    usage = CodebookUsage(8)
    usage.update(torch.tensor([1]))
    assert not usage.state_dict()


def count_on_rank(rank):
    usage = CodebookUsage(12)
    if rank == 0:  # Rank 1 saw nothing, and takes part all the same.
        usage.update(skewed((50,), 12))
    return usage.compute(), usage.compute()  # A second look must not count twice.


@pytest.mark.slow
def test_ranks_are_summed_once(rank_pair):
    expected = pytest.approx(reference(skewed((50,), 12), 12))
    for first, second in rank_pair(count_on_rank):
        assert first == expected
        assert second == expected
