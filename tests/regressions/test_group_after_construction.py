"""A quantizer that was built before the process group existed never synchronises its codebook, and says nothing.

Seen in: vector-quantize-pytorch 1.32.0 (measured, bare and in a Lightning DDP fit), VQP#10, VQP#14, VQP#169,
encodec#16.
Avoided since 0.1.0: `vqkit.distributed` asks for the group at every call; nothing is decided at construction or
remembered.
"""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from vqkit import Quantizer, QuantizerOutput, distributed


class AskedOnce(Quantizer):
    """Remembers at construction whether there are other ranks."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.synchronised = distributed.is_distributed()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        with patch.object(distributed, "is_distributed", return_value=self.synchronised):
            return super().forward(x, mask)


def train(rank: int, kind: type[Quantizer]) -> Tensor:
    with patch("torch.distributed.is_initialized", return_value=False):
        quantizer = kind("ema", dim=4, codebook_size=8, maintenance=[])
    for seed in range(3):
        quantizer(torch.randn(30, 4, generator=torch.Generator().manual_seed(10 * rank + seed)))
    quantizer.step()
    return quantizer.codebook.vectors


def check(first: Tensor, second: Tensor) -> None:
    assert torch.equal(first, second), "the ranks hold different codebooks"


def test_vqkit_does_not_have_the_fault(rank_pair) -> None:
    check(*rank_pair(train, Quantizer))


def test_the_check_catches_the_fault(rank_pair) -> None:
    with pytest.raises(AssertionError, match="different codebooks"):
        check(*rank_pair(train, AskedOnce))
