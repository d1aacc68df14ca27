"""ReinMax against its equations (Liu et al. 2023), with the Jacobians of softmax as explicit matrices in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import Estimator, IndexBackpropagation, Noise, Quantizer, ReinMax, Selection
from vqkit.kernels import softmax_rows

K, D = 7, 4


def problem(rows: int = 30) -> tuple[Tensor, Tensor]:
    z = (0.7 * torch.randn(rows, D, dtype=torch.float64)).requires_grad_()
    return z, torch.randn(K, D, dtype=torch.float64, requires_grad=True)


def choose(z: Tensor, codes: Tensor, indices: Tensor, valid: Tensor | None = None) -> Selection:
    """The given codes as if they had been drawn."""
    valid = torch.ones_like(indices, dtype=torch.bool) if valid is None else valid
    noise = Noise(seed=torch.tensor(0), step=torch.tensor(0), first=0, count=len(z))
    kept = torch.where(valid, indices, -1)
    return Selection(latents=z, z=z, codes=codes, indices=kept, selected=codes[indices], valid=valid, noise=noise)


def gradients(value: Tensor, z: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, [z, codes], retain_graph=True)


assert_near = partial(torch.testing.assert_close, rtol=0, atol=1e-12)


def jacobian(q: Tensor) -> Tensor:
    return torch.diag_embed(q) - q[:, :, None] * q[:, None, :]


@pytest.mark.parametrize("rows", [30, 300])
def test_value_and_gradients(rows: int, monkeypatch) -> None:
    monkeypatch.setattr(softmax_rows, "BLOCK", 1)  # then a block has 128 rows
    z, codes = problem(rows)
    indices, g = torch.randint(K, (rows,)), torch.randn(rows, D, dtype=torch.float64)
    value = ReinMax()(choose(z, codes, indices))
    assert torch.equal(value, codes[indices])
    with torch.no_grad():
        p, one_hot, v = (z @ codes.T).softmax(1), F.one_hot(indices, K).double(), g @ codes.T
        dlogits = torch.einsum("nkj,nj->nk", 2 * jacobian((p + one_hot) / 2) - jacobian(p) / 2, v)
        expected = (dlogits @ codes, one_hot.T @ g + dlogits.T @ z)
    assert_near(gradients((value * g).sum(), z, codes), expected)


def expected_over_draws(estimator: Estimator, loss, z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """sum_k p_k times the gradients that the estimator gives where code k was drawn."""
    p = (z @ codes.T).softmax(1).detach()
    dz, dcodes = torch.zeros_like(z), torch.zeros_like(codes)
    for k in range(K):
        value = estimator(choose(z, codes, torch.full((len(z),), k)))
        to_z, to_codes = gradients((p[:, k] * loss(value)).sum(), z, codes)
        dz, dcodes = dz + to_z, dcodes + to_codes
    return dz, dcodes


def exact(loss, z: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
    return gradients(((z @ codes.T).softmax(1) * loss(codes)).sum(), z, codes)


def test_expected_gradient_is_exact_for_linear_and_quadratic_losses() -> None:
    z, codes = problem()
    matrix, slope = torch.randn(D, D, dtype=torch.float64), torch.randn(D, dtype=torch.float64)

    def linear(y: Tensor) -> Tensor:
        return y @ slope

    def quadratic(y: Tensor) -> Tensor:
        return torch.einsum("nd,de,ne->n", y, matrix, y) + y @ slope

    for loss in (linear, quadratic):
        assert_near(expected_over_draws(ReinMax(), loss, z, codes), exact(loss, z, codes))
    straight_through = IndexBackpropagation()
    assert_near(expected_over_draws(straight_through, linear, z, codes), exact(linear, z, codes))
    biased, right = expected_over_draws(straight_through, quadratic, z, codes)[0], exact(quadratic, z, codes)[0]
    assert (biased - right).norm() > 0.1 * right.norm()


def test_masked_vectors_get_and_send_nothing() -> None:
    z, codes = problem()
    valid, indices = torch.arange(30) < 20, torch.randint(K, (30,))
    value = ReinMax()(choose(z, codes, indices, valid))
    dz, dcodes = gradients(value.sum(), z, codes)
    _, kept = gradients(ReinMax()(choose(z[:20], codes, indices[:20])).sum(), z, codes)
    assert (value[20:] == 0).all() and (dz[20:] == 0).all()
    assert_near(dcodes, kept)


def test_without_noise_it_is_index_backpropagation() -> None:
    x, y = (torch.linspace(-1, 1, 20 * D).reshape(20, D).requires_grad_() for _ in range(2))
    for estimator, vectors in ((ReinMax(), x), (IndexBackpropagation(), y)):
        quantizer = Quantizer("gumbel", dim=D, codebook_size=K, estimator=estimator).eval()
        quantizer(vectors).quantized.square().sum().backward()
    assert torch.equal(x.grad, y.grad)
