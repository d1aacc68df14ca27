"""A dead code is replaced, and the next update writes the old vector back, because the running sum still holds it.

Seen in: EnCodec (measured: the replacement is a no-op), espnet#6284, encodec#61, VQP#13, VQP#169.
Avoided since 0.1.0: `EMACodebook` has no sum that could remember; `overwrite` sets a row and its usage together.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from tests.regressions.test_unused_codes_drift import Floored
from vqkit import EMACodebook, Quantizer, RandomRestart


class SumRemembers(Floored):
    """Derives the codes from sums, which a replacement does not touch."""

    def overwrite(self, indices: Tensor, vectors: Tensor, *, share: Tensor, usage: Tensor) -> None:
        self.vectors[indices[share > 0]] = vectors[share > 0]


def check(codebook: type[EMACodebook]) -> None:
    quantizer = Quantizer("ema", dim=4, codebook_size=8, codebook=codebook, maintenance=[RandomRestart(0.5, every=1)])
    quantizer.codebook.vectors[5] = 1000.0
    quantizer.codebook.usage[5] = 0.01
    for _ in range(5):
        quantizer(torch.randn(64, 4))
        quantizer.step()
    assert quantizer.codebook.vectors[5].norm() < 10, "the replaced code came back"
    assert quantizer.codebook.usage[5] > 0.1 * quantizer.codebook.usage.mean()


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[EMACodebook], faulty=[SumRemembers], message="came back"
)
