"""Quantizers of image maps reshape, split or join the wrong axis, or do not undo the layout: they work, or decode, only
where channels, height and width are the same number.

Seen in: vector-quantize-pytorch 1.32.0 (measured: `ResidualVQ(accept_image_fmap=True)`, its grouped form, the decode of
both, and decode with heads that share a book), VQP#203, VQP#233; bsq-vit (measured: decoding indices with the layout of
images raises a TypeError, and its grouped form takes the square root of the length).
Avoided since 0.1.0: `BaseQuantizer` moves the channel axis on the way in and out, once, for every quantizer and any
number of axes; composites see, split and join channel-last tensors only.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import BSQ, FSQ, LFQ, BaseQuantizer, GroupedQuantizer, Quantizer, QuantizerOutput, ResidualQuantizer


class Reshaped(ResidualQuantizer):
    """Reads (B, D, H, W) as (B, H * W, D) without moving the channels."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> QuantizerOutput:
        output = super().forward(x.reshape(len(x), -1, self.dim).movedim(-1, 1), mask)
        indices = output.indices.reshape(len(x), *x.shape[2:], self.num_codebooks)
        return replace(output, quantized=output.quantized.movedim(1, -1).reshape(x.shape), indices=indices)


class SplitsTheLastAxis(GroupedQuantizer):
    """Joins the decoded groups along the axis that was last in the image."""

    def lookup(self, indices: Tensor) -> Tensor:
        return super().lookup(indices).transpose(-1, -2).reshape(*indices.shape[:-1], self.dim)


class SquareMaps(BSQ):
    """Puts the channels first by the square root of the number of positions."""

    def decode(self, indices: Tensor) -> Tensor:
        vectors = self.lookup(indices).reshape(len(indices), -1, self.dim)
        side = int(vectors.shape[1] ** 0.5)
        assert side * side == vectors.shape[1], "no square: decode disagrees"
        return vectors.unflatten(1, (side, side)).movedim(-1, 1)


class ChannelLast(LFQ):
    """Forgets where the channels were."""

    def decode(self, indices: Tensor) -> Tensor:
        return self.lookup(indices)


def check(build: Callable[..., BaseQuantizer]) -> None:
    quantizer, rows = build(channel_dim=1).eval(), build().eval()
    rows.load_state_dict(quantizer.state_dict())
    levels = (quantizer.num_codebooks,) if quantizer.level_axis else ()
    for size in ((3, 5), (5,), (quantizer.dim, quantizer.dim), (2, 3, 4), ()):
        images = torch.randn(2, quantizer.dim, *size)
        output = quantizer(images)
        assert output.indices.shape == (2, *size, *levels)
        decoded = quantizer.decode(output.indices)
        assert decoded.shape == images.shape and torch.equal(decoded, output.quantized), "decode disagrees"
        assert torch.equal(output.quantized.movedim(1, -1), rows(images.movedim(1, -1)).quantized)


MEMBER = partial(Quantizer, "vq", dim=6, codebook_size=16)
GRID = partial(FSQ, [3, 4, 5, 3, 4, 5])
LOW = partial(MEMBER, codebook_dim=2)

test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *(partial(ResidualQuantizer, stage, 3) for stage in [MEMBER, GRID]),
        *(partial(GroupedQuantizer, group, 2) for group in [MEMBER, LOW, GRID, partial(ResidualQuantizer, MEMBER, 3)]),
        *(partial(LFQ, bits, dim=6) for bits in [6, 10]),
        *(partial(BSQ, bits, dim=6) for bits in [6, 18, 80]),
    ],
    faulty=[
        partial(Reshaped, MEMBER, 3),
        partial(SplitsTheLastAxis, MEMBER, 2),
        partial(SquareMaps, 6),
        partial(ChannelLast, 6),
    ],
    message="decode disagrees",
)
