"""The four things that are called "l2-normalized codes" (quantizer sheet, 1.3), each against its formula in float64.

| | search | value | losses | gradient to the raw vector |
|---|---|---|---|---|
| LlamaGen | unit vectors | unit code | unit vectors | of the decoder: (I - z^ z^^T) g / |z| |
| ViT-VQGAN | unit vectors | unit code | unit vectors | of the decoder: g |
| DAC | unit vectors | raw code | raw vectors | of the decoder: g |
| use_cosine_sim | unit vectors | unit code | unit vectors | projected, so that its product with z is 0 |
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.equations import assert_computes
from vqkit import NormalCodebook, Quantizer, UnnormalizedStraightThrough

DIM, K = 6, 20
SIZES = {"dim": DIM, "codebook_size": K}
BUILDS = {
    "LlamaGen": partial(Quantizer, "vq", normalize=True, codebook=NormalCodebook, **SIZES),
    "ViT-VQGAN": partial(
        Quantizer, "vq", normalize=True, codebook=NormalCodebook, estimator=UnnormalizedStraightThrough(), **SIZES
    ),
    "DAC": partial(Quantizer, "factorized", codebook_dim=DIM, **SIZES),
    "use_cosine_sim": partial(Quantizer, "ema", normalize=True, maintenance=[], **SIZES),
}
of_unit_vectors = pytest.mark.parametrize("name", ["LlamaGen", "ViT-VQGAN", "use_cosine_sim"])


def problem(name: str) -> tuple[Quantizer, Tensor, Tensor]:
    quantizer = BUILDS[name]().double()
    with torch.no_grad():  # lengths that would mislead a search by distance
        quantizer.codebook.vectors.copy_(torch.randn(K, DIM) * torch.logspace(-1, 1, K).unsqueeze(1))
    z = (torch.randn(40, DIM, dtype=torch.float64) * torch.logspace(-1, 1, 40).unsqueeze(1)).requires_grad_()
    return quantizer, z, torch.randn(40, DIM, dtype=torch.float64)


@pytest.mark.parametrize("name", BUILDS)
def test_the_choice_is_by_angle(name: str) -> None:
    quantizer, z, _ = problem(name)
    codes = quantizer.codebook.vectors.detach()
    indices = quantizer.encode(z)
    assert torch.equal(indices, F.cosine_similarity(z.detach()[:, None], codes, dim=-1).argmax(1))
    assert not torch.equal(indices, torch.cdist(z.detach(), codes).argmin(1))


@of_unit_vectors
def test_value_and_losses_of_unit_vectors(name: str) -> None:
    quantizer, z, _ = problem(name)
    output = quantizer.eval()(z)
    chosen = F.normalize(quantizer.codebook.vectors)[output.indices]
    commitment = F.mse_loss(F.normalize(z), chosen)
    torch.testing.assert_close(output.quantized, chosen, rtol=0, atol=1e-14)
    expected = 0.25 * commitment + (0 if name == "use_cosine_sim" else 1.0 * commitment)
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-14)


def projected(z: Tensor, gradient: Tensor) -> Tensor:
    """(I - z^ z^^T) g / |z|."""
    direction = F.normalize(z)
    return (gradient - direction * (direction * gradient).sum(1, keepdim=True)) / z.norm(dim=1, keepdim=True)


@of_unit_vectors
def test_gradients_of_unit_vectors(name: str) -> None:
    quantizer, z, upstream = problem(name)
    raw = z.detach()
    output = quantizer(z)
    (decoder,) = torch.autograd.grad((output.quantized * upstream).sum(), z, retain_graph=True)
    (penalty,) = torch.autograd.grad(output.losses["commitment"], z, retain_graph=True)
    expected = upstream if name == "ViT-VQGAN" else projected(raw, upstream)
    torch.testing.assert_close(decoder, expected, rtol=0, atol=1e-13)
    difference = 2 * (F.normalize(raw) - output.quantized.detach()) / raw.numel()
    torch.testing.assert_close(penalty, projected(raw, difference), rtol=0, atol=1e-13)
    assert (penalty * raw).sum(1).abs().max() < 1e-13
    assert ((decoder * raw).sum(1).abs().max() < 1e-12) == (name != "ViT-VQGAN")


@pytest.mark.parametrize("name", ["LlamaGen", "ViT-VQGAN"])
def test_codes_are_trained_through_their_normalization(name: str) -> None:
    quantizer, z, upstream = problem(name)
    codes = quantizer.codebook.vectors.detach().clone().requires_grad_()
    output = quantizer(z)
    (output.loss + (output.quantized * upstream).sum()).backward()
    (1.0 * F.mse_loss(F.normalize(codes)[output.indices], F.normalize(z).detach())).backward()
    torch.testing.assert_close(quantizer.codebook.vectors.grad, codes.grad, rtol=0, atol=1e-14)


def test_statistics_are_of_unit_vectors() -> None:
    quantizer, z, _ = problem("use_cosine_sim")
    indices = quantizer(z).indices
    expected = torch.zeros(K, DIM, dtype=torch.float64).index_add_(0, indices, F.normalize(z.detach()))
    torch.testing.assert_close(quantizer.codebook.pending_sums, expected, rtol=0, atol=1e-14)


def dac(z: Tensor, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Searches by angle, and does all else with raw vectors."""
    codes = weights["codebook.vectors"]
    indices = (F.normalize(z) @ F.normalize(codes).T).argmax(1)
    chosen = codes[indices]
    loss = 1.0 * F.mse_loss(chosen, z.detach()) + 0.25 * F.mse_loss(z, chosen.detach())
    return z + (chosen - z).detach(), indices, loss


def test_dac_searches_by_angle_and_does_all_else_with_raw_vectors() -> None:
    quantizer, z, _ = problem("DAC")
    output = assert_computes(dac, quantizer, z)
    assert torch.equal(output.quantized, quantizer.codebook.vectors[output.indices])


def test_the_method_has_eight_dimensions_between_two_linear_maps() -> None:
    quantizer = Quantizer("factorized", dim=32, codebook_size=64).double()
    assert quantizer.codebook_dim == 8 and quantizer.codebook().shape == (64, 8)
    inward, outward = quantizer.project_in, quantizer.project_out
    x, upstream = torch.randn(10, 32, dtype=torch.float64, requires_grad=True), torch.randn(10, 32).double()
    output = quantizer(x)
    chosen = quantizer.codebook.vectors[output.indices]
    torch.testing.assert_close(output.quantized, chosen @ outward.weight.T + outward.bias, rtol=0, atol=1e-13)
    (gradient,) = torch.autograd.grad((output.quantized * upstream).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, upstream @ outward.weight @ inward.weight, rtol=0, atol=1e-13)
    assert torch.equal(output.indices, quantizer.eval().encode(x))
