"""The entropy of the batch is that of one rank's mean divided by the number of ranks: the reduced mean is thrown away.

Seen in: vector-quantize-pytorch 1.32.0 (measured for LFQ with the same data on both ranks: 1.724 instead of 2.755),
VQP#148.
Avoided since 0.1.0: sums of probabilities and counts travel in one differentiable reduction, and the mean is formed
from what came back; value and gradient are those of one process with the joined batch.
"""

import pytest
import torch
from torch import Tensor

from tests.conftest import RankPair
from vqkit import LFQ, BitEntropy, Selection, distributed
from vqkit.kernels import entropy, pattern_sums
from vqkit.quantizers.bit_entropy import bit_entropy, near_equal


class ThrownAway(BitEntropy):
    """Reduces the mean, keeps its own, and divides that by the number of ranks."""

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        logits = selection.z * (4 / self.temperature)
        weights = selection.valid.to(logits.dtype)
        mean = pattern_sums(logits, weights, near_equal(logits.shape[1], self.group_bits)) / weights.sum()
        distributed.all_reduce_sum(mean)
        mean = mean / distributed.world_size()
        return selection.mean(bit_entropy(logits).sum(-1)) - self.diversity * entropy(mean)


def loss_and_gradient(rank: int, loss: BitEntropy, z: Tensor) -> tuple[Tensor, Tensor]:
    """Each rank gets its half of the rows; rank -1 all of them."""
    quantizer = LFQ(z.shape[1], losses=[loss]).double()
    rows = z if rank < 0 else z.chunk(2)[rank]
    rows = rows.clone().requires_grad_()
    total = quantizer(rows).loss
    total.backward()
    return total.detach(), rows.grad


def check(loss: BitEntropy, rank_pair: RankPair) -> None:
    half = 0.005 * torch.randn(30, 5, dtype=torch.float64)
    for z in (torch.cat([half, half]), torch.cat([half, half + 0.005])):
        value, gradient = loss_and_gradient(-1, loss, z)
        results = rank_pair(loss_and_gradient, loss, z)
        assert torch.allclose(sum(result[0] for result in results) / 2, value), "another value than one process has"
        assert torch.allclose(torch.cat([result[1] for result in results]) / 2, gradient)


def test_vqkit_does_not_have_the_fault(rank_pair: RankPair) -> None:
    check(BitEntropy(1.0), rank_pair)


def test_the_check_catches_the_fault(rank_pair: RankPair) -> None:
    with pytest.raises(AssertionError, match="another value"):
        check(ThrownAway(1.0), rank_pair)
