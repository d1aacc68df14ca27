"""The weight beta is put on the codebook term instead of the commitment, or one of the two terms is missing.

Seen in: taming#46, taming#57 (kept there as `legacy=True`), diffusers#8226, CodeFormer#427, MaskGIT-pytorch#8,
DAC#114, VQP#20, VQP#40.
Avoided since 0.1.0: two losses with a name and a weight each, `Commitment(0.25)` and `CodebookLoss(1.0)`; a codebook
that nothing would train is refused at construction.
"""

from collections.abc import Sequence

import torch

from tests.regressions.faults import both
from vqkit import CodebookLoss, Commitment, EMACodebook, Loss, Quantizer


def check(losses: Sequence[Loss] | None, codebook: type[EMACodebook] | None = None) -> None:
    """Eq. 3 of van den Oord et al. 2017: sg(z) - e with weight 1, z - sg(e) with weight 0.25."""
    quantizer = Quantizer("vq", dim=4, codebook_size=8, losses=losses, codebook=codebook).double()
    z = torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    output = quantizer(z)
    output.loss.backward()
    difference = 2 * (z.detach() - output.quantized.detach()) / 4
    torch.testing.assert_close(z.grad, 0.25 * difference)
    assert codebook is None, "the codes get no gradient"
    torch.testing.assert_close(quantizer.codebook.vectors.grad[output.indices], -difference)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[None], faulty=[[Commitment(1.0), CodebookLoss(0.25)], ([Commitment(0.25)], EMACodebook)]
)
