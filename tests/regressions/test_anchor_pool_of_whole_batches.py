"""Random anchors come from a pool of as many features as there are codes, which must be filled by whole batches: any
other batch size raises.

Seen in: CVQ-VAE (`anchor="random"`: RuntimeError unless batches exactly fill the pool).
Avoided since 0.1.0: `RandomAnchor` draws from the batch itself; where it has fewer vectors than there are codes, some
codes get none at this step.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Anchor, ClusterReinit, Quantizer, RandomAnchor


class Pool(Anchor):
    """A pool of K features, written in whole batches."""

    def __call__(self, codes: Tensor, z: Tensor, valid: Tensor, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
        pool = torch.zeros_like(codes)
        for start in range(0, len(pool), len(z)):
            pool[start : start + len(z)] = z
        return pool, torch.ones(len(codes), dtype=torch.bool)


def check(anchor: type[Anchor], batch: int) -> None:
    quantizer = Quantizer("cvq", dim=4, codebook_size=32, maintenance=[ClusterReinit(anchor())])
    before = quantizer.codebook.vectors.detach().clone()
    for _ in range(4):
        quantizer(torch.randn(batch, 4))
        quantizer.step()
        quantizer.codebook.usage.zero_()
    moved = (quantizer.codebook.vectors.detach() != before).any(1)
    assert int(moved.sum()) >= min(batch, 32)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[*((RandomAnchor, batch) for batch in [1, 7, 16, 32, 33, 100]), (Pool, 16)],
    faulty=[(Pool, 7)],
    error=RuntimeError,
)
