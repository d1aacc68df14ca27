"""A grouped quantizer of image maps splits or joins the wrong axis: it works, or decodes, only for certain sizes.

Seen in: vector-quantize-pytorch 1.32.0 (measured: the grouped form of `ResidualVQ(accept_image_fmap=True)`, its decode,
and decode with heads that share a book).
Avoided since 0.1.0: `BaseQuantizer` moves the channel axis once; `GroupedQuantizer` splits and joins channel-last
tensors only, and each group decodes its own levels.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import FSQ, GroupedQuantizer, Quantizer, ResidualQuantizer


class SplitsTheLastAxis(GroupedQuantizer):
    """Joins the decoded groups along the axis that was last in the image."""

    def lookup(self, indices: Tensor) -> Tensor:
        return super().lookup(indices).transpose(-1, -2).reshape(*indices.shape[:-1], self.dim)


def check(grouped: type[GroupedQuantizer], group: Callable) -> None:
    for shape in ((2, 12, 3, 5), (2, 12, 12, 12), (1, 12, 7), (2, 12, 2, 3, 4)):
        images = torch.randn(shape)
        quantizer = grouped(group, 2, channel_dim=1).eval()
        output = quantizer(images)
        assert output.indices.shape == (shape[0], *shape[2:], quantizer.num_codebooks)
        assert torch.equal(quantizer.decode(output.indices), output.quantized), "decode disagrees"
        rows = GroupedQuantizer(group, 2).eval()
        rows.load_state_dict(quantizer.state_dict())
        assert torch.equal(output.quantized.movedim(1, -1), rows(images.movedim(1, -1)).quantized)


STAGE = partial(Quantizer, "vq", dim=6, codebook_size=16)
GROUPS = {
    "vq": STAGE,
    "low-dimensional": partial(STAGE, codebook_dim=2),
    "residual": partial(ResidualQuantizer, STAGE, 3),
    "fsq": partial(FSQ, [3, 4, 5, 3, 4, 5]),
}


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(GroupedQuantizer, group) for group in GROUPS.values()],
    faulty=[(SplitsTheLastAxis, STAGE)],
    message="decode disagrees",
)
