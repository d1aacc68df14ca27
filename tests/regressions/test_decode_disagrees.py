"""Decoding the indices gives something else than the forward pass gave, or crashes.

Seen in: vector-quantize-pytorch 1.32.0 (measured: low-dimensional image maps, channel-first ResidualFSQ, and options
that vqkit does not have), VQP#39, VQP#44, VQP#65, VQP#142, npq-vit#4.
Avoided since 0.1.0: search, forward and decode read the same `code_vectors()`; layout and projection are undone in
one place, and the contract suite compares both values bit for bit for every quantizer.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import FSQ, BaseQuantizer, Quantizer, ResidualQuantizer, Search


class WithoutProjection(Quantizer):
    """Gives back the low-dimensional code."""

    def lookup(self, indices: Tensor) -> Tensor:
        return self.code_lookup(indices)


class ChannelLast(ResidualQuantizer):
    """Forgets where the channels were."""

    def decode(self, indices: Tensor) -> Tensor:
        return self.lookup(indices)


class WithoutNormalization(Quantizer):
    """Looks codes up as they are stored."""

    def code_lookup(self, indices: Tensor) -> Tensor:
        return self.codebook()[indices]


def check(build: Callable[[], BaseQuantizer]) -> None:
    quantizer = build()
    quantizer.initialize([torch.randn(4, 6, 4, 6)])
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output = quantizer(torch.randn(2, 6, 4, 6, requires_grad=True))
        (output.loss + output.quantized.square().mean()).backward()
        optimizer.step()
    quantizer.eval()
    x = torch.randn(2, 6, 4, 6)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantizer(x).quantized)


OPTIONS = {"dim": 6, "codebook_size": 16, "channel_dim": 1}
GRIDS = partial(FSQ, [5] * 6)

test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        partial(Quantizer, "vq", codebook_dim=3, **OPTIONS),
        partial(Quantizer, "ema", normalize=True, **OPTIONS),
        partial(Quantizer, "simvq", codebook_dim=3, search=Search("cosine"), **OPTIONS),
        partial(FSQ, [5, 4, 3], dim=6, channel_dim=1),
        partial(ResidualQuantizer, GRIDS, 3, channel_dim=1),
    ],
    faulty=[
        partial(WithoutProjection, "vq", codebook_dim=3, **OPTIONS),
        partial(WithoutNormalization, "vq", normalize=True, **OPTIONS),
        partial(ChannelLast, GRIDS, 3, channel_dim=1),
    ],
)
