"""A rank whose mask is all padding skips the dead-code replacement that the others enter: they wait for it for ever.

Seen in: vector-quantize-pytorch 1.32.0 (measured: timeout of two processes with one empty mask), VQP#105, VQP#198.
Avoided since 0.1.0: every rank enters the same collectives with the same shapes, whatever its own batch holds; a rank
without vectors sends zeros.
"""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from vqkit import Codebook, Quantizer, RandomRestart, distributed


class SkipsEmptyBatches(RandomRestart):
    """Returns early where there is nothing to draw from."""

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        if valid.any():
            super().refresh(codebook, z, valid)


def build(policy: type[RandomRestart]) -> Quantizer:
    return Quantizer("ema", dim=4, codebook_size=8, maintenance=[policy(0.5, every=1)])


def collectives_entered(quantizer: Quantizer, mask: Tensor) -> list[tuple]:
    """What one rank of two would call in three steps; the other rank's answers are copies of its own."""
    entered: list[tuple] = []

    def gather(parts: list[Tensor], tensor: Tensor) -> None:
        entered.append(("all_gather", tensor.shape, tensor.dtype))
        for part in parts:
            part.copy_(tensor)

    def reduce(tensor: Tensor) -> None:
        entered.append(("all_reduce", tensor.shape, tensor.dtype))

    with (
        patch.multiple(distributed, is_distributed=lambda: True, world_size=lambda: 2, rank=lambda: 1),
        patch("torch.distributed.all_gather", gather),
        patch("torch.distributed.all_reduce", reduce),
    ):
        for _ in range(3):
            quantizer(torch.randn(10, 4), mask)
    return entered


def check(policy: type[RandomRestart]) -> None:
    full = collectives_entered(build(policy), torch.ones(10, dtype=torch.bool))
    empty = collectives_entered(build(policy), torch.zeros(10, dtype=torch.bool))
    assert full and full == empty, "a rank without vectors enters other collectives: a deadlock"


def train(rank: int) -> Tensor:
    quantizer = build(RandomRestart)
    for step in range(6):
        quantizer(torch.randn(10, 4), torch.full((10,), rank == 0 or step % 2 == 0))
    quantizer.step()
    return quantizer.codebook.vectors


def test_vqkit_does_not_have_the_fault(rank_pair) -> None:
    check(RandomRestart)
    first, second = rank_pair(train)
    assert torch.equal(first, second)


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError, match="deadlock"):
        check(SkipsEmptyBatches)
