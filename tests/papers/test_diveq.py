"""DiVeQ against its equations (Vali et al. 2025), in float64."""

import math
from functools import partial

import pytest
import torch

from tests.papers.test_nsvq import D, K, N, expected_gradients, problem, select
from vqkit import FSQ, DiVeQ, Quantizer, ResidualQuantizer


@pytest.mark.parametrize("variance", [1e-3, 0.5])
def test_value_and_gradients(variance: float) -> None:
    z, codes, g = problem()
    selection = select(z, codes)
    value = DiVeQ(variance)(selection)
    error = (selection.selected - z).detach()
    d = math.sqrt(variance) * selection.noise.normal(D) + error
    d = d / d.norm(dim=1, keepdim=True)
    torch.testing.assert_close(value, z + error.norm(dim=1, keepdim=True) * d, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad((value * g).sum(), [z, codes])
    torch.testing.assert_close(gradients, expected_gradients(selection, d, g), rtol=0, atol=1e-12)


@pytest.mark.parametrize("noisy", [True, False])
def test_without_noise_the_value_is_the_code_and_the_gradient_splits_along_the_error(noisy: bool) -> None:
    """The paper's detached variant, and what eval mode does at any variance."""
    z, codes, g = problem()
    selection = select(z, codes, noisy=noisy)
    value = DiVeQ(0.0 if noisy else 1e-3)(selection)
    assert torch.equal(value, selection.selected)
    dz, dcodes = torch.autograd.grad((value * g).sum(), [z, codes])
    error = (selection.selected - z).detach()
    u = error / error.norm(dim=1, keepdim=True)
    projected = torch.einsum("nde,ne->nd", torch.eye(D, dtype=torch.float64) - u[:, :, None] * u[:, None], g)
    torch.testing.assert_close(dz, projected, rtol=0, atol=1e-12)
    torch.testing.assert_close(dcodes, expected_gradients(selection, u, g)[1], rtol=0, atol=1e-12)


def test_value_is_as_far_away_as_the_code_and_near_it() -> None:
    """With noise of variance s^2 far below |e - z|^2 the two differ by about s in each of D - 1 directions."""
    z = torch.zeros(20_000, D, dtype=torch.float64)
    code = torch.full((1, D), 10.0, dtype=torch.float64)
    value = DiVeQ()(select(z, code))
    torch.testing.assert_close(value.norm(dim=1), code.norm().expand(len(z)), rtol=0, atol=1e-12)
    assert abs(float((value - code).square().sum(1).mean()) / (D - 1) - 1e-3) < 5e-5


def test_the_method_its_variance_and_codes_in_eval() -> None:
    quantizer = Quantizer("diveq", dim=D, codebook_size=K)
    x = torch.randn(N, D)
    output = quantizer(x)
    assert quantizer.estimator.variance == 1e-3 and output.loss == 0 and not output.losses
    assert not torch.equal(output.quantized, quantizer.decode(output.indices))
    assert torch.equal(quantizer.eval()(x).quantized, quantizer.decode(quantizer.encode(x)))
    assert DiVeQ().uses_noise and not DiVeQ(0.0).uses_noise


def test_the_codes_start_in_the_interval_of_the_released_code() -> None:
    """U[0, 1 / K): its mean 1 / 2 K, within five standard deviations of 20,000 values."""
    codes = 1000 * Quantizer("diveq", dim=20, codebook_size=1000).codebook().detach()
    assert float(codes.min()) >= 0 and float(codes.max()) < 1
    assert abs(float(codes.mean()) - 0.5) < 5 * (1 / 12 / 20_000) ** 0.5


def test_the_residual_form_is_one_error_over_the_sum() -> None:
    """y = z + |s - z| sg(d) with s the sum of the codes, as released; d is the direction of the error without noise."""
    stage = partial(Quantizer, "diveq", dim=D, codebook_size=K)
    quantizer = ResidualQuantizer(stage, 3, estimator=DiVeQ(0)).double()
    for member in quantizer.stages:
        torch.nn.init.normal_(member.codebook.vectors)
    z, g = torch.randn(N, D, dtype=torch.float64, requires_grad=True), torch.randn(N, D, dtype=torch.float64)
    output = quantizer(z)
    ours = torch.autograd.grad((output.quantized * g).sum(), [z, *quantizer.parameters()])
    total = sum(stage.codebook.vectors[output.indices[:, i]] for i, stage in enumerate(quantizer.stages))
    error = total - z
    value = z + error.norm(dim=1, keepdim=True) * (error / error.norm(dim=1, keepdim=True)).detach()
    theirs = torch.autograd.grad((value * g).sum(), [z, *quantizer.parameters()])
    torch.testing.assert_close(output.quantized, value, rtol=0, atol=1e-12)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stage", [partial(Quantizer, "vq", dim=4, codebook_size=8), partial(FSQ, [4] * 4)])
def test_stages_that_are_left_out_add_nothing_to_a_sum_that_trains_codes(stage: partial) -> None:
    quantizer = ResidualQuantizer(stage, 3, estimator=DiVeQ(0.0), dropout=1.0)
    output = quantizer(torch.randn(8, 6, 4), torch.rand(8, 6) < 0.6)
    assert (output.indices == -1).any()
    torch.testing.assert_close(output.quantized, quantizer.decode(output.indices))
