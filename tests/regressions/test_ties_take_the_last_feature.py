"""Among features that are equally similar to a code, the last of the batch is taken, which is another one with another
batch size.

Seen in: CVQ-VAE (it sorts all similarities, ascending, and takes the last).
Avoided since 0.1.0: anchors are searched like codes, with the lowest index on ties, ranks in order.
"""

import pytest
import torch
from torch import Tensor

from vqkit import Anchor, ClosestAnchor
from vqkit.functional import unit


class Sorted(Anchor):
    """Takes the end of an ascending order."""

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        order = (unit(codes) @ unit(z).mT).sort(dim=1, stable=True).indices
        return z[order[:, -1]], torch.ones(len(codes), dtype=torch.bool)


def anchors(rank: int, anchor: type[Anchor], joined: bool) -> Tensor:
    """Each feature is followed by ones of the same direction, at two and at four times the length."""
    first = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    z = torch.cat([first, 2 * first, 4 * first])
    z = z if joined else z[:9] if rank == 0 else z[9:]
    codes = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    found, _ = anchor()(codes, z, torch.ones(len(z), dtype=torch.bool), seed=0, step=0)
    expected = first[(unit(codes) @ unit(first).mT).argmax(1)]
    assert torch.equal(found, expected), "another feature than the first of equals"
    return found


def test_vqkit_does_not_have_the_fault(rank_pair) -> None:
    alone = anchors(0, ClosestAnchor, True)
    assert all(torch.equal(found, alone) for found in rank_pair(anchors, ClosestAnchor, False))


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError, match="first of equals"):
        anchors(0, Sorted, True)
