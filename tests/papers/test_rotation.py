"""The rotation trick against its equations (Fifty et al. 2024), in float64."""

import pytest
import torch
from torch import Tensor

from vqkit import (
    Reflection,
    RotationTrick,
    Selection,
    StraightThrough,
    TangentialRotationTrick,
    UnscaledRotationTrick,
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


def rotation(z: Tensor, q: Tensor) -> Tensor:
    """R of the paper as an explicit matrix."""
    z_hat, q_hat = z / z.norm(), q / q.norm()
    w = (z_hat + q_hat) / (z_hat + q_hat).norm()
    return torch.eye(len(z), dtype=z.dtype) - 2 * torch.outer(w, w) + 2 * torch.outer(q_hat, z_hat)


def test_the_gradient_is_lambda_times_the_rotation_transposed() -> None:
    z, q, g = pairs(acute=False)
    result = gradient(RotationTrick(180.0), z, q, g)
    for row in range(len(z)):
        matrix = rotation(z[row].detach(), q[row])
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)
        assert abs(float(torch.linalg.det(matrix)) - 1) < 1e-12
        expected = q[row].norm() / z[row].norm() * matrix.T @ g[row]
        torch.testing.assert_close(result[row], expected, rtol=0, atol=1e-11)


def test_norm_and_radial_part_of_the_gradient() -> None:
    z, q, g = pairs()
    result = gradient(RotationTrick(), z, q, g)
    torch.testing.assert_close(result.norm(dim=1), q.norm(dim=1) / z.norm(dim=1) * g.norm(dim=1))
    torch.testing.assert_close((result * z).sum(1), (g * q).sum(1))


def test_unscaled_keeps_the_length_of_the_gradient() -> None:
    z, q, g = pairs()
    torch.testing.assert_close(gradient(UnscaledRotationTrick(), z, q, g).norm(dim=1), g.norm(dim=1))


def test_tangential_leaves_nothing_along_z() -> None:
    z, q, g = pairs()
    result = gradient(TangentialRotationTrick(), z, q, g)
    torch.testing.assert_close((result * z).sum(1), torch.zeros(len(z), dtype=torch.float64), rtol=0, atol=1e-12)
    assert result.norm() > 0


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


