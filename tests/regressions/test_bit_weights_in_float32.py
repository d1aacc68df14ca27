"""Indices of long binary codes are wrong: bits times powers of two are summed in float32, which holds 24 bits.

Seen in: bsq-vit (measured for its BinarySphericalQuantizer: 69 % wrong at 27 bits, 99.8 % at 36).
Avoided since 0.1.0: bits are packed in int64, and more than 62 of them into several indices.
"""

import pytest
import torch
from torch import Tensor

from vqkit import BSQ, LFQ, MSBFirstLFQ
from vqkit.quantizers.binary import BinaryQuantizer


class Float32Weights(BSQ):
    """Sums in the dtype of the latents."""

    def _pack(self, bits: Tensor) -> Tensor:
        return (bits.float() * self.place_values).sum(-1, keepdim=True).long()


def share_of_wrong_indices(quantizer: BinaryQuantizer) -> float:
    x = torch.randn(2000, quantizer.bits)
    decoded = quantizer.decode(quantizer.encode(x).clamp(max=quantizer.codebook_size - 1))
    return float((decoded.sign() != torch.where(x > 0, 1.0, -1.0)).any(1).float().mean())


def check(quantizer: BinaryQuantizer) -> None:
    assert share_of_wrong_indices(quantizer) == 0, "indices of other codes"


def test_vqkit_does_not_have_the_fault() -> None:
    for bits in (24, 25, 27, 36, 62):
        check(BSQ(bits))
        check(LFQ(bits))
        check(MSBFirstLFQ(bits))
    check(BSQ(63))
    check(BSQ(256))


def test_the_check_catches_the_fault() -> None:
    check(Float32Weights(24))
    for bits in (25, 27, 36):
        with pytest.raises(AssertionError, match="other codes"):
            check(Float32Weights(bits))
    assert 0.6 < share_of_wrong_indices(Float32Weights(27)) < 0.8
    assert share_of_wrong_indices(Float32Weights(36)) > 0.99
