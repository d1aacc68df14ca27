"""Encode, decode and the eval forward compile in one graph and export, for every quantizer (property P13)."""

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES, MATRIX, Case, each
from tests.contract.test_contract import initialized
from vqkit import BaseQuantizer


class Encode(torch.nn.Module):
    def __init__(self, quantizer: BaseQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer.encode(x)


class Decode(Encode):
    def forward(self, x: Tensor) -> Tensor:
        return self.quantizer.decode(x)


def assert_equal_outputs(ours, expected) -> None:
    assert torch.equal(ours.indices, expected.indices)
    assert torch.allclose(ours.quantized, expected.quantized, atol=1e-6)
    assert torch.allclose(ours.loss, expected.loss, atol=1e-6)


@each(CASES, MATRIX, "ema", "fsq", "residual")
def test_one_graph(case: Case) -> None:
    torch.compiler.reset()
    quantizer = initialized(case).eval()
    x = case.example()
    with torch.no_grad():
        expected = quantizer(x)
        assert_equal_outputs(torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x), expected)
        assert torch.equal(torch.compile(quantizer.encode, fullgraph=True, backend="aot_eager")(x), expected.indices)
        decoded = torch.compile(quantizer.decode, fullgraph=True, backend="aot_eager")(expected.indices)
        assert torch.allclose(decoded, expected.quantized, atol=1e-6)


def test_one_graph_in_training_on_frozen_features() -> None:
    torch.compiler.reset()
    quantizer = initialized(CASES["fsq"]).train()
    x = CASES["fsq"].example()
    assert_equal_outputs(torch.compile(quantizer, fullgraph=True, backend="aot_eager")(x), quantizer(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vq", "fsq", "residual"])
def test_inductor_gives_the_codes_of_eager(name: str) -> None:
    torch.compiler.reset()
    quantizer = initialized(CASES[name]).eval()
    x = CASES[name].example()
    with torch.no_grad():
        assert_equal_outputs(torch.compile(quantizer, fullgraph=True)(x), quantizer(x))


@each(CASES, MATRIX, "vq", "residual")
def test_export(case: Case) -> None:
    quantizer = initialized(case).eval()
    x = case.example()
    dynamic = None if case.spatial else {"x": {0: torch.export.Dim("batch", min=2, max=512)}}
    with torch.no_grad():
        expected = quantizer(x)
        assert_equal_outputs(torch.export.export(quantizer, (x,)).module()(x), expected)
        encode = torch.export.export(Encode(quantizer), (x,), dynamic_shapes=dynamic).module()
        decode = torch.export.export(Decode(quantizer), (expected.indices,), dynamic_shapes=dynamic).module()
        larger = x if case.spatial else case.example(17)
        indices = quantizer.encode(larger)
        assert torch.equal(encode(larger), indices)
        assert torch.allclose(decode(indices), quantizer.decode(indices), atol=1e-6)
