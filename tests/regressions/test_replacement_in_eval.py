"""Evaluation counts as usage, and replaces codes: the counters of the replacement run whatever the mode.

Seen in: DiVeQ's released code (read: `forward` counts and replaces in eval mode too), users of NSVQ who call its
replacement in validation (read: LAPA).
Avoided since 0.1.0: a quantizer maintains and observes only while `learning`, in training mode with gradients on.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Quantizer, RandomRestart, Selection
from vqkit.kernels import segment_stats


class CountsAlways(Quantizer):
    """Maintains and observes in any mode."""

    def choose(self, latents: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        if not self.learning:
            self.refresh(latents, valid)
        quantized, selection = super().choose(latents, valid)
        if not self.learning:
            self.codebook.observe(segment_stats(selection.z[:, :0], selection.indices, self.codebook_size).packed)
        return quantized, selection


def check(kind: type[Quantizer], method: str) -> None:
    quantizer = kind(method, dim=4, codebook_size=16, maintenance=[RandomRestart(0.5, every=1)])
    quantizer(torch.randn(64, 4))
    with torch.no_grad():
        quantizer.codebook.vectors[5] = 1000.0
        quantizer.codebook.usage[5] = 0.0
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    quantizer.eval()
    for _ in range(3):
        quantizer(torch.randn(64, 4, requires_grad=True))
        quantizer.encode(torch.randn(64, 4))
    after = quantizer.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == [], "evaluation left a trace"
    quantizer.train()(torch.randn(64, 4))
    assert quantizer.codebook.vectors[5].norm() < 10, "training does not replace"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[(Quantizer, method) for method in ["nsvq", "diveq", "ema"]],
    faulty=[(CountsAlways, method) for method in ["nsvq", "diveq"]],
    message="left a trace",
)
