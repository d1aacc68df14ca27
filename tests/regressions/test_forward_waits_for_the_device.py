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
from torch.utils._python_dispatch import TorchDispatchMode

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

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}


class DepthOnTheHost(ResidualQuantizer):
    """Draws one depth for the batch, as a Python number."""

    def sample_depths(self, step: int, batch_size: int) -> Tensor:
        depth = int(torch.randint(1, len(self.stages) + 1, (1,)))
        return torch.full((batch_size,), depth)


class Waits(TorchDispatchMode):
    """Records operations whose result's value or shape the host must know. The search kernel is one operation here."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if name in WAITING or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def check(quantizer: BaseQuantizer) -> None:
    x, mask = torch.randn(4, 10, 6, requires_grad=True), torch.rand(4, 10) < 0.7
    with Waits() as waits:
        for _ in range(3):
            output = quantizer(x, mask)
            (output.loss + output.quantized.sum()).backward()
    assert waits.seen == []


stage = partial(Quantizer, "ema", dim=6, codebook_size=8, maintenance=[RandomRestart(0.5, every=1)])
SOUND = {
    "vq": partial(Quantizer, "vq", dim=6, codebook_size=8, codebook_dim=3),
    "ema": stage,
    "simvq": partial(Quantizer, "simvq", dim=6, codebook_size=8),
    "fsq": partial(FSQ, [5, 5, 4], dim=6),
    "residual": partial(ResidualQuantizer, stage, 3, dropout=0.5),
    **{
        name: partial(Quantizer, name, dim=6, codebook_size=16)
        for name in METHODS
        if name not in ("vq", "ema", "simvq")
    },
    "split": partial(stage, maintenance=[LBGSplitting(every=1)]),
    "lfq": partial(LFQ, 6),
    "bsq": partial(BSQ, 70, dim=6),
    "grouped": partial(GroupedQuantizer, partial(stage, dim=2), 3),
}


@pytest.fixture(autouse=True)
def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nowhere are values read at no cost, as on a GPU."""
    monkeypatch.setattr(runtime, "READ_WITHOUT_WAITING", ())


@pytest.mark.parametrize("build", SOUND.values(), ids=SOUND)
def test_vqkit_does_not_have_the_fault(build) -> None:
    check(build())


def test_the_check_catches_the_fault() -> None:
    with pytest.raises(AssertionError):
        check(DepthOnTheHost(stage, 3, dropout=0.5))
