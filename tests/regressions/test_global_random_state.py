"""Restarts and dropout draw from the global generator: runs differ, and cannot be resumed.

Seen in: vector-quantize-pytorch 1.32.0 (read: no generator hook), VQP#6, audiolm-pytorch#89, audiolm-pytorch#102.
Avoided since 0.1.0: every draw is a function of the seed, the step and the position (`distributed.counter_random`);
the counters are part of the state, and the global generator is neither read nor moved.
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import Codebook, Quantizer, RandomRestart, ResidualQuantizer


class DrawsGlobally(RandomRestart):
    """Picks vectors with the global generator."""

    def refresh(self, codebook: Codebook, z: Tensor, valid: Tensor) -> None:
        chosen = torch.randperm(len(z))[: codebook.codebook_size]
        dead = codebook.usage < self.threshold * codebook.usage.mean()
        usage = torch.where(dead, codebook.usage.mean(), codebook.usage)
        codebook.overwrite(torch.arange(codebook.codebook_size), z[chosen], share=dead.float(), usage=usage)


def check(policy: type[RandomRestart]) -> None:
    states = []
    data = torch.randn(10, 64, 4)
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        stage = partial(Quantizer, "ema", dim=4, codebook_size=16, maintenance=[policy(0.9, every=1)])
        quantizer = ResidualQuantizer(stage, 3, dropout=0.5)
        quantizer.initialize(data)
        for x in data:
            quantizer(x)
        assert torch.equal(torch.get_rng_state(), before), "the global generator moved"
        states.append(quantizer.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[RandomRestart], faulty=[DrawsGlobally], message="generator"
)
