"""A replaced code keeps the optimizer's momentum of the vector that it replaced, which carries it off.

Seen in: CVQ-VAE, and every restart of codes that Adam trains.
Avoided since 0.1.0: `Codebook.rewritten` records what share of each row was rewritten, and the trainer scales the
optimizer's moments of that row by the rest before it steps.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

from tests.regressions.faults import both
from trainers.core.moments import forget_rewritten_rows
from vqkit import ClusterReinit, Quantizer


def check(before_the_step: Callable[[nn.Module, Optimizer], None]) -> None:
    quantizer = Quantizer("cvq", dim=4, codebook_size=8, maintenance=[ClusterReinit()])
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    codebook = quantizer.codebook
    for _ in range(20):
        codebook.vectors.grad = torch.ones(8, 4)
        optimizer.step()
    codebook.usage.fill_(1)
    codebook.usage[3] = 0
    codebook.steps = 1
    quantizer(torch.randn(50, 4) + 2)
    placed = codebook.vectors[3].detach().clone()
    codebook.vectors.grad = torch.zeros(8, 4)
    before_the_step(quantizer, optimizer)
    optimizer.step()
    moved = (codebook.vectors.detach() - placed).norm(dim=1)
    assert moved[3] < 0.02, "the new code was carried off"
    assert (codebook.vectors.detach()[0] < -1).all()  # codes that stayed keep their momentum


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[forget_rewritten_rows], faulty=[lambda quantizer, optimizer: None], message="carried off"
)
