"""Decoding the indices gives something else than the forward pass gave, or crashes.

Seen in: vector-quantize-pytorch 1.32.0 (measured: low-dimensional image maps, channel-first ResidualFSQ, and options
that vqkit does not have), VQP#39, VQP#44, VQP#65, VQP#142, npq-vit#4.
Avoided since 0.1.0: search, forward and decode read the same `code_vectors()`; layout and projection are undone in
one place, and the contract suite compares both values bit for bit for every quantizer.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

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


def check(quantizer: BaseQuantizer) -> None:
    quantizer.eval()
    x = torch.randn(2, 6, 4, 6)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantizer(x).quantized)


def trained(quantizer: BaseQuantizer) -> BaseQuantizer:
    optimizer = torch.optim.SGD([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        output = quantizer(torch.randn(2, 6, 4, 6, requires_grad=True))
        (output.loss + output.quantized.square().mean()).backward()
        optimizer.step()
    return quantizer


OPTIONS = {"dim": 6, "codebook_size": 16, "channel_dim": 1}
SOUND = {
    "low-dimensional": partial(Quantizer, "vq", codebook_dim=3, **OPTIONS),
    "normalized": partial(Quantizer, "ema", normalize=True, **OPTIONS),
    "low-dimensional cosine": partial(Quantizer, "simvq", codebook_dim=3, search=Search("cosine"), **OPTIONS),
    "projected fsq": partial(FSQ, [5, 4, 3], dim=6, channel_dim=1),
    "channel-first residual fsq": partial(ResidualQuantizer, partial(FSQ, [5] * 6), 3, channel_dim=1),
}
FAULTY = {
    "projection": partial(WithoutProjection, "vq", codebook_dim=3, **OPTIONS),
    "normalization": partial(WithoutNormalization, "vq", normalize=True, **OPTIONS),
    "layout": partial(ChannelLast, partial(FSQ, [5] * 6), 3, channel_dim=1),
}


@pytest.mark.parametrize("build", SOUND.values(), ids=SOUND)
def test_vqkit_does_not_have_the_fault(build) -> None:
    check(trained(build()))


@pytest.mark.parametrize("build", FAULTY.values(), ids=FAULTY)
def test_the_check_catches_the_fault(build) -> None:
    with pytest.raises(AssertionError):
        check(build())
