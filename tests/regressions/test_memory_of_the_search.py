"""Training holds the N x K distances several times over: 200 GB at 32k tokens and K = 262k.

Seen in: vector-quantize-pytorch 1.32.0 (measured: six times the N x K matrix in training, four times in eval),
VQP#64, VQP#99, VQP#176, VQGAN-LC#3.
Avoided since 0.1.0: the search works in tiles, statistics are sums by index, and nothing has a one-hot form; memory
is O((N + K) D).
"""

import torch
from torch import Tensor

from tests.largest_tensor import LargestTensor
from tests.regressions.faults import both
from vqkit import Noise, Quantizer, Search, Selection

ROWS, CODES, DIM = 1024, 16384, 4


class AllDistances(Search):
    """Forms every distance at once."""

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        return torch.cdist(z.detach(), codes.detach()).argmin(1)


class OneHotStatistics(Quantizer):
    """Counts the codes with a one-hot matrix."""

    def choose(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        quantized, selection = super().choose(z, valid)
        torch.nn.functional.one_hot(selection.indices, CODES).float().sum(0)
        return quantized, selection


def check(quantizer: Quantizer) -> None:
    x = torch.randn(ROWS, DIM, requires_grad=True)
    with LargestTensor() as record:
        for _ in range(2):
            output = quantizer(x)
            (output.loss + output.quantized.sum()).backward()
        quantizer.eval()(x)
    assert 0 < record.largest <= ROWS * CODES * 4 / 8, "a tensor of N x K numbers"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[Quantizer(method, dim=DIM, codebook_size=CODES) for method in ["vq", "ema", "simvq"]],
    faulty=[
        Quantizer("ema", dim=DIM, codebook_size=CODES, search=AllDistances()),
        OneHotStatistics("ema", dim=DIM, codebook_size=CODES),
    ],
    message="N x K",
)
