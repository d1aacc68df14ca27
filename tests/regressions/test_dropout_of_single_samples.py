"""Quantizer dropout never happens at batch size 1: it is drawn for the first floor(B p) samples of a batch.

Seen in: DAC (read); DAC#40, DAC#106.
Avoided since 0.1.0: every sample draws for itself, whatever its place in the batch and the size of the batch.
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Quantizer, ResidualQuantizer


class FixedShare(ResidualQuantizer):
    """Shortens the first floor(B p) samples."""

    def sample_depths(self, step: int, batch_size: int) -> Tensor:
        depths = torch.full((batch_size,), len(self.stages))
        share = int(self.dropout * batch_size)
        depths[:share] = torch.randint(1, len(self.stages) + 1, (share,))
        return depths


def check(residual: type[ResidualQuantizer], batch: int) -> None:
    quantizer = residual(partial(Quantizer, "vq", dim=4, codebook_size=8), 3, dropout=0.5)
    x = torch.randn(batch, 1, 4)
    shortened = [(quantizer(x).indices[:, 0] == -1).any(-1) for _ in range(240 // batch)]
    share = torch.stack(shortened).float().mean(0)  # for each place in the batch
    assert (share - 1 / 3).abs().max() < 0.15  # p (1 - 1 / stages)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[(ResidualQuantizer, batch) for batch in [1, 3]], faulty=[(FixedShare, batch) for batch in [1, 3]]
)
