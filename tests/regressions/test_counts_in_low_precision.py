"""Casting the model casts the running counts: in bfloat16 they stop moving long before they are right.

Seen in: vector-quantize-pytorch 1.32.0 (measured: 3,384 instead of 3,896 after 300 steps), VQP#100, VQP#114, VQP#145.
Avoided since 0.1.0: `FullPrecisionModule` keeps the state of a quantizer in float32 through `.half()` and
`.bfloat16()`.
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import EMACodebook, Quantizer, ResidualQuantizer


class CountsInBfloat16(EMACodebook):
    """Holds the counts in what the model is cast to."""

    def fold(self, fresh: Tensor) -> None:
        super().fold(fresh)
        self.usage.copy_(self.usage.bfloat16())


def check(codebook: type[EMACodebook]) -> None:
    stage = partial(Quantizer, "ema", dim=4, codebook_size=8, codebook=codebook, maintenance=[])
    model = torch.nn.Sequential(ResidualQuantizer(stage, 2)).bfloat16()
    x = torch.randn(64, 4).bfloat16()
    for _ in range(200):
        model(x)
    model[0].step()
    expected = 64 + (8 - 64) * 0.99**200
    for number in range(2):
        assert abs(float(model[0].stages[number].codebook.usage.sum()) / expected - 1) < 1e-4


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[EMACodebook], faulty=[CountsInBfloat16]
)
