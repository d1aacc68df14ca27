"""Splitting the most used codes in place of the dead ones (after Linde, Buzo, Gray 1980)."""

import pytest
import torch
from torch import Tensor

from vqkit import Codebook, EMACodebook, LBGSplitting, Quantizer

D = 3
NOTHING = torch.empty(0, D), torch.empty(0, dtype=torch.bool)


def book(usage: list[float], cls: type[Codebook] = EMACodebook, *, steps: int = 0) -> Codebook:
    codebook = cls(len(usage), D)
    with torch.no_grad():
        codebook.vectors.copy_(torch.randn(len(usage), D, generator=torch.Generator().manual_seed(3)))
    codebook.usage.copy_(torch.tensor(usage))
    codebook.steps = steps
    return codebook


def refresh(codebook: Codebook, **options) -> Tensor:
    LBGSplitting(**options).refresh(codebook, *NOTHING)
    return codebook.vectors.detach()


def spread_in_use(codebook: Codebook) -> Tensor:
    """As of a set in which each code appears as often as it is used."""
    counts = (codebook.usage * 2).long()
    rows = codebook.vectors.detach().repeat_interleave(counts, dim=0)
    return rows.var(0, correction=0).mean().sqrt()


@pytest.mark.parametrize("cls", [Codebook, EMACodebook])
def test_dead_codes_become_halves_of_the_most_used(cls: type[Codebook]) -> None:
    usage = [0.0, 40.0, 12.0, 0.5, 20.0, 9.0]
    codebook = book(usage, cls)
    before, scale = codebook.vectors.detach().clone(), float(spread_in_use(codebook))
    after = refresh(codebook)
    for dead, source in ((0, 1), (3, 4)):  # the deadest code with the most used one
        torch.testing.assert_close((after[dead] + after[source]) / 2, before[source], rtol=0, atol=1e-6)
        apart = (after[dead] - after[source]).norm() / 2
        assert 0 < float(apart) <= 0.01 * scale * (3 * D) ** 0.5
    assert torch.equal(after[[2, 5]], before[[2, 5]])
    assert codebook.usage.tolist() == [20.0, 20.0, 12.0, 10.0, 10.0, 9.0]
    assert codebook.rewritten.tolist() == [1, 1, 0, 1, 1, 0]


def test_the_step_has_its_length_on_average() -> None:
    usage = [0.0] * 200 + [1.0] * 200
    codebook = book(usage)
    before, scale = codebook.vectors.clone(), spread_in_use(codebook)
    after = refresh(codebook, step=0.05)
    moved = (after - before)[200:]
    torch.testing.assert_close(moved.square().mean().sqrt(), 0.05 * scale, rtol=0.05, atol=0)
    assert float(moved.mean().abs()) < 0.1 * 0.05 * float(scale)
    assert len(after.unique(dim=0)) == 400


@pytest.mark.parametrize(
    ("usage", "split"),
    [
        ([1.0, 1.0, 1.0, 1.0], set()),
        ([0.0, 0.0, 0.0, 8.0], {3}),  # one live code: it is split once, and no dead one is copied
        ([0.0, 1.0, 1.0, 100.0], {3}),  # codes below the mean are not split
        ([0.0, 0.0, 50.0, 50.0], {2, 3}),
        ([2.0, 30.0, 30.0, 30.0], {1, 2, 3}),
        ([0.0, 0.0], set()),
        ([0.0, 5.0], {1}),
        ([7.0], set()),
    ],
)
def test_only_codes_of_at_least_mean_usage_are_split(usage: list[float], split: set[int]) -> None:
    codebook = book(usage)
    refresh(codebook)
    halved = {code for code, old in enumerate(usage) if codebook.usage[code] == old / 2 and old > 0}
    assert halved <= split and len(halved) == min(len(split), sum(u < 0.1 * sum(usage) / len(usage) for u in usage))
    assert float(codebook.usage.sum()) == sum(usage) - sum(sorted(usage)[: len(halved)])
    assert int((codebook.rewritten > 0).sum()) == 2 * len(halved)


def test_the_threshold_is_a_share_of_mean_usage() -> None:
    for threshold, replaced in ((0.2, 0), (0.3, 1)):
        codebook = book([1.0, 4.0, 4.0, 7.0])  # the mean is 4
        refresh(codebook, threshold=threshold)
        assert int((codebook.rewritten > 0).sum()) == 2 * replaced


def test_limit() -> None:
    usage = [0.0, 0.001, 0.002, 5.0, 6.0, 7.0]
    codebook = book(usage)
    refresh(codebook, limit=1)
    assert codebook.usage.tolist() == pytest.approx([3.5, 0.001, 0.002, 5.0, 6.0, 3.5])


def test_other_steps_and_seeds_draw_other_directions() -> None:
    after = []
    for seed, steps in ((0, 0), (0, 5), (1, 0)):
        codebook = book([0.0, 5.0], steps=steps)
        codebook.seed = seed
        after.append(refresh(codebook).clone())
    assert not torch.equal(after[0], after[1]) and not torch.equal(after[0], after[2])


def test_far_dead_codes_come_to_life() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer("ema", dim=D, codebook_size=32, maintenance=[LBGSplitting()])
    quantizer.codebook.vectors.normal_()
    quantizer.codebook.vectors[8:] += 1000
    quantizer.codebook.usage[8:] = 0
    for _ in range(80):
        quantizer(torch.randn(256, D))
    quantizer.step()
    assert len(quantizer.encode(torch.randn(2048, D)).unique()) == 32
