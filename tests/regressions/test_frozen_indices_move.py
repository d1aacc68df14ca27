"""Training on moves the indices of a codebook that was meant to be frozen: data tokenized before means something else.

Seen in: the released VQGAN-LC, whose codebook of running means goes on moving in eval mode (read); `freeze_codebook` of
vector-quantize-pytorch 1.32.0, which does not stop k-means (measured).
Avoided since 0.1.0: a frozen table is a buffer of a codebook whose rows maintenance cannot write; a cascaded codebook
searches one table and trains another.
"""

import pytest
import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import CascadedCodebook, IncompatibleParts, Quantizer, RandomRestart, bake


class SearchesItsValues(CascadedCodebook):
    """One table for both."""

    def search_vectors(self, vectors: Tensor) -> Tensor:
        return vectors


class RunningMeans(Quantizer):
    """A frozen table that statistics move all the same, in eval mode too."""

    def choose(self, latents: Tensor, valid: Tensor):
        quantized, selection = super().choose(latents, valid)
        self.codebook.vectors.lerp_(selection.z.detach().mean(0), 0.5)
        return quantized, selection


def check(quantizer: Quantizer) -> None:
    data = torch.randn(300, 4)
    if quantizer.training:
        quantizer.initialize([data])
    indices = quantizer.encode(data)
    optimizer = torch.optim.Adam([*quantizer.parameters(), torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    for seed in range(15):
        x = 3 * torch.randn(100, 4, generator=torch.Generator().manual_seed(seed)).requires_grad_()
        output = quantizer(x)
        (output.loss + (output.quantized - 5).square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        quantizer.step()
    assert torch.equal(quantizer.encode(data), indices), "an index moved"


@pytest.mark.parametrize("training", [False, True])
def test_a_baked_quantizer_does_not_have_it(training: bool) -> None:
    quantizer = Quantizer("ema", dim=4, codebook_size=32)
    quantizer.initialize([torch.randn(300, 4)])
    check(bake(quantizer).train(training))


@pytest.mark.parametrize("method", ["cascaded", "seeded"])
def test_maintenance_cannot_write_it(method: str) -> None:
    with pytest.raises(IncompatibleParts, match="are frozen"):
        Quantizer(method, dim=4, codebook_size=32, maintenance=[RandomRestart()])


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[Quantizer(method, dim=4, codebook_size=32) for method in ["cascaded", "seeded"]],
    faulty=[
        Quantizer("cascaded", dim=4, codebook_size=32, codebook=SearchesItsValues),
        RunningMeans("seeded", dim=4, codebook_size=32),
    ],
    message="moved",
)
