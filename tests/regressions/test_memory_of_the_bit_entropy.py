"""Training a lookup-free quantizer holds the N x K probabilities of all codes several times over.

Seen in: vector-quantize-pytorch 1.32.0 (measured for LFQ: seven times the N x K matrix).
Avoided since 0.1.0: the entropy of a vector is a sum over its bits; that of the batch needs only sums over vectors,
which are a matrix product of two halves of the bits, block by block.
"""

import itertools

import torch
from torch import Tensor

from tests.largest_tensor import LargestTensor
from tests.regressions.faults import both
from vqkit import LFQ, BitEntropy, Selection
from vqkit.kernels import entropy

ROWS, BITS = 1024, 14


class AllCodes(BitEntropy):
    """Forms the probability of every code for every vector."""

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=BITS)))
        p = (2 * selection.z @ codes.T / self.temperature).softmax(1)
        return entropy(p).mean() - self.diversity * entropy(p.mean(0))


def check(loss: BitEntropy) -> None:
    quantizer, z = LFQ(BITS, losses=[loss]), torch.randn(ROWS, BITS, requires_grad=True)
    with LargestTensor() as record:
        quantizer(z).loss.backward()
    assert 0 < record.largest <= ROWS * 2**BITS * 4 / 32, "a tensor of N x K numbers"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[BitEntropy(), BitEntropy(group_bits=BITS)], faulty=[AllCodes()], message="N x K"
)
