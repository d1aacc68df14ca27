"""The forward pass breaks the compiled graph, and export fails: a flag in a tensor is tested in Python.

Seen in: vector-quantize-pytorch 1.32.0 (measured: VQ 3 graph breaks, 9 in training with replacement, 4-level RVQ 7;
export fails), VQP#41, neucodec#31, encodec#76, optimum#1545.
Avoided since 0.1.0: nothing in forward branches on the value of a tensor; counters that decide are Python integers,
kept as extra state, and read only by the bookkeeping of training, which the compiler steps around: eval is one graph,
training a few, and neither is compiled again at each step.
"""

from functools import partial

import pytest
import torch
from torch import Tensor

from vqkit import BaseQuantizer, Quantizer, ResidualQuantizer, Selection


class FlagInATensor(Quantizer):
    """Asks a buffer whether it is initialized."""

    def choose(self, z: Tensor, valid: Tensor) -> tuple[Tensor, Selection]:
        if not self.codebook.usage.any():
            self.codebook.usage.fill_(1)
        return super().choose(z, valid)


def compiled(quantizer: BaseQuantizer):
    torch.compiler.reset()
    return torch.compile(quantizer, fullgraph=True, backend="eager")  # fullgraph: a graph break is an error


def check(quantizer: BaseQuantizer) -> None:
    x = torch.randn(8, 4)
    quantizer(x)
    quantizer.eval()
    forward = compiled(quantizer)
    with torch.no_grad():
        expected = quantizer(x)
        assert torch.equal(forward(x).indices, expected.indices)
        exported = torch.export.export(quantizer, (x,)).module()(x)
    assert torch.equal(exported.indices, expected.indices) and torch.equal(exported.quantized, expected.quantized)


stage = partial(Quantizer, "ema", dim=4, codebook_size=8)


@pytest.mark.parametrize("build", [stage, partial(ResidualQuantizer, stage, 2, dropout=0.5)], ids=["ema", "residual"])
def test_vqkit_does_not_have_the_fault(build) -> None:
    check(build())


@pytest.mark.slow
@pytest.mark.parametrize("build", [stage, partial(ResidualQuantizer, stage, 2, dropout=0.5)], ids=["ema", "residual"])
def test_training_settles_on_a_few_graphs(build) -> None:
    plain, quantizer = build(), build()
    with torch._dynamo.config.patch(recompile_limit=4, fail_on_recompile_limit_hit=True):
        torch.compiler.reset()
        forward = torch.compile(quantizer, backend="eager")
        for seed in range(12):
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
            assert torch.equal(forward(x).indices, plain(x).indices)


def test_the_check_catches_the_fault() -> None:
    faulty = partial(FlagInATensor, "ema", dim=4, codebook_size=8)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        check(faulty())
    with torch.no_grad(), pytest.raises(RuntimeError, match="data-dependent"):
        torch.export.export(faulty().eval(), (torch.randn(8, 4),))
