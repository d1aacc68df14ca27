"""Binary codes of images cannot be decoded: the layout of the input is not undone, or indices of square maps only are
taken.

Seen in: bsq-vit (measured: decoding indices with the layout of images raises a TypeError, and its grouped form takes
the square root of the length).
Avoided since 0.1.0: `BaseQuantizer` moves the channel axis on the way in and out, for every quantizer and any number of
axes; `decode` takes the shape that `encode` gave.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import BSQ, LFQ, BaseQuantizer


class SquareMaps(BSQ):
    """Puts the channels first by the square root of the number of positions."""

    def decode(self, indices: Tensor) -> Tensor:
        vectors = self.lookup(indices).reshape(len(indices), -1, self.dim)
        side = int(vectors.shape[1] ** 0.5)
        assert side * side == vectors.shape[1], "no square"
        return vectors.unflatten(1, (side, side)).movedim(-1, 1)


class ChannelLast(LFQ):
    """Forgets where the channels were."""

    def decode(self, indices: Tensor) -> Tensor:
        return self.lookup(indices)


def check(build: Callable[..., BaseQuantizer]) -> None:
    quantizer = build(channel_dim=1).eval()
    for shape in ((2, 6), (2, 6, 5), (2, 6, 4, 6), (2, 6, 2, 3, 4)):
        x = torch.randn(shape)
        indices = quantizer.encode(x)
        levels = (quantizer.num_codebooks,) if quantizer.level_axis else ()
        assert indices.shape == (2, *shape[2:], *levels)
        assert torch.equal(quantizer.decode(indices), quantizer(x).quantized)


SOUND = {
    "lfq": partial(LFQ, 6),
    "projected lfq": partial(LFQ, 10, dim=6),
    "bsq": partial(BSQ, 6),
    "projected bsq": partial(BSQ, 18, dim=6),
    "bsq of two levels": partial(BSQ, 80, dim=6),
}


@pytest.mark.parametrize("build", SOUND.values(), ids=SOUND)
def test_vqkit_does_not_have_the_fault(build) -> None:
    check(build)


def test_the_check_catches_the_fault() -> None:
    for faulty in (SquareMaps, ChannelLast):
        with pytest.raises(AssertionError):
            check(partial(faulty, 6))
