"""Distribution matching against the Gaussian 2-Wasserstein distance (Fang et al. 2025), with scipy's matrix roots."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import RankPair
from vqkit import CodebookLoss, DistributionMatching, Quantizer, Selection

linalg = pytest.importorskip("scipy.linalg")

D = 4


def select(z: Tensor, codes: Tensor, valid: Tensor | None = None) -> Selection:
    valid = torch.ones(len(z), dtype=torch.bool) if valid is None else valid
    return Selection(z, z, codes, valid.long() - 1, codes[:1].expand(len(z), -1), valid)


def loss(z: Tensor, codes: Tensor, valid: Tensor | None = None) -> Tensor:
    return DistributionMatching()(select(z, codes, valid), z)


def moments(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return rows.mean(0).numpy(), torch.cov(rows.T, correction=0).numpy()


def oracle(z: Tensor, codes: Tensor) -> float:
    """sqrt(|m - n|^2 + tr(S + T - 2 (S^1/2 T S^1/2)^1/2)), covariances divided by the count."""
    (m, s), (n, t) = moments(z), moments(codes)
    root = linalg.sqrtm(s)
    return math.sqrt(((m - n) ** 2).sum() + (s + t - 2 * linalg.sqrtm(root @ t @ root).real).trace())


def singular_oracle(z: Tensor, codes: Tensor) -> float:
    """The same where a covariance has no full rank, by the eigenvalues of S T, which are those of S^1/2 T S^1/2."""
    (m, s), (n, t) = moments(z), moments(codes)
    cross = np.sqrt(np.linalg.eigvals(s @ t).real.clip(min=0)).sum()
    return math.sqrt(((m - n) ** 2).sum() + (s + t).trace() - 2 * cross)


def problem() -> tuple[Tensor, Tensor]:
    z = torch.randn(30, D, dtype=torch.float64) @ torch.randn(D, D, dtype=torch.float64) + 1
    return z.requires_grad_(), torch.randn(12, D, dtype=torch.float64, requires_grad=True)


def test_value_is_the_distance() -> None:
    z, codes = problem()
    assert abs(float(loss(z, codes).detach()) - oracle(z.detach(), codes.detach())) < 1e-7


@pytest.mark.parametrize("side", ["vectors", "codes"])
def test_gradients_are_those_of_differences(side: str) -> None:
    z, codes = problem()
    gradients = torch.autograd.grad(loss(z, codes), [z, codes])
    moved, gradient = (z, gradients[0]) if side == "vectors" else (codes, gradients[1])
    for _ in range(5):
        direction = torch.randn_like(moved)
        with torch.no_grad():
            ends = [moved + sign * 1e-5 * direction for sign in (1, -1)]
            values = [loss(end, codes) if side == "vectors" else loss(z, end) for end in ends]
        difference = (values[0] - values[1]) / 2e-5
        torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-9)
    assert gradient.norm() > 0.01


DEGENERATE = {
    "equal": (torch.arange(12.0).reshape(3, 4), torch.arange(12.0).reshape(3, 4)),
    "all_zero": (torch.zeros(3, D), torch.zeros(5, D)),
    "one_vector": (torch.ones(1, D), torch.eye(D)),
    "one_code": (torch.eye(D), torch.ones(1, D)),
    "one_of_each": (torch.ones(1, D), torch.zeros(1, D)),
    "lines_across": (torch.eye(D)[:1] * torch.arange(5.0)[:, None], torch.eye(D)[1:2] * torch.arange(5.0)[:, None]),
    "fewer_than_dimensions": (torch.eye(D)[:2], torch.eye(D)[1:] + 1),
    "none": (torch.zeros(0, D), torch.eye(D)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DEGENERATE)
def test_covariances_without_full_rank(name: str, dtype: torch.dtype) -> None:
    z, codes = (rows.to(dtype, copy=True).requires_grad_() for rows in DEGENERATE[name])
    value = loss(z, codes)
    gradients = torch.autograd.grad(value, [z, codes])
    assert value.dtype == dtype
    for gradient in gradients:
        # A distance grows by no more than what is moved: |gradient of a set of n points| is at most 1 / sqrt(n).
        assert gradient.isfinite().all() and gradient.square().sum() <= 1 / max(1, len(gradient)) + 1e-3
    if name in ("equal", "all_zero", "none"):
        assert value == 0 and all((gradient == 0).all() for gradient in gradients)
    else:
        assert abs(float(value.detach()) - singular_oracle(z.detach().double(), codes.detach().double())) < 1e-6


def test_descent_moves_a_far_codebook_onto_the_data() -> None:
    quantizer = Quantizer("vq", dim=2, codebook_size=64, losses=[CodebookLoss(0.0), DistributionMatching()])
    with torch.no_grad():
        quantizer.codebook.vectors.copy_(10 + 0.1 * torch.randn(64, 2))
    x = torch.randn(500, 2) @ torch.tensor([[2.0, 0.5], [0, 0.5]])
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.1)
    first = quantizer(x)
    torch.testing.assert_close(first.loss, 0.5 * first.losses["distribution_matching"])
    for _ in range(120):
        optimizer.zero_grad()
        quantizer(x).loss.backward()
        optimizer.step()
    last = quantizer(x)
    assert first.losses["distribution_matching"] > 13 and last.losses["distribution_matching"] < 0.2
    assert first.indices.unique().numel() < 10 and last.indices.unique().numel() > 40
    torch.testing.assert_close(quantizer.codebook.vectors.T.cov(correction=0), x.T.cov(correction=0), atol=0.2, rtol=0)


def on_rank(rank: int) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    z, codes = problem()
    rows = (z[:20] if rank == 0 else z[20:]).detach().requires_grad_()
    part = DistributionMatching()
    value = part(select(rows, codes), rows)
    gradients = torch.autograd.grad(value, [rows, codes])
    return value.detach(), *gradients, part.eval()(select(rows, codes), rows).detach()


def test_moments_are_of_all_ranks(rank_pair: RankPair) -> None:
    """Uneven batches. As gradients are averaged over ranks, a rank's vectors get twice theirs."""
    results = rank_pair(on_rank)
    torch.manual_seed(0)
    z, codes = problem()
    value = loss(z, codes)
    to_z, to_codes = torch.autograd.grad(value, [z, codes])
    for ours, _, mine, _ in results:
        torch.testing.assert_close(ours, value.detach(), rtol=0, atol=1e-10)
        torch.testing.assert_close(mine, to_codes, rtol=0, atol=1e-10)
    torch.testing.assert_close(torch.cat([result[1] for result in results]) / 2, to_z, rtol=0, atol=1e-10)
    assert not torch.allclose(results[0][3], results[1][3])  # in eval each rank looks at its own
