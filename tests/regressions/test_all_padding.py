"""A batch of padding alone has a NaN loss.

Seen in: vector-quantize-pytorch 1.32.0 (measured), VQP#62, VQP#188.
Avoided since 0.1.0: `Selection.mean`, with which every loss averages, divides by at least one; the loss is 0 and has
a graph.
"""

import pytest
import torch
from torch import Tensor

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


@pytest.mark.parametrize("method", ["vq", "ema", "simvq"])
def test_vqkit_does_not_have_the_fault(method: str) -> None:
    check(Quantizer(method, dim=4, codebook_size=8))
    check(Quantizer(method, dim=4, codebook_size=8, codebook_dim=2, normalize=True))
    check(ResidualQuantizer(lambda: Quantizer(method, dim=4, codebook_size=8), 3, dropout=0.5))


def test_fsq_does_not_have_the_fault() -> None:
    check(FSQ([4, 4, 3, 2]))


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError):
        check(Quantizer("vq", dim=4, codebook_size=8, losses=[MeanOfNothing(), CodebookLoss()]))
