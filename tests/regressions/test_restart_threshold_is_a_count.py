"""A threshold for dead codes in counts overwrites most of a healthy codebook whenever there are few tokens per code.

Seen in: vector-quantize-pytorch 1.32.0 (measured: K = 1,024 and 1,024 tokens a step, threshold 2: 70 % of the codes
are overwritten every step), encodec#33, encodec#61, VQP#205, WavTokenizer#82.
Avoided since 0.1.0: `RandomRestart` compares with a fraction of the mean usage, and a replaced code starts with mean
usage.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Codebook, EMACodebook, Quantizer, RandomRestart, distributed


class BelowTwo(RandomRestart):
    """Replaces every code that fewer than two vectors a step choose."""

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        rows, drawn = distributed.shared_rows(z, valid, count=codebook.codebook_size, seed=0, step=codebook.steps)
        share = ((codebook.usage < 2) & drawn).float()
        usage = torch.lerp(codebook.usage, codebook.usage.mean(), share)
        codebook.overwrite(torch.arange(codebook.codebook_size), rows, share=share, usage=usage)


class Counting(EMACodebook):
    """Counts the rows that are overwritten."""

    overwritten = 0

    def overwrite(self, indices: Tensor, vectors: Tensor, *, share: Tensor, usage: Tensor) -> None:
        self.overwritten += int(share.sum())
        super().overwrite(indices, vectors, share=share, usage=usage)


def check(policy: RandomRestart, tokens: int) -> None:
    quantizer = Quantizer("ema", dim=4, codebook_size=128, codebook=Counting, maintenance=[policy])
    quantizer.initialize([torch.randn(tokens, 4) for _ in range(4096 // tokens)])
    for step in range(60):
        if step == 30:
            quantizer.codebook.overwritten = 0
        quantizer(torch.randn(tokens, 4))
    assert quantizer.codebook.overwritten / 30 < 0.01 * 128, "a healthy codebook is overwritten"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *((RandomRestart(every=1), tokens) for tokens in [64, 128, 2048]),
        (BelowTwo(every=1), 2048),  # enough tokens hide it
    ],
    faulty=[(BelowTwo(every=1), 128)],
    message="healthy",
)
