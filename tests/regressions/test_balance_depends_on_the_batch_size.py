"""A balanced gradient grows with the batch size, and with it against every loss that is not balanced: each item gets
the full length, so that the sum over the batch, which the decoder's weights get, is that of a sum and not of a mean.

Seen in: audiocraft bf70522 (`losses/balancer.py` divides by the mean of the items' norms; read), encodec 30838f8
(`balancer.py`, the same; read).
Avoided since 0.1.0: the norms of the items are summed, so that the result is the gradient of a mean over the batch.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from trainers.core import LossBalancer


class MeanOfNorms(LossBalancer):
    """Takes the mean over the items."""

    def _averaged_sizes(self, gradients: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: gradient.flatten(1).norm(dim=1).mean() for name, gradient in gradients.items()}


def check(balancer: LossBalancer) -> None:
    lengths = []
    for batch in (1, 4, 16):
        bias = torch.zeros(20, requires_grad=True)
        reconstruction = bias.expand(batch, 1, 20) * 1
        balancer({"l2": (reconstruction - 1).square().mean()}, {"l2": 1.0}, reconstruction).backward()
        lengths.append(bias.grad.norm())
    torch.testing.assert_close(torch.stack(lengths), torch.ones(3))


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[LossBalancer(decay=0.0)], faulty=[MeanOfNorms()]
)
