"""Only CUDA autocast is switched off inside the codebook: on other devices the quantizer computes in bfloat16.

Seen in: vector-quantize-pytorch 1.32.0 (read), VQP#116, csm-mlx#20.
Avoided since 0.1.0: `autocast_disabled` takes the device of the input, and `BaseQuantizer` enters it around every
forward, encode and decode.
"""

from contextlib import nullcontext
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import FSQ, BaseQuantizer, Quantizer, QuantizerOutput, ResidualQuantizer


class NotOnThisDevice(Quantizer):
    """Switches off the autocast of some other device."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        with patch("vqkit.quantizers.base.autocast_disabled", lambda device: nullcontext()):
            return super().forward(x, mask)


def check(quantizer: BaseQuantizer) -> None:
    quantizer.eval()
    x = torch.randn(200, 6)
    expected = quantizer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(x)
    assert torch.equal(output.indices, expected.indices)
    assert torch.equal(output.quantized, expected.quantized)
    assert output.loss.dtype == torch.float32 and torch.equal(output.loss, expected.loss)


SIMVQ = partial(Quantizer, "simvq", dim=6, codebook_size=64)

test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        SIMVQ(),
        Quantizer("vq", dim=6, codebook_size=64, codebook_dim=3),
        FSQ([5, 5, 4], dim=6),
        ResidualQuantizer(SIMVQ, 3),
    ],
    faulty=[NotOnThisDevice("simvq", dim=6, codebook_size=64)],
)
