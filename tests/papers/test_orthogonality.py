"""Orthogonality of codes against its equation (Shin et al. 2021), with the K x K matrix, in float64."""

import pytest
import torch
from torch import Tensor

from vqkit import CodebookLoss, Orthogonality, Quantizer, Selection


def loss(codes: Tensor) -> Tensor:
    z = torch.zeros(3, codes.shape[1], dtype=codes.dtype)
    indices = torch.zeros(3, dtype=torch.int64)
    return Orthogonality()(Selection(z, z, codes, indices, codes[indices], indices == 0), z)


def oracle(codes: Tensor) -> Tensor:
    rows = codes / codes.norm(dim=1, keepdim=True)
    return (rows @ rows.T - torch.eye(len(codes), dtype=codes.dtype)).square().sum() / len(codes) ** 2


@pytest.mark.parametrize(("size", "dim"), [(9, 4), (3, 6), (1, 5)])
def test_value_and_gradient(size: int, dim: int) -> None:
    codes = torch.randn(size, dim, dtype=torch.float64, requires_grad=True)
    ours, expected = loss(codes), oracle(codes)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
    gradients = (torch.autograd.grad(value, codes)[0] for value in (ours, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_zero_for_orthogonal_codes_of_any_length_and_greatest_for_equal_ones() -> None:
    codes = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q[:4] * torch.tensor([[0.1], [1], [3], [20]])
    assert abs(float(loss(codes))) < 1e-12
    torch.testing.assert_close(loss(codes[:1].expand(4, 5)), torch.tensor(12 / 16, dtype=torch.float64))


def test_zero_vectors_are_orthogonal_to_all_and_their_gradient_is_finite() -> None:
    codes = torch.randn(4, 3)
    codes[2] = 0
    codes.requires_grad_()
    value = loss(codes)
    kept = torch.cat([codes[:2], codes[3:]]).detach().double()
    # The zero vector has no cosine with itself: (0 - 1)^2 more.
    torch.testing.assert_close(value.double(), (9 * oracle(kept) + 1) / 16, rtol=0, atol=1e-6)
    (gradient,) = torch.autograd.grad(value, codes)
    assert gradient.isfinite().all() and (gradient[2] == 0).all()


def test_descent_spreads_the_codes_and_weight_is_that_of_the_source() -> None:
    quantizer = Quantizer("vq", dim=6, codebook_size=6, losses=[CodebookLoss(0.0), Orthogonality()])
    with torch.no_grad():
        quantizer.codebook.vectors.copy_(1 + 0.1 * torch.randn(6, 6))
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    x = torch.randn(10, 6)
    first = quantizer(x)
    torch.testing.assert_close(first.loss, 10 * first.losses["orthogonality"])
    for _ in range(150):
        optimizer.zero_grad()
        quantizer(x).loss.backward()
        optimizer.step()
    assert first.losses["orthogonality"] > 0.7 and quantizer(x).losses["orthogonality"] < 0.01
