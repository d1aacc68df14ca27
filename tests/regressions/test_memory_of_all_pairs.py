"""Training holds the N x K distances or probabilities several times over: 200 GB at 32k tokens and K = 262k.

Seen in: vector-quantize-pytorch 1.32.0 (measured: six times the N x K matrix in training, four times in eval, seven
times for LFQ), VQP#64, VQP#99, VQP#176, VQGAN-LC#3.
Avoided since 0.1.0: the search works in tiles, statistics are sums by index, and nothing has a one-hot form; memory
is O((N + K) D). The entropy of a vector is a sum over its bits; that of the batch needs only sums over vectors, which
are a matrix product of two halves of the bits, block by block.
"""

import itertools

import torch
from torch import Tensor

from tests.largest_tensor import LargestTensor
from tests.regressions.faults import both
from vqkit import LFQ, BaseQuantizer, BitEntropy, Noise, Quantizer, Search, Selection
from vqkit.kernels import entropy

ROWS, BITS = 1024, 14
SIZES = {"dim": 4, "codebook_size": 2**BITS}


class AllDistances(Search):
    """Forms every distance at once."""

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        return torch.cdist(z.detach(), codes.detach()).argmin(1)


class OneHotStatistics(Quantizer):
    """Counts the codes with a one-hot matrix."""

    def choose(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        quantized, selection = super().choose(z, valid)
        torch.nn.functional.one_hot(selection.indices, self.codebook_size).float().sum(0)
        return quantized, selection


class AllCodes(BitEntropy):
    """Forms the probability of every code for every vector."""

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=BITS)))
        p = (2 * selection.z @ codes.T / self.temperature).softmax(1)
        return entropy(p).mean() - self.diversity * entropy(p.mean(0))


def check(quantizer: BaseQuantizer, share: int = 8) -> None:
    x = torch.randn(ROWS, quantizer.dim, requires_grad=True)
    with LargestTensor() as record:
        for _ in range(2):
            output = quantizer(x)
            (output.loss + output.quantized.sum()).backward()
        quantizer.eval()(x)
    assert 0 < record.largest <= ROWS * 2**BITS * 4 / share, "a tensor of N x K numbers"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *(Quantizer(method, **SIZES) for method in ["vq", "ema", "simvq"]),
        *((LFQ(BITS, losses=[loss]), 32) for loss in [BitEntropy(), BitEntropy(group_bits=BITS)]),
    ],
    faulty=[
        Quantizer("ema", search=AllDistances(), **SIZES),
        OneHotStatistics("ema", **SIZES),
        LFQ(BITS, losses=[AllCodes()]),
    ],
    message="N x K",
)
