"""A lookup-free codebook of more than 2^31 codes overflows: bit masks and indices are 32 bits wide.

Seen in: vector-quantize-pytorch 1.32.0 (measured for LFQ: allocation failure), VQP#99 asks for 2^32.
Avoided since 0.1.0: indices are int64 throughout, and nothing of the size of the codebook is allocated (FSQ; up to
2^62 codes).
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vqkit import FSQ, Selection


class IndicesOf32Bits(FSQ):
    """Adds the digits up in int32."""

    def quantize(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        quantized, selection = super().quantize(z, valid)
        return quantized, replace(selection, indices=selection.indices.int().long().clamp(min=0))


def check(quantizer: FSQ) -> None:
    x = 3 * torch.randn(200, quantizer.dim)
    quantizer.eval()
    output = quantizer(x)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    assert len(output.indices.unique()) == 200 and output.indices.max() > 2**31


def test_vqkit_does_not_have_the_fault() -> None:
    check(FSQ([2] * 40))
    check(FSQ([8] * 20))


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError):
        check(IndicesOf32Bits([2] * 40))
