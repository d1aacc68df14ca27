"""Every training step waits for the device: the depth of quantizer dropout, or a check for dead codes, is read on the
host.

Seen in: vector-quantize-pytorch 1.32.0 (read: dropout depth).
Avoided since 0.1.0: dropout, restarts and counters are tensor operations of fixed shape; `health()` reads the
counters when it is called.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.regressions.faults import both
from tests.waiting import Waits
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    GroupedQuantizer,
    LBGSplitting,
    Quantizer,
    RandomRestart,
    ResidualQuantizer,
    runtime,
)
from vqkit.methods import METHODS


class DepthOnTheHost(ResidualQuantizer):
    """Draws one depth for the batch, as a Python number."""

    def sample_depths(self, step: int, batch_size: int) -> Tensor:
        depth = int(torch.randint(1, len(self.stages) + 1, (1,)))
        return torch.full((batch_size,), depth)


def check(quantizer: BaseQuantizer) -> None:
    x, mask = torch.randn(4, 10, 6, requires_grad=True), torch.rand(4, 10) < 0.7
    with Waits() as waits:
        for _ in range(3):
            output = quantizer(x, mask)
            (output.loss + output.quantized.sum()).backward()
    assert waits.seen == []


stage = partial(Quantizer, "ema", dim=6, codebook_size=8, maintenance=[RandomRestart(0.5, every=1)])


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere are values read at no cost, as on a GPU."""
    monkeypatch.setattr(runtime, "READ_WITHOUT_WAITING", ())


test_vqkit_does_not_have_the_fault, test_the_check_catches_the_fault = both(
    check,
    sound=[
        Quantizer("vq", dim=6, codebook_size=8, codebook_dim=3),
        stage(),
        FSQ([5, 5, 4], dim=6),
        ResidualQuantizer(stage, 3, dropout=0.5),
        *(Quantizer(name, dim=6, codebook_size=16) for name in METHODS if name not in ("vq", "ema")),
        stage(maintenance=[LBGSplitting(every=1)]),
        LFQ(6),
        BSQ(70, dim=6),
        GroupedQuantizer(partial(stage, dim=2), 3),
    ],
    faulty=[DepthOnTheHost(stage, 3, dropout=0.5)],
)
