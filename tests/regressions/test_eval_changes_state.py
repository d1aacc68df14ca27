"""Evaluation, or a frozen model, changes the codebook: the first batch is taken for k-means whatever the mode.

Seen in: vector-quantize-pytorch 1.32.0 (measured: k-means in `.eval()`, and although `freeze_codebook` was set),
VQP#42, VQP#68, VQP#162, VQP#163, VQP#209.
Avoided since 0.1.0: initialization is the explicit `initialize(latents)`; forward writes only while `learning`, that
is in training mode with gradients on.
"""

from functools import partial

import torch
from torch import Tensor

from tests.regressions.faults import both
from vqkit import BaseQuantizer, Quantizer, ResidualQuantizer, Selection


class FirstBatchMagic(Quantizer):
    """Fits the codebook to the first batch that it sees."""

    fitted = False

    def choose(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        if not self.fitted:
            self.fitted = True
            with torch.no_grad():
                self.codebook.vectors.copy_(z[: self.codebook_size])
        return super().choose(z, valid)


def state(quantizer: BaseQuantizer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in (*quantizer.state_dict().items(), *quantizer.named_buffers())}


def check(build) -> None:
    for mode in ("eval", "no_grad", "encode"):
        quantizer = build().train(mode != "eval")
        before = state(quantizer)
        for _ in range(3):
            if mode == "eval":
                quantizer(torch.randn(64, 4))
            elif mode == "encode":
                quantizer.encode(torch.randn(64, 4))
            else:
                with torch.no_grad():
                    quantizer(torch.randn(64, 4))
        after = state(quantizer)
        assert [name for name in before if not torch.equal(before[name], after[name])] == [], mode


STAGES = [partial(Quantizer, method, dim=4, codebook_size=8) for method in ("vq", "ema", "simvq")]

test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[*STAGES, *(partial(ResidualQuantizer, stage, 3, dropout=0.5) for stage in STAGES)],
    faulty=[partial(FirstBatchMagic, "ema", dim=4, codebook_size=8)],
)
