"""One code, one vector, one dimension, fewer vectors than codes, equal codes, vectors of zeros (property P6)."""

from functools import partial

import pytest
import torch

from vqkit import BridgedCodebook, Quantizer, bake
from vqkit.methods import METHODS

every_method = pytest.mark.parametrize("method", METHODS)


def build(method: str, *, dim: int = 4, codebook_size: int = 8, **options) -> Quantizer:
    if method == "fvq":  # its grid of codes has to hold whole patches
        options["codebook"] = partial(BridgedCodebook, patch_size=1)
    return Quantizer(method, dim=dim, codebook_size=codebook_size, **options)


def train(quantizer: Quantizer, x: torch.Tensor) -> torch.Tensor:
    """Two steps; everything that comes out is finite."""
    for _ in range(2):
        inputs = x.clone().requires_grad_()
        output = quantizer(inputs)
        (output.quantized.square().mean() + output.loss).backward()
        assert output.quantized.isfinite().all() and inputs.grad.isfinite().all()
        assert all(value.grad is not None and value.grad.isfinite().all() for value in quantizer.parameters())
    quantizer.step()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())
    return output.indices


@every_method
def test_one_code(method: str) -> None:
    quantizer = build(method, codebook_size=1)
    quantizer.initialize([torch.randn(20, 4)])
    assert not train(quantizer, torch.randn(9, 4)).any()


@every_method
@pytest.mark.parametrize(
    ("sizes", "samples", "batch"),
    [
        ({}, torch.randn(20, 4), torch.randn(1, 4)),
        ({"codebook_size": 16}, torch.randn(3, 4), torch.randn(5, 4)),
        ({"dim": 1}, torch.randn(50, 1), torch.randn(20, 1)),
        ({}, torch.ones(20, 4), torch.ones(6, 4)),
    ],
    ids=["one vector", "fewer vectors than codes", "one dimension", "equal vectors"],
)
@pytest.mark.filterwarnings("ignore:.*the codes spread")
def test_small_sets(method: str, sizes: dict[str, int], samples: torch.Tensor, batch: torch.Tensor) -> None:
    quantizer = build(method, **sizes)
    quantizer.initialize([samples])
    assert train(quantizer, batch).shape == batch.shape[:1]


@every_method
def test_vectors_of_zeros(method: str) -> None:
    quantizer = build(method)
    quantizer.initialize([torch.randn(20, 4)])
    indices = train(quantizer, torch.zeros(6, 4))
    assert len(indices.unique()) == 1 or quantizer.search.uses_noise


@every_method
@pytest.mark.parametrize("normalize", [False, True])
def test_of_equal_codes_the_first_is_taken(method: str, normalize: bool) -> None:
    quantizer = build(method, normalize=normalize)
    quantizer.initialize([torch.randn(50, 4)])
    quantizer = bake(quantizer)
    tables = [value for value in quantizer.codebook.state_dict().values() if value.shape == (8, quantizer.codebook_dim)]
    for table in tables:
        table[4:] = table[:4].clone()
    indices = quantizer.encode(torch.randn(100, 4))
    assert indices.max() < 4 and len(indices.unique()) > 1