def test_orthogonal_equivariance() -> None:
    z, q, g = pairs()
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    turned = gradient(RotationTrick(), (z.detach() @ basis).requires_grad_(), q @ basis, g @ basis)
    torch.testing.assert_close(turned, gradient(RotationTrick(), z, q, g) @ basis, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_value_is_the_code_bit_for_bit_and_sends_it_no_gradient(dtype: torch.dtype) -> None:
    z, q, _ = pairs(acute=False)
    z, q = z.detach().to(dtype).requires_grad_(), q.to(dtype).requires_grad_()
    for estimator in (RotationTrick(), UnscaledTangentialRotationTrick(180.0), StraightThrough()):
        value = estimator(select(z, q))
        assert torch.equal(value, q)
        value.sum().backward()
    assert q.grad is None


def test_obtuse_pairs_fall_back_to_straight_through() -> None:
    z, q, g = pairs()
    torch.testing.assert_close(gradient(RotationTrick(), z, -q, g), g, rtol=0, atol=0)


@pytest.mark.parametrize("largest_angle", [90.0, 180.0])
def test_where_the_rotation_is_undefined_the_gradient_passes_unchanged(largest_angle: float) -> None:
    g = torch.randn(6, 3)
    z = torch.tensor([[0, 0, 0], [1e-9, 0, 0], [1, 0, 0], [1, 0, 0], [1e-5, 0, 0], [2, 1, 0]], dtype=torch.float32)
    q = torch.tensor([[1, 2, 3], [1, 0, 0], [0, 0, 0], [-1, 0, 0], [1, 0, 0], [-2, -1, 1e-4]], dtype=torch.float32)
    result = gradient(RotationTrick(largest_angle), z.requires_grad_(), q, g)
    assert torch.equal(result, g)


def test_tangential_is_the_rotation_of_what_is_across_z() -> None:
    z, q, g = pairs(acute=False)
    result = gradient(TangentialRotationTrick(180.0), z, q, g)
    for row in range(len(z)):
        y = z[row].detach()
        across = torch.eye(5, dtype=torch.float64) - torch.outer(y, y) / (y @ y)
        expected = q[row].norm() / y.norm() * across @ rotation(y, q[row]).T @ g[row]
        torch.testing.assert_close(result[row], expected, rtol=0, atol=1e-11)


def test_beyond_a_right_angle_the_rotation_turns_the_gradient_against_itself() -> None:
    """Why straight-through is the default there: in the plane of z and q, cos(dz, g) is the cosine of their angle."""
    z, q, _ = pairs()
    y = z.detach()
    g = q - 2 * (q * y).sum(1, keepdim=True) / y.square().sum(1, keepdim=True) * y  # q turned away, in the same plane
    turned = torch.cosine_similarity(gradient(RotationTrick(180.0), z, g, g), g)
    torch.testing.assert_close(turned, torch.cosine_similarity(y, g))
    assert (turned < 0).all()


def householder(z: Tensor, q: Tensor) -> Tensor:
    v = z / z.norm() - q / q.norm()
    return torch.eye(len(z), dtype=z.dtype) - 2 * torch.outer(v, v) / (v @ v)


def test_the_reflection_takes_the_vector_to_its_code() -> None:
    z, q, g = pairs(acute=False)
    result = gradient(Reflection(), z, q, g)
    for row in range(len(z)):
        y = z[row].detach()
        matrix, scale = householder(y, q[row]), q[row].norm() / y.norm()
        assert abs(float(torch.linalg.det(matrix)) + 1) < 1e-12
        torch.testing.assert_close(scale * matrix @ y, q[row], rtol=0, atol=1e-12)
        torch.testing.assert_close(result[row], scale * matrix.T @ g[row], rtol=0, atol=1e-11)
    torch.testing.assert_close((result * z).sum(1), (g * q).sum(1))


def test_the_reflection_is_equivariant_and_its_value_the_code() -> None:
    z, q, g = pairs()
    basis = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    turned = gradient(Reflection(), (z.detach() @ basis).requires_grad_(), q @ basis, g @ basis)
    torch.testing.assert_close(turned, gradient(Reflection(), z, q, g) @ basis, rtol=0, atol=1e-12)
    code = q.float().requires_grad_()
    value = Reflection()(select(z.float(), code))
    assert torch.equal(value, code)
    value.sum().backward()
    assert code.grad is None


def test_where_the_reflection_is_undefined_the_gradient_passes_unchanged() -> None:
    """The last row has the direction of its code: no mirror lies between them, and only the length is scaled."""
    g = torch.randn(5, 3)
    z = torch.tensor([[0, 0, 0], [1e-9, 0, 0], [1, 0, 0], [1e-5, 0, 0], [1, 2, 3]], dtype=torch.float32)
    q = torch.tensor([[1, 2, 3], [1, 0, 0], [0, 0, 0], [1, 0, 0], [2, 4, 6]], dtype=torch.float32)
    result = gradient(Reflection(), z.requires_grad_(), q, g)
    assert torch.equal(result[:4], g[:4]) and torch.equal(result[4], 2 * g[4])


def test_nearly_equal_directions_are_not_reflected() -> None:
    """Within a millionth of a radian, rounding alone would choose the mirror."""
    z = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    for angle in (1e-8, 1e-15):
        q = torch.tensor([[1.0, angle, -angle]], dtype=torch.float64)
        upstream = torch.randn(1, 3, dtype=torch.float64)
        torch.testing.assert_close(gradient(Reflection(), z, q, upstream), upstream, rtol=0, atol=1e-12)
