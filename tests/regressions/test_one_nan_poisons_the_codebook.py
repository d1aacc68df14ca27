"""One NaN vector in a batch turns the whole codebook into NaN, through the running means.

Seen in: vector-quantize-pytorch 1.32.0 (measured), VQP#85, VQP#106, VQP#144, encodec-pytorch#8, SEED-Voken#53.
Avoided since 0.1.0: `BaseQuantizer` leaves non-finite vectors out (index -1, no statistics, no loss) and counts them
in `nonfinite`.
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import BaseQuantizer, Quantizer, ResidualQuantizer


class LetsEverythingIn(Quantizer):
    """Does not look at the values."""

    def open(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        valid = torch.ones(x.shape[:-1], dtype=torch.bool) if mask is None else mask
        return x, valid, torch.zeros((), dtype=torch.int64)


def check(quantizer: BaseQuantizer) -> None:
    for value in (float("nan"), float("inf")):
        x = torch.randn(10, 4)
        x[3, 2] = value
        output = quantizer(x)
        quantizer.step()
        state = [*quantizer.state_dict().values(), output.loss, output.quantized]
        assert all(tensor.isfinite().all() for tensor in state)
        assert int(output.nonfinite) == 1 and (output.indices[3] == -1).all() and (output.indices[:3] >= 0).all()


stage = partial(Quantizer, "ema", dim=4, codebook_size=8)

test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[stage(), ResidualQuantizer(stage, 3), Quantizer("vq", dim=4, codebook_size=8, codebook_dim=3)],
    faulty=[LetsEverythingIn("ema", dim=4, codebook_size=8)],
)


def test_a_value_that_overflows_float32_does_not_poison_either() -> None:
    quantizer = Quantizer("ema", dim=4, codebook_size=8)
    x = torch.randn(10, 4, dtype=torch.float64)
    x[3, 2] = 1e300
    output = quantizer(x)
    quantizer.step()
    assert output.loss.isfinite() and quantizer.codebook.vectors.isfinite().all()
    assert int(output.nonfinite) == 1


def test_finite_vectors_too_long_for_float32_arithmetic_do_not_poison_either() -> None:
    quantizer = Quantizer("ema", dim=4, codebook_size=8)
    quantizer.initialize([torch.randn(100, 4)])
    for seed in range(8):
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed))
        x[::7] = 1e38 * x[::7].sign()
        output = quantizer(x.requires_grad_())
        (output.loss + output.quantized.sum()).backward()
        assert output.loss.isfinite() and x.grad.isfinite().all()
        assert int(output.nonfinite) == 6 and (output.indices[::7] == -1).all()
    quantizer.step()
    assert quantizer.codebook.vectors.isfinite().all()
