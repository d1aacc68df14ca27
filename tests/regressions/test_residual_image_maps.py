"""A residual quantizer of image maps works only where channels, height and width are the same number.

Seen in: vector-quantize-pytorch 1.32.0 (measured: `ResidualVQ(accept_image_fmap=True)`, its grouped form and its
decode), VQP#203, VQP#233.
Avoided since 0.1.0: `BaseQuantizer` moves the channel axis once, for every quantizer; composites see channel-last
tensors only.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import FSQ, Quantizer, QuantizerOutput, ResidualQuantizer


class Reshaped(ResidualQuantizer):
    """Reads (B, D, H, W) as (B, H * W, D) without moving the channels."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        output = super().forward(x.reshape(len(x), -1, self.dim).movedim(-1, 1), mask)
        indices = output.indices.reshape(len(x), *x.shape[2:], self.num_codebooks)
        return replace(output, quantized=output.quantized.movedim(1, -1).reshape(x.shape), indices=indices)


def check(residual: type[ResidualQuantizer], stage: Callable) -> None:
    images = torch.randn(2, 6, 3, 5)
    quantizer = residual(stage, 3, channel_dim=1).eval()
    output = quantizer(images)
    assert output.indices.shape == (2, 3, 5, 3)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    rows = residual(stage, 3).eval()
    rows.load_state_dict(quantizer.state_dict())
    assert torch.equal(
        output.quantized.movedim(1, -1), ResidualQuantizer.forward(rows, images.movedim(1, -1)).quantized
    )


STAGES = {
    "vq": partial(Quantizer, "vq", dim=6, codebook_size=16),
    "ema": partial(Quantizer, "ema", dim=6, codebook_size=16),
    "fsq": partial(FSQ, [3, 4, 5, 3, 4, 5]),
}


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[(ResidualQuantizer, stage) for stage in STAGES.values()], faulty=[(Reshaped, STAGES["vq"])]
)
