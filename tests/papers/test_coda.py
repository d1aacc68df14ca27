"""Attention discretization against its equations (Liu et al. 2025 and their code), materialised in float64."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.papers.equations import assert_computes
from vqkit import BaseQuantizer, MultiScaleQuantizer, Quantizer, bake

DIM, SIZE, ATTENTION_DIM, ROWS = 5, 9, 32, 40
SCALES = [1, 2, 3, 5]


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt() * gain


def oracle(z: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized, indices and loss, each from the N x K matrix of probabilities."""

    def mapped(name: str, x: Tensor) -> Tensor:
        return x @ weights[f"to_{name}.weight"].T + weights[f"to_{name}.bias"]

    query = rms_norm(mapped("query", z), weights["query_norm.weight"])
    key = rms_norm(mapped("key", weights["base"]), weights["key_norm.weight"])
    value = mapped("value", weights["base"])
    logits = query @ key.T / math.sqrt(ATTENTION_DIM)
    soft, indices = logits.softmax(1), logits.argmax(1)
    hard = F.one_hot(indices, SIZE).to(z.dtype)
    quantized = (hard - soft.detach() + soft) @ value
    chosen = hard @ value
    double = F.mse_loss(quantized, z) + F.mse_loss(chosen.detach(), z) + 0.05 * F.mse_loss(chosen, z.detach())
    sharp = (logits / 0.01).softmax(1)
    mean = sharp.mean(0)
    per_sample = -(sharp * (logits / 0.01).log_softmax(1)).sum(1).mean()
    return quantized, indices, double + 0.05 * (per_sample + (mean * mean.clamp(min=1e-300).log()).sum())


def problem(method: str = "coda") -> tuple[Quantizer, Tensor, Tensor]:
    """A quantizer in float64 with gains that differ, vectors and an upstream gradient."""
    torch.manual_seed(0)
    quantizer = Quantizer(method, dim=DIM, codebook_size=SIZE).double()
    for name, parameter in quantizer.codebook.named_parameters():
        if "norm" in name:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return quantizer, torch.randn(ROWS, DIM, dtype=torch.float64, requires_grad=True), torch.randn(ROWS, DIM).double()


def test_values_losses_and_gradients() -> None:
    quantizer, z, _ = problem()
    output = assert_computes(oracle, quantizer, z, atol=1e-11, weights=quantizer.codebook)
    assert len(output.indices.unique()) > 2
    assert torch.equal(output.quantized, quantizer.decode(output.indices))


def scaled(method: str) -> MultiScaleQuantizer:
    """The published quantizer: all scales share a codebook, nothing is detached, and nothing smoothes the maps."""
    stage = partial(Quantizer, method, dim=DIM, codebook_size=SIZE)
    return MultiScaleQuantizer(stage, SCALES, num_phis=0, losses=[], estimator=None, channel_dim=1).double()


def oracle_of_scales(x: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    total, residual, found, losses = torch.zeros_like(x), x, [], []
    for scale in SCALES:
        cells = F.interpolate(residual, size=(scale, scale), mode="area")
        quantized, indices, loss = oracle(cells.movedim(1, -1).reshape(-1, DIM), weights)
        added = F.interpolate(quantized.reshape(3, scale, scale, DIM).movedim(-1, 1), size=(5, 5), mode="bicubic")
        total, residual = total + added, residual - added
        found.append(indices.reshape(3, -1))
        losses.append(loss)
    return total, torch.cat(found, dim=1), torch.stack(losses).mean()


def test_scales() -> None:
    torch.manual_seed(0)
    quantizer = scaled("coda")
    x = torch.randn(3, DIM, 5, 5, dtype=torch.float64)
    output = assert_computes(oracle_of_scales, quantizer, x, atol=1e-11, weights=quantizer.stages[0].codebook)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)


def test_the_last_scale_adds_its_codes_as_they_are() -> None:
    quantizer = scaled("coda")
    indices = quantizer.encode(torch.randn(3, DIM, 5, 5, dtype=torch.float64))
    added = quantizer.decode(indices) - quantizer.decode(indices[:, : quantizer.ends[-2]])
    codes = quantizer.stages[0].decode(indices[:, quantizer.ends[-2] :]).mT.reshape(3, DIM, 5, 5)
    torch.testing.assert_close(added, codes, rtol=0, atol=1e-14)


def without_maps(quantizer: Quantizer) -> None:
    """The base itself in the place of keys and values, and its division by sqrt(A) taken back."""
    book = quantizer.codebook
    book.to_query, book.to_key, book.to_value = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
    book.query_norm, book.key_norm = nn.Identity(), nn.Identity()
    for layer, scale in ((book.to_query, math.sqrt(ATTENTION_DIM)), (book.to_key, 1.0), (book.to_value, 1.0)):
        layer.weight = nn.Parameter(scale * torch.eye(DIM, dtype=torch.float64))


@pytest.mark.parametrize("build", [lambda method: problem(method)[0], scaled], ids=["one scale", "scales"])
def test_without_maps_and_norms_it_is_index_backpropagation(build: Callable[[str], BaseQuantizer]) -> None:
    """With the same weight of the codebook loss."""
    coda, ibq = build("coda"), build("ibq")
    (ours,), (theirs,) = ([part for part in one.modules() if isinstance(part, Quantizer)] for one in (coda, ibq))
    without_maps(ours)
    theirs.losses[2].weight = 0.05
    theirs.codebook.vectors.data.copy_(ours.codebook.base)
    shape = (3, DIM, 5, 5) if build is scaled else (ROWS, DIM)
    z = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y, upstream = z.detach().clone().requires_grad_(), torch.randn_like(z)
    results = []
    for layer, x in ((coda, z), (ibq, y)):
        output = layer(x)
        (output.loss + (output.quantized * upstream).sum()).backward()
        results.append(output)
    found, expected = results
    assert torch.equal(found.indices, expected.indices)
    torch.testing.assert_close(found.quantized, expected.quantized, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.loss, expected.loss, rtol=0, atol=1e-12)
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-11)
    torch.testing.assert_close(ours.codebook.base.grad, theirs.codebook.vectors.grad, rtol=0, atol=1e-11)


def test_the_decoders_gradient_adds_up_to_what_came_in_at_the_values_and_to_nothing_at_the_keys() -> None:
    """Each row of the softmax's gradient adds up to 0: all codes together get what the decoder sent."""
    quantizer, z, upstream = problem()
    quantizer.codebook.key_norm = nn.Identity()
    (quantizer(z).quantized * upstream).sum().backward()
    torch.testing.assert_close(quantizer.codebook.to_value.bias.grad, upstream.sum(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(quantizer.codebook.to_key.bias.grad, torch.zeros(32).double(), rtol=0, atol=1e-12)
    assert quantizer.codebook.to_key.weight.grad.abs().max() > 0.1


def test_initialize_fits_the_values_and_makes_each_choose_itself() -> None:
    quantizer = Quantizer("coda", dim=4, codebook_size=64).double()
    samples = torch.randn(5000, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 30
    quantizer.initialize([samples])
    values = quantizer.code_vectors().detach()
    # The map is found in float64; the samples' own sums are as exact.
    torch.testing.assert_close(values.mean(0), samples.mean(0), rtol=0, atol=1e-9)
    torch.testing.assert_close(values.T.cov(correction=0), samples.T.cov(correction=0), rtol=0, atol=1e-9)
    assert torch.equal(quantizer.encode(values), torch.arange(64))
    with pytest.raises(ValueError, match="initialize a quantizer with an AttentionCodebook, and bake it afterwards"):
        bake(quantizer).initialize([samples])
