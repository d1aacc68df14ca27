"""Under reentrant activation checkpointing only the recomputation sees gradients, in a backward, where it does not
count: after one plain forward nothing is refused, and the codebook never learns again.

Seen in: vqkit 0.1.0 (measured: after 100 steps no code had moved).
Avoided since 0.2.0: in training a quantizer refuses to run inside of an autograd function; forwards under
`torch.no_grad()` and non-reentrant checkpointing are not touched (tests/contract/test_contract.py).
"""

import torch
from torch.utils.checkpoint import checkpoint

from tests.regressions.faults import both
from vqkit import Quantizer


class Unguarded(Quantizer):
    """Looks at no forward."""

    def check_counted(self) -> None:
        pass


def check(kind: type[Quantizer]) -> None:
    quantizer, x = kind("ema", dim=4, codebook_size=8, maintenance=[]), torch.randn(40, 4).requires_grad_()
    quantizer(x).loss.backward()
    quantizer.step()
    before = quantizer.codebook.vectors.clone()
    try:
        checkpoint(lambda y: quantizer(y + 5).quantized, x, use_reentrant=True).sum().backward()
    except RuntimeError as error:
        assert "use_reentrant=False" in str(error)
        return
    quantizer.step()
    assert not torch.equal(before, quantizer.codebook.vectors), "nothing is learned"


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check, sound=[Quantizer], faulty=[Unguarded], message="nothing is learned"
)
