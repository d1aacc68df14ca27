"""The non-saturating loss gets its logits as targets, and ones as logits: the pull on a reconstruction is the same
however well it passes for real, and the discriminator has no margin at which it is content.

Seen in: LlamaGen's `non-saturating` option (read: `binary_cross_entropy_with_logits(ones_like(logits), logits)`).
Avoided since 0.2.0: `NonSaturating` is written with the logarithm of the sigmoid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.regressions.faults import both
from trainers.core import AdversarialLoss, NonSaturating


class Reversed(NonSaturating):
    """Both sides as there."""

    def discriminator(self, real: Tensor, fake: Tensor) -> Tensor:
        ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
        return F.binary_cross_entropy_with_logits(ones, real) + F.binary_cross_entropy_with_logits(zeros, fake)

    def generator(self, fake: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(torch.ones_like(fake), fake)


def check(loss: AdversarialLoss) -> None:
    fake = torch.tensor([-8.0, 8.0], requires_grad=True)
    loss.generator(fake).backward()
    found_out, passes = -fake.grad
    assert found_out > 100 * passes > 0
    sure = torch.tensor([30.0], requires_grad=True)
    loss.discriminator(sure, -sure).backward()
    assert sure.grad.abs() < 1e-9


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[NonSaturating()], faulty=[Reversed()]
)
