"""Under gradient accumulation the running means step once per micro-batch, so the codebook depends on how a batch is
cut.

Seen in: VQP#221, pytorch-vq-vae#5, VQP#49.
Avoided since 0.1.0: `observe` only adds to pending statistics; with `auto_step=False`, `step()` folds them in at the
optimizer boundary.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import EMACodebook, Quantizer, RandomRestart


class StepsEveryForward(EMACodebook):
    """Folds each micro-batch in by itself."""

    def observe(self, packed: Tensor) -> None:
        super().observe(packed)
        self.step()


def train(codebook: type[EMACodebook], parts: int) -> dict[str, Tensor]:
    quantizer = Quantizer(
        "ema", dim=4, codebook_size=8, codebook=codebook, auto_step=False, maintenance=[RandomRestart(0.3, every=2)]
    ).double()
    for seed in range(8):
        batch = torch.randn(64, 4, generator=torch.Generator().manual_seed(seed))
        for part in batch.chunk(parts):
            quantizer(part)
        quantizer.step()
    return quantizer.state_dict()


def check(codebook: type[EMACodebook]) -> None:
    whole, cut = train(codebook, 1), train(codebook, 4)
    assert all(torch.allclose(value.double(), cut[name].double(), rtol=0, atol=1e-12) for name, value in whole.items())


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[EMACodebook], faulty=[StepsEveryForward]
)
