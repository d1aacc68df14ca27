"""Each rank replaces dead codes by vectors of its own batch, or draws unused codes to them: the codebooks drift apart
without an error.

Seen in: a prototype of vqkit (measured: largest difference 3.8 after three steps on two ranks), CVQ-VAE (measured: 2.28
after five steps, of codes of scale 0.23), VQP#17, VQP#30, encodec-pytorch#15, espnet#6284.
Avoided since 0.1.0: policies draw through `distributed.shared_rows`, which gives every rank the rows that one process
would have drawn; the closest anchors are chosen among the features of all ranks, of which each rank sends its best.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import (
    Anchor,
    ClosestAnchor,
    ClusterReinit,
    Codebook,
    Maintenance,
    ProbabilisticAnchor,
    Quantizer,
    RandomAnchor,
    RandomRestart,
)


class OwnVectors(RandomRestart):
    """Replaces dead codes by this rank's vectors."""

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        dead = codebook.usage < self.threshold * codebook.usage.mean()
        usage = torch.where(dead, codebook.usage.mean(), codebook.usage)
        rows = z[torch.arange(codebook.codebook_size) % len(z)]
        codebook.overwrite(torch.arange(codebook.codebook_size), rows, share=dead.float(), usage=usage)


class OwnFeatures(Anchor):
    """The closest feature of this rank."""

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        return z[torch.cdist(codes, z).argmin(1)], torch.ones(len(codes), dtype=torch.bool)


def train(rank: int, method: str, policy: Callable[[], Maintenance]) -> tuple[Tensor, bool]:
    """The codes, and whether all of those that nobody chose are others."""
    quantizer = Quantizer(method, dim=4, codebook_size=32, maintenance=[policy()])
    before = quantizer.codebook.vectors.detach().clone()
    for seed in range(5):
        quantizer(torch.randn(20, 4, generator=torch.Generator().manual_seed(10 * rank + seed)))
        quantizer.step()
        quantizer.codebook.usage[:16] = 0
    vectors = quantizer.codebook.vectors.detach()
    return vectors, bool((vectors - before).norm(dim=1)[:16].min() > 0.1)


def check(first: tuple[Tensor, bool], second: tuple[Tensor, bool]) -> None:
    assert first[1] and second[1], "nothing was replaced"
    assert torch.equal(first[0], second[0]), "the ranks hold different codes"


ANCHORS = (ClosestAnchor, RandomAnchor, ProbabilisticAnchor)
SOUND = {anchor.__name__: ("cvq", partial(ClusterReinit, anchor())) for anchor in ANCHORS}
SOUND["RandomRestart"] = ("ema", partial(RandomRestart, 0.5, every=1))


@pytest.mark.parametrize("policy", SOUND.values(), ids=SOUND)
def test_vqkit_does_not_have_the_fault(rank_pair, policy: tuple[str, Callable[[], Maintenance]]) -> None:
    check(*rank_pair(train, *policy))


def test_the_check_catches_the_fault(rank_pair) -> None:
    for policy in (("ema", partial(OwnVectors, 0.5, every=1)), ("cvq", partial(ClusterReinit, OwnFeatures()))):
        with pytest.raises(AssertionError, match="different codes"):
            check(*rank_pair(train, *policy))
