"""Usage counts and running means are registered as parameters: an optimizer's weight decay changes them, and writing to
them in place fails.

Seen in: the released VQGAN-LC, whose running means are parameters that move in eval mode too, and the released FVQ,
whose usage counter cannot be written on a CPU (read).
Avoided since 0.1.0: what an optimizer may change is a parameter and what is counted is a buffer; parameters all take
part in the graph.
"""

import torch
from torch import nn

from tests.regressions.faults import both
from vqkit import EMACodebook, FrozenCodebook, Quantizer
from vqkit.methods import METHODS

COUNTED = ("usage", "pending_counts", "pending_sums")


class CountsAreParameters(EMACodebook):
    """As if an optimizer should have them."""

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__(codebook_size, dim)
        usage = self.usage
        del self.usage
        self.usage = nn.Parameter(usage)


class MeansAreParameters(EMACodebook):
    """Without a gradient, but with weight decay."""

    def build_vectors(self, generator: torch.Generator) -> None:
        super().build_vectors(generator)
        vectors = self.vectors
        del self.vectors
        self.vectors = nn.Parameter(vectors)


def check(quantizer: Quantizer) -> None:
    quantizer.initialize([torch.randn(500, 4)])
    parameters = [*quantizer.parameters(), nn.Parameter(torch.ones(1))]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)
    output = quantizer(torch.randn(50, 4, requires_grad=True))
    (output.loss + output.quantized.sum()).backward()
    parameters[-1].grad = torch.ones(1)
    # Weight decay touches whatever has a gradient, and distributed data parallel gives one to every parameter.
    for value in quantizer.parameters():
        value.grad = torch.zeros_like(value) if value.grad is None else value.grad
    learns_by_gradient = quantizer.codebook.trained_by == "gradient"
    before = {name: value.clone() for name, value in quantizer.codebook.state_dict().items()}
    optimizer.step()
    kept = [name for name in before if name in COUNTED or not learns_by_gradient]
    after = quantizer.codebook.state_dict()
    assert [name for name in kept if not torch.equal(after[name], before[name])] == [], "an optimizer moved statistics"


def test_a_baked_table_does_not_have_it_either() -> None:
    check(Quantizer("vq", dim=4, codebook_size=32, codebook=FrozenCodebook, losses=[]))


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[Quantizer(method, dim=4, codebook_size=32) for method in METHODS],
    faulty=[
        Quantizer("ema", dim=4, codebook_size=32, codebook=codebook, maintenance=[])
        for codebook in [CountsAreParameters, MeansAreParameters]
    ],
    error=(AssertionError, RuntimeError),
)
