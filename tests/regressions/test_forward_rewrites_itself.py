"""The forward pass registers buffers anew, runs its own backward, or moves the codes that it has just passed on.

Seen in: vector-quantize-pytorch 1.32.0 (read: in-place codebook optimizer, affine statistics), and EMA codebooks in
general, where a code that moves between forward and backward gives an estimator the gradient of another code.
Avoided since 0.1.0: codes are written before the search, statistics are recorded after it and folded in at the next
step; state tensors are changed in place only.
"""

import pytest
import torch
from torch import Tensor

from vqkit import EMACodebook, Quantizer, Selection


class RegistersAnew(EMACodebook):
    """Replaces a buffer."""

    def fold(self, fresh: Tensor) -> None:
        super().fold(fresh)
        self.register_buffer("usage", self.usage.clone())


class MovesAtOnce(EMACodebook):
    """Folds the batch in before the forward pass is over."""

    def observe(self, packed: Tensor) -> None:
        super().observe(packed)
        self.step()


class TrainsInside(Quantizer):
    """Calls backward on the way."""

    def choose(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        quantized, selection = super().choose(z, valid)
        (selection.z.detach() - selection.selected).square().mean().backward()
        return quantized, selection


def tensors(quantizer: Quantizer) -> dict[str, Tensor]:
    return dict((*quantizer.named_parameters(), *quantizer.named_buffers()))


def check(quantizer: Quantizer) -> None:
    before = tensors(quantizer)
    for _ in range(3):
        output = quantizer(torch.randn(20, 4))
        assert torch.equal(quantizer.decode(output.indices), output.quantized), "codes moved after they were passed on"
    after = tensors(quantizer)
    assert after.keys() == before.keys()
    assert all(after[name] is value for name, value in before.items()), "a tensor was replaced"
    assert all(value.grad is None for value in quantizer.parameters()), "backward inside forward"


@pytest.mark.parametrize("method", ["vq", "ema", "simvq"])
def test_vqkit_does_not_have_the_fault(method: str) -> None:
    check(Quantizer(method, dim=4, codebook_size=8))


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError, match="replaced"):
        check(Quantizer("ema", dim=4, codebook_size=8, codebook=RegistersAnew))
    with pytest.raises(AssertionError, match="moved"):
        check(Quantizer("ema", dim=4, codebook_size=8, codebook=MovesAtOnce))
    with pytest.raises(AssertionError, match="backward"):
        check(TrainsInside("vq", dim=4, codebook_size=8))
