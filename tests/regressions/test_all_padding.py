"""A batch of padding alone has a NaN loss.

Seen in: vector-quantize-pytorch 1.32.0 (measured), VQP#62, VQP#188.
Avoided since 0.1.0: `Selection.mean`, with which every loss averages, divides by at least one; the loss is 0 and has
a graph.
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import FSQ, BaseQuantizer, CodebookLoss, Commitment, Quantizer, ResidualQuantizer, Selection


class MeanOfNothing(Commitment):
    """Averages over the rows that are left."""

    def forward(self, selection: Selection, quantized: Tensor) -> Tensor:
        return (selection.z - selection.selected.detach())[selection.valid].square().mean()


def check(quantizer: BaseQuantizer) -> None:
    x = torch.randn(2, 5, 4, requires_grad=True)
    output = quantizer(x, torch.zeros(2, 5, dtype=torch.bool))
    assert output.loss.item() == 0 and all(value.item() == 0 for value in output.losses.values())
    (output.loss + output.quantized.sum()).backward()
    assert not x.grad.any() and not any(value.grad.any() for value in quantizer.parameters())


SOUND = [partial(Quantizer, method, dim=4, codebook_size=8) for method in ("vq", "ema", "simvq")]

test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        *(build() for build in SOUND),
        *(build(codebook_dim=2, normalize=True) for build in SOUND),
        *(ResidualQuantizer(build, 3, dropout=0.5) for build in SOUND),
        FSQ([4, 4, 3, 2]),
    ],
    faulty=[SOUND[0](losses=[MeanOfNothing(), CodebookLoss()])],
)
