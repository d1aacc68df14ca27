"""SimVQ against its equations (Zhu et al. 2024), in float64."""

import torch

from vqkit import Quantizer


def build() -> Quantizer:
    return Quantizer("simvq", dim=6, codebook_size=20).double()


def test_initial_scales_are_the_published_ones() -> None:
    codebook = Quantizer("simvq", dim=128, codebook_size=2048).codebook
    assert abs(float(codebook.base.std()) - 128**-0.5) < 1e-3
    assert abs(float(codebook().detach().std()) - 0.0713) < 0.003


def test_loss_and_the_gradient_of_the_linear_map() -> None:
    quantizer = build()
    z = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    output = quantizer(z)
    output.loss.backward()
    base, projector = quantizer.codebook.base, quantizer.codebook.projector
    codes = base @ projector.weight.T + projector.bias
    chosen = codes[output.indices].detach()
    error = z.detach() - chosen
    torch.testing.assert_close(output.loss, 1.25 * error.square().mean(), rtol=0, atol=1e-14)
    residual = -2 * error / error.numel()
    torch.testing.assert_close(projector.weight.grad, residual.T @ base[output.indices], rtol=0, atol=1e-14)
    torch.testing.assert_close(projector.bias.grad, residual.sum(0), rtol=0, atol=1e-14)
    torch.testing.assert_close(z.grad, 0.25 * 2 * error / error.numel(), rtol=0, atol=1e-14)


def test_one_step_moves_every_code_by_the_shared_map() -> None:
    quantizer = build()
    z = torch.randn(4, 6, dtype=torch.float64)
    output = quantizer(z)
    assert len(output.indices.unique()) <= 4 < 20
    output.loss.backward()
    before = quantizer.codebook().detach()
    base, projector = quantizer.codebook.base, quantizer.codebook.projector
    selected = base[output.indices]
    residual = -2 * (z - before[output.indices]) / z.numel()
    torch.optim.SGD(quantizer.parameters(), lr=0.3).step()
    expected = before - 0.3 * (base @ (selected.T @ residual) + residual.sum(0))
    torch.testing.assert_close(quantizer.codebook().detach(), expected, rtol=0, atol=1e-14)
    assert ((quantizer.codebook() - before).abs().sum(1) > 0).all()
    assert projector.weight.requires_grad and "base" not in dict(quantizer.named_parameters())


def test_initialize_gives_the_codes_the_mean_and_covariance_of_the_data() -> None:
    quantizer = Quantizer("simvq", dim=6, codebook_size=4096)
    mixing = torch.randn(6, 6)
    data = torch.randn(8192, 6) @ mixing + 5
    quantizer.initialize([data])
    codes = quantizer.codebook().detach()
    torch.testing.assert_close(codes.mean(0), data.mean(0), rtol=0, atol=0.2)
    torch.testing.assert_close(codes.T.cov(), data.T.cov(), rtol=0.1, atol=0.4)
    assert 0.9 < quantizer.health()["scale_ratio"] < 1.1
