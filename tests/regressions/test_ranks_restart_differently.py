"""Each rank replaces dead codes by vectors of its own batch: the codebooks drift apart without an error.

Seen in: a prototype of vqkit (measured: largest difference 3.8 after three steps on two ranks), VQP#17, VQP#30,
encodec-pytorch#15, espnet#6284.
Avoided since 0.1.0: policies draw through `distributed.shared_rows`, which gives every rank the rows that one process
would have drawn.
"""

import pytest
import torch
from torch import Tensor

from vqkit import Codebook, Quantizer, RandomRestart


class OwnVectors(RandomRestart):
    """Replaces dead codes by this rank's vectors."""

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        dead = codebook.usage < self.threshold * codebook.usage.mean()
        usage = torch.where(dead, codebook.usage.mean(), codebook.usage)
        codebook.overwrite(
            torch.arange(codebook.codebook_size), z[: codebook.codebook_size], share=dead.float(), usage=usage
        )


def train(rank: int, policy: type[RandomRestart]) -> tuple[Tensor, bool]:
    quantizer = Quantizer("ema", dim=4, codebook_size=8, maintenance=[policy(0.5, every=1)])
    quantizer.codebook.usage[:3] = 0
    before = quantizer.codebook.vectors.clone()
    for seed in range(3):
        quantizer(torch.randn(20, 4, generator=torch.Generator().manual_seed(10 * rank + seed)))
    quantizer.step()
    vectors = quantizer.codebook.vectors
    return vectors, bool(((vectors - before)[:3].abs() > 0).all())


def check(first: tuple[Tensor, bool], second: tuple[Tensor, bool]) -> None:
    assert first[1] and second[1], "nothing was replaced"
    assert torch.equal(first[0], second[0]), "the ranks hold different codes"


def test_vqkit_does_not_have_the_fault(rank_pair) -> None:
    check(*rank_pair(train, RandomRestart))


def test_the_check_catches_the_fault(rank_pair) -> None:
    with pytest.raises(AssertionError, match="different codes"):
        check(*rank_pair(train, OwnVectors))
