"""NSVQ against its equation (Vali, Bäckström 2022), in float64."""

import pytest
import torch
from torch import Tensor

from vqkit import NSVQ, DiVeQ, Estimator, Noise, Quantizer, Selection

N, K, D = 50, 9, 5


def select(z: Tensor, codes: Tensor, *, noisy: bool = True) -> Selection:
    indices = torch.cdist(z.detach(), codes.detach()).argmin(1)
    noise = Noise(seed=torch.tensor(7), step=torch.tensor(2), first=0, count=len(z)) if noisy else None
    valid = torch.ones_like(indices, dtype=torch.bool)
    return Selection(latents=z, z=z, codes=codes, indices=indices, selected=codes[indices], valid=valid, noise=noise)


def problem() -> tuple[Tensor, Tensor, Tensor]:
    z, g = (torch.randn(N, D, dtype=torch.float64) for _ in range(2))
    return z.requires_grad_(), torch.randn(K, D, dtype=torch.float64, requires_grad=True), g


def expected_gradients(selection: Selection, direction: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Of z + |e - z| d, with d (N, D) of unit length taken as a constant."""
    error = (selection.selected - selection.z).detach()
    along = (g * direction).sum(1, keepdim=True) * error / error.norm(dim=1, keepdim=True)
    return g - along, torch.zeros_like(selection.codes).index_add_(0, selection.indices, along)


def test_value_and_gradients() -> None:
    z, codes, g = problem()
    selection = select(z, codes)
    value = NSVQ()(selection)
    noise = selection.noise.normal(D)
    n = noise / noise.norm(dim=1, keepdim=True)
    length = (selection.selected - z).detach().norm(dim=1, keepdim=True)
    torch.testing.assert_close(value, z + length * n, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad((value * g).sum(), [z, codes])
    torch.testing.assert_close(gradients, expected_gradients(selection, n, g), rtol=0, atol=1e-12)


def test_value_is_as_far_away_as_the_code_in_directions_that_favour_none() -> None:
    z, codes, _ = problem()
    selection = select(z, codes)
    error = NSVQ()(selection).detach() - z.detach()
    torch.testing.assert_close(error.norm(dim=1), (selection.selected - z).norm(dim=1).detach(), rtol=0, atol=1e-12)
    many = torch.zeros(20_000, D, dtype=torch.float64)
    directions = NSVQ()(select(many, torch.ones(1, D, dtype=torch.float64))) / D**0.5
    assert directions.mean(0).norm() < 0.02
    covariance = directions.T @ directions / len(many)
    torch.testing.assert_close(covariance, torch.eye(D, dtype=torch.float64) / D, rtol=0, atol=0.01)


@pytest.mark.parametrize("estimator", [NSVQ(), DiVeQ(0.0), DiVeQ(1e-3)])
def test_a_vector_that_is_its_code_keeps_the_gradient(estimator: Estimator) -> None:
    codes = torch.randn(K, D)
    z = codes[:4].clone().requires_grad_()
    codes.requires_grad_()
    value, g = estimator(select(z, codes)), torch.randn(4, D)
    assert torch.equal(value, z)
    dz, dcodes = torch.autograd.grad((value * g).sum(), [z, codes])
    assert torch.equal(dz, g) and (dcodes == 0).all()


def test_the_codes_start_normal() -> None:
    """N(0, 1), the released code's default: mean and variance of 20,000 values within five standard deviations."""
    codes = Quantizer("nsvq", dim=20, codebook_size=1000).codebook().detach()
    assert abs(float(codes.mean())) < 5 / 20_000**0.5
    assert abs(float(codes.var()) - 1) < 5 * (2 / 20_000) ** 0.5


def test_the_method_has_no_loss_and_codes_in_eval() -> None:
    quantizer = Quantizer("nsvq", dim=D, codebook_size=K)
    x = torch.randn(N, D, requires_grad=True)
    output = quantizer(x)
    assert output.loss == 0 and not output.losses
    assert not torch.equal(output.quantized, quantizer.decode(output.indices))
    evaluated = quantizer.eval()(x)
    assert torch.equal(evaluated.quantized, quantizer.decode(quantizer.encode(x)))
    (gradient,) = torch.autograd.grad(evaluated.quantized.sum(), [x])
    assert torch.equal(gradient, torch.ones(N, D))
