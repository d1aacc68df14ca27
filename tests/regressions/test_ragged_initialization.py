"""Ranks whose batches differ in size leave initialization with different state, and their running means drift apart.

Seen in: VQP#105, VQP#222 (k-means on ranks with other numbers of vectors).
Avoided since 0.1.0: `initialize` gathers the vectors of all ranks, and computes the same centres and the same counts
from them everywhere.
"""

import pytest
import torch
from torch import Tensor

from vqkit import EMACodebook, Quantizer, distributed


class CountsOfOwnBatches(EMACodebook):
    """Scales the counts by what this rank will show in a step."""

    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        super().initialize(samples, vectors_per_step=100 * (1 + distributed.rank()), seed=seed)


def train(rank: int, codebook: type[EMACodebook], sizes: tuple[int, int]) -> dict[str, Tensor]:
    quantizer = Quantizer("ema", dim=4, codebook_size=8, codebook=codebook)
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randn(sizes[rank], 4, generator=generator) for _ in range(5)]
    quantizer.initialize(batches)
    for x in batches:
        quantizer(x)
    quantizer.step()
    return quantizer.state_dict()


def check(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("sizes", [(30, 30), (40, 20)])
def test_vqkit_does_not_have_the_fault(sizes: tuple[int, int], rank_pair) -> None:
    check(*rank_pair(train, EMACodebook, sizes))


def test_the_check_catches_the_fault(rank_pair) -> None:
    with pytest.raises(AssertionError):
        check(*rank_pair(train, CountsOfOwnBatches, (30, 30)))
