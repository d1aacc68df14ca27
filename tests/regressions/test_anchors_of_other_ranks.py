"""Each rank draws unused codes to features of its own batch: the codebooks drift apart without an error.

Seen in: CVQ-VAE (measured: largest difference of a row 2.28 after five steps on two ranks, codes of scale 0.23).
Avoided since 0.1.0: anchors are chosen among the features of all ranks, of which each rank sends its best, and random
ones are drawn through `distributed.shared_rows`.
"""

import pytest
import torch
from torch import Tensor

from vqkit import Anchor, ClosestAnchor, ClusterReinit, ProbabilisticAnchor, Quantizer, RandomAnchor


class OwnFeatures(Anchor):
    """The closest feature of this rank."""

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        return z[torch.cdist(codes, z).argmin(1)], torch.ones(len(codes), dtype=torch.bool)


def train(rank: int, anchor: type[Anchor]) -> tuple[Tensor, bool]:
    quantizer = Quantizer("cvq", dim=4, codebook_size=32, maintenance=[ClusterReinit(anchor())])
    before = quantizer.codebook.vectors.detach().clone()
    for seed in range(5):
        quantizer(torch.randn(20, 4, generator=torch.Generator().manual_seed(10 * rank + seed)))
        quantizer.step()
        quantizer.codebook.usage[:16] = 0
    vectors = quantizer.codebook.vectors.detach()
    return vectors, bool((vectors - before).norm(dim=1)[:16].min() > 0.1)


def check(first: tuple[Tensor, bool], second: tuple[Tensor, bool]) -> None:
    assert first[1] and second[1], "nothing was drawn to a feature"
    assert torch.equal(first[0], second[0]), "the ranks hold different codes"


@pytest.mark.parametrize("anchor", [ClosestAnchor, RandomAnchor, ProbabilisticAnchor])
def test_vqkit_does_not_have_the_fault(rank_pair, anchor: type[Anchor]) -> None:
    check(*rank_pair(train, anchor))


def test_the_check_catches_the_fault(rank_pair) -> None:
    with pytest.raises(AssertionError, match="different codes"):
        check(*rank_pair(train, OwnFeatures))
