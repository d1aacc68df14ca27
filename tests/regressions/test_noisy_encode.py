"""A Gumbel quantizer draws in evaluation too: the same image gets other indices each time that it is encoded.

Seen in: taming-transformers' GumbelQuantize (read: `gumbel_softmax` adds its noise whatever the mode).
Avoided since 0.1.0: a search gets noise in training with gradients only; `encode`, eval mode and `no_grad` take the
largest dot product.
"""

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import GumbelSearch, Noise, Quantizer


class AlwaysNoisy(GumbelSearch):
    """Adds noise of its own where it is given none."""

    def forward(self, z: Tensor, codes: Tensor, noise: Noise | None = None) -> Tensor:
        gumbel = -torch.log(-torch.log(torch.rand(len(z), len(codes))))
        return (z @ codes.T + gumbel).argmax(1)


def check(search: GumbelSearch) -> None:
    quantizer = Quantizer("gumbel", dim=4, codebook_size=16, search=search)
    x = torch.randn(300, 4)
    best = (x @ quantizer.codebook.vectors.T).argmax(1)
    assert torch.equal(quantizer.encode(x), best), "encode draws"
    with torch.no_grad():
        assert torch.equal(quantizer(x).indices, best), "no_grad draws"
    assert not torch.equal(quantizer(x).indices, best), "training does not draw"
    quantizer.eval()
    assert torch.equal(quantizer(x).indices, best) and torch.equal(quantizer.encode(x), best), "eval draws"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[GumbelSearch()], faulty=[AlwaysNoisy()], message="encode draws"
)
