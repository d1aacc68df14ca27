"""Codes that nobody chooses are drawn to the origin: Laplace smoothing, or a floor below the count, divides by too
much.

Seen in: EnCodec, vector-quantize-pytorch (measured: norm 200, then 162 after 1,000 and 5.5 after 1,500 steps), and
Mimi's floor where restarts are off.
Avoided since 0.1.0: the update is e + (1 - decay) (s - c e) / n, whose change is exactly 0 where the count c of a
step is 0.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import EMACodebook
from vqkit.kernels import segment_stats


class Floored(EMACodebook):
    """Divides a running sum by the running count, but by no less than a small number."""

    sums: Tensor | None = None

    def denominator(self) -> Tensor:
        return self.usage.clamp(min=1e-5)

    def fold(self, fresh: Tensor) -> None:
        before = (self.usage - fresh * self.pending_counts) / (1 - fresh)
        sums = before.unsqueeze(1) * self.vectors if self.sums is None else self.sums
        self.sums = (1 - fresh) * sums + fresh * self.pending_sums
        self.vectors.copy_(self.sums / self.denominator().unsqueeze(1))


class Smoothed(Floored):
    """Divides by the smoothed count."""

    def denominator(self) -> Tensor:
        total = self.usage.sum()
        return (self.usage + 1e-5) / (total + self.codebook_size * 1e-5) * total


def check(codebook: EMACodebook, steps: int) -> None:
    """Half of the codes are chosen at every step, the other half never."""
    codebook.vectors.copy_(100 + torch.randn(8, 4))
    before = codebook.vectors.clone()
    z = 100 + torch.randn(12, 4)
    packed = segment_stats(z, torch.arange(12) % 4, 8).packed
    for _ in range(steps):
        codebook.observe(packed)
        codebook.step()
    change = (codebook.vectors - before)[4:].norm(dim=1) / before[4:].norm(dim=1)
    assert change.max() <= 1e-6, "codes that are not used moved"
    assert codebook.vectors.norm(dim=1).max() / codebook.vectors.norm(dim=1).min() < 2
    # A step of less than half a unit in the last place is lost: at most 2^-24 / (1 - 0.99) of a code is missing.
    torch.testing.assert_close(codebook.vectors[:4], z.reshape(3, 4, 4).mean(0), rtol=1e-5, atol=0)


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(EMACodebook(8, 4), 5000), (EMACodebook(8, 4, usage_decay=0.8), 500)],
    faulty=[(codebook(8, 4, usage_decay=0.8), 500) for codebook in [Floored, Smoothed]],
    message="moved",
)
