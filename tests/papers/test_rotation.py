"""The rotation trick against its equations (Fifty et al. 2024), in float64."""

import pytest
import torch
from torch import Tensor

from vqkit import (
    Estimator,
    Reflection,
    RotationTrick,
    Selection,
    TangentialRotationTrick,
    UnscaledTangentialRotationTrick,
)


def select(z: Tensor, q: Tensor) -> Selection:
    indices, valid = torch.arange(len(z)), torch.ones(len(z), dtype=torch.bool)
    return Selection(latents=z, z=z, codes=None, indices=indices, selected=q, valid=valid)


def pairs(n: int = 50, dim: int = 5, *, acute: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    z, q, g = (torch.randn(n, dim, dtype=torch.float64) for _ in range(3))
    if acute:
        q = q * torch.sign((z * q).sum(1, keepdim=True))
    return z.requires_grad_(), q, g


def gradient(estimator, z: Tensor, q: Tensor, g: Tensor) -> Tensor:
    (estimator(select(z, q)) * g).sum().backward()
    result, z.grad = z.grad, None
    return result


def test_when_the_vector_is_its_code_the_gradient_passes_unchanged() -> None:
    z, _, g = pairs()
    torch.testing.assert_close(gradient(RotationTrick(), z, z.detach().clone(), g), g, rtol=0, atol=1e-12)


@pytest.mark.parametrize("angle", [30.0, 90.0, 135.0])
def test_beyond_the_largest_angle_the_gradient_passes_unchanged(angle: float) -> None:
    for given, turned in ((angle + 1e-6, False), (angle - 1e-6, True)):
        z = torch.tensor([[1.0, 0.0]], dtype=torch.float64, requires_grad=True)
        radians = torch.tensor(given, dtype=torch.float64).deg2rad()
        q, g = torch.stack([radians.cos(), radians.sin()])[None], torch.ones(1, 2, dtype=torch.float64)
        assert torch.equal(gradient(RotationTrick(angle), z, q, g), g) != turned


@pytest.mark.parametrize("largest_angle", [90.0, 180.0])
def test_where_the_rotation_is_undefined_the_gradient_passes_unchanged(largest_angle: float) -> None:
    g = torch.randn(6, 3)
    z = torch.tensor([[0, 0, 0], [1e-9, 0, 0], [1, 0, 0], [1, 0, 0], [1e-5, 0, 0], [2, 1, 0]], dtype=torch.float32)
    q = torch.tensor([[1, 2, 3], [1, 0, 0], [0, 0, 0], [-1, 0, 0], [1, 0, 0], [-2, -1, 1e-4]], dtype=torch.float32)
    result = gradient(RotationTrick(largest_angle), z.requires_grad_(), q, g)
    assert torch.equal(result, g)


def test_where_the_reflection_is_undefined_the_gradient_passes_unchanged() -> None:
    """The last row has the direction of its code: no mirror lies between them, and what is across it is scaled."""
    g = torch.randn(5, 3)
    z = torch.tensor([[0, 0, 0], [1e-9, 0, 0], [1, 0, 0], [1e-5, 0, 0], [1, 2, 3]], dtype=torch.float32)
    q = torch.tensor([[1, 2, 3], [1, 0, 0], [0, 0, 0], [1, 0, 0], [2, 4, 6]], dtype=torch.float32)
    result = gradient(Reflection(), z.requires_grad_(), q, g)
    direction = z[4].detach() / z[4].detach().norm()
    assert torch.equal(result[:4], g[:4])
    # A dozen roundings of numbers of the size of |g|, twice as large.
    bound = 12 * 2 * torch.finfo(torch.float32).eps * g[4].norm().item()
    torch.testing.assert_close(result[4], 2 * (g[4] - (g[4] @ direction) * direction), rtol=0, atol=bound)


def test_nearly_equal_directions_are_not_reflected() -> None:
    """Within a millionth of a radian, rounding alone would choose the mirror."""
    z = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for angle in (1e-8, 1e-15):
        q = torch.tensor([[1.0, angle, -angle]], dtype=torch.float64)
        upstream = torch.randn(1, 3, dtype=torch.float64)
        across = upstream * torch.tensor([0.0, 1.0, 1.0])
        torch.testing.assert_close(gradient(Reflection(), z, q, upstream), across, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "estimator", [TangentialRotationTrick(180.0), UnscaledTangentialRotationTrick(180.0), Reflection()]
)
def test_gradients_of_the_released_variants(estimator: Estimator) -> None:
    """They turn z/|z| with the norm in the graph, by a matrix that is held constant, and multiply by |q| or by 1.

    The last, `no_grad_scale`, is the one that vqkit has |z| times as large.
    """
    z, q, g = pairs(acute=False)
    z_hat, q_hat = (x.detach() / x.detach().norm(dim=1, keepdim=True) for x in (z, q))
    if isinstance(estimator, Reflection):
        v = z_hat - q_hat
        v = v / v.norm(dim=1, keepdim=True)
        matrix = torch.eye(5, dtype=torch.float64) - 2 * torch.einsum("ni,nj->nij", v, v)
    else:
        w = z_hat + q_hat
        w = w / w.norm(dim=1, keepdim=True)
        matrix = torch.eye(5, dtype=torch.float64) - 2 * torch.einsum("ni,nj->nij", w, w)
        matrix = matrix + 2 * torch.einsum("ni,nj->nij", q_hat, z_hat)
    ours = gradient(estimator, z, q, g)
    turned = torch.einsum("nij,nj->ni", matrix, z / z.norm(dim=1, keepdim=True))
    unscaled = isinstance(estimator, UnscaledTangentialRotationTrick)
    (released,) = torch.autograd.grad((turned * (1 if unscaled else q.norm(dim=1, keepdim=True)) * g).sum(), [z])
    factor = z.detach().norm(dim=1, keepdim=True) if unscaled else 1
    torch.testing.assert_close(ours, factor * released, rtol=0, atol=1e-11)
