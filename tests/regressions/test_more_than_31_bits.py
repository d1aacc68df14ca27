"""A lookup-free codebook of more than 2^31 codes overflows: bit masks and indices are 32 bits wide.

Seen in: vector-quantize-pytorch 1.32.0 (measured for LFQ: allocation failure), VQP#99 asks for 2^32.
Avoided since 0.1.0: indices are int64 throughout, and nothing of the size of the codebook is allocated (FSQ and LFQ up
to 2^62 codes, BSQ any number).
"""

from dataclasses import replace

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import BSQ, FSQ, LFQ, BaseQuantizer, CenteredFSQ, MSBFirstLFQ, Selection


class IndicesOf32Bits(FSQ):
    """Adds the digits up in int32."""

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        quantized, selection = super().choose(latents, valid)
        return quantized, replace(selection, indices=selection.indices.int().long().clamp(min=0))


class MaskOf32Bits(LFQ):
    """Weighs the bits by an int32 mask."""

    def _pack(self, bits: Tensor) -> Tensor:
        return (bits * self.place_values.int()).sum(-1, keepdim=True).clamp(min=0)


def check(quantizer: BaseQuantizer) -> None:
    x = (3 * torch.randn(200, quantizer.dim)).requires_grad_()
    output = quantizer(x)
    output.loss.backward()
    quantizer.eval()
    assert torch.equal(quantizer(x).indices, output.indices)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    assert len(output.indices.unique(dim=0)) == 200 and output.indices.max() > 2**31


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[FSQ([2] * 40), FSQ([8] * 20), CenteredFSQ([8] * 20), LFQ(40), MSBFirstLFQ(62), BSQ(40), BSQ(130)],
    faulty=[IndicesOf32Bits([2] * 40), MaskOf32Bits(40)],
)
