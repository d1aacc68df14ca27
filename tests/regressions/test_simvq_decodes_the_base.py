"""SimVQ decodes the frozen base, while the forward pass uses the projected codes: tokens decode to noise.

Seen in: the released SimVQ, `get_codebook_entry` (read).
Avoided since 0.1.0: `ProjectedCodebook()` is the only way to its codes, for search, losses and decoding alike.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Quantizer


class ReadsTheBase(Quantizer):
    """Looks codes up before the projection."""

    def code_lookup(self, indices: Tensor) -> Tensor:
        return self.codebook.base[indices]


def check(quantizer: Quantizer) -> None:
    x = torch.randn(30, 6)
    quantizer.initialize([x])
    quantizer.eval()
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantizer(x).quantized)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[Quantizer("simvq", dim=6, codebook_size=16)], faulty=[ReadsTheBase("simvq", dim=6, codebook_size=16)]
)
