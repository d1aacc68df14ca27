"""The random baseline: what it draws, what learns, and what `initialize` does."""

import pytest
import torch
import torch.nn.functional as F

from vqkit import Quantizer


def test_codes_are_normal_and_a_function_of_the_seed() -> None:
    torch.manual_seed(1)
    codes = Quantizer("seeded", dim=16, codebook_size=2048).codebook()
    torch.manual_seed(2)
    assert torch.equal(codes, Quantizer("seeded", dim=16, codebook_size=2048).codebook())
    assert abs(float(codes.mean())) < 0.02 and abs(float(codes.std()) - 1) < 0.02


def test_only_the_encoder_learns() -> None:
    quantizer = Quantizer("seeded", dim=4, codebook_size=16).double()
    before = quantizer.codebook().clone()
    z = torch.randn(20, 4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(20, 4, dtype=torch.float64)
    output = quantizer(z)
    (output.loss + (output.quantized * upstream).sum()).backward()
    chosen = before[torch.cdist(z.detach(), before).argmin(1)]
    torch.testing.assert_close(output.loss, 0.25 * F.mse_loss(z, chosen), rtol=0, atol=1e-14)
    torch.testing.assert_close(z.grad, upstream + 0.25 * 2 * (z.detach() - chosen) / 80, rtol=0, atol=1e-14)
    assert not list(quantizer.parameters())
    for _ in range(5):
        quantizer(torch.randn(20, 4, dtype=torch.float64))
        quantizer.step()
    assert torch.equal(quantizer.codebook(), before)


@pytest.mark.parametrize("codebook_size", [500, 7])
def test_initialize_gives_the_codes_the_mean_and_covariance_of_the_data(codebook_size: int) -> None:
    quantizer = Quantizer("seeded", dim=6, codebook_size=codebook_size)
    data = torch.randn(20_000, 6) @ torch.randn(6, 6) + 5
    quantizer.initialize([data])
    codes = quantizer.codebook()
    torch.testing.assert_close(codes.mean(0), data.mean(0), rtol=0, atol=1e-4)
    torch.testing.assert_close(codes.T.cov(correction=0), data.T.cov(correction=0), rtol=0, atol=1e-3)


def test_a_single_code_is_the_mean_of_the_data() -> None:
    quantizer, data = Quantizer("seeded", dim=6, codebook_size=1), torch.randn(100, 6) + 5
    quantizer.initialize([data])
    torch.testing.assert_close(quantizer.codebook()[0], data.mean(0))
