"""After k-means the codes collapse to the origin: the running sum starts at the centre, the count at the size of the
cluster.

Seen in: EnCodec and early AudioCraft (measured: mean norm of the codes 8.70, then 0.55 after one step).
Avoided since 0.1.0: `EMACodebook` stores the mean itself and no sum; the count is only the inertia of the mean.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import EMACodebook, Quantizer


class SumStartsAtTheCentre(EMACodebook):
    """Keeps sums and counts, and divides."""

    def initialize(self, samples: Tensor, *, vectors_per_step: int, seed: int) -> None:
        super().initialize(samples, vectors_per_step=vectors_per_step, seed=seed)
        self.sums = self.vectors.clone()  # sound: self.usage.unsqueeze(1) * self.vectors

    def fold(self, fresh: Tensor) -> None:
        self.sums = (1 - fresh) * self.sums + fresh * self.pending_sums
        self.vectors.copy_(self.sums / self.usage.unsqueeze(1))


def check(codebook: type[EMACodebook]) -> None:
    quantizer = Quantizer("ema", dim=16, codebook_size=16, codebook=codebook, maintenance=[])
    data = torch.randn(512, 16) + 2
    quantizer.initialize([data])
    norm = quantizer.codebook.vectors.norm(dim=1).mean()
    for step in range(100):
        quantizer(data)
        quantizer.step()
        if step in (0, 99):
            assert abs(quantizer.codebook.vectors.norm(dim=1).mean() / norm - 1) < 0.05


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[EMACodebook], faulty=[SumStartsAtTheCentre]
)
