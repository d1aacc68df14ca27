"""The contract of every estimator: whether its value is the code, its Jacobian, and whether it reaches the codebook.

Jacobians are those of the published equations, written out for one vector z, its code e and all codes E, in float64.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import vqkit
from vqkit import (
    NSVQ,
    DiVeQ,
    EmbeddingStraightThrough,
    Estimator,
    GumbelSoftmax,
    IndexBackpropagation,
    Noise,
    Reflection,
    ReinMax,
    RelaxedGumbelSoftmax,
    RotationTrick,
    Selection,
    StraightThrough,
    TangentialRotationTrick,
    UnnormalizedStraightThrough,
    UnscaledRotationTrick,
    UnscaledTangentialRotationTrick,
)
from vqkit.parts.estimators import straight_through as exact_straight_through

K, D, TEMPERATURE = 6, 4, 0.8
EYE = torch.eye(D, dtype=torch.float64)


class Row(NamedTuple):
    """One vector z (D,), all codes (K, D), the index of its code, and its random numbers."""

    z: Tensor
    codes: Tensor
    index: int
    noise: Noise

    @property
    def e(self) -> Tensor:
        return self.codes[self.index]

    @property
    def scale(self) -> Tensor:
        return self.e.norm() / self.z.norm()

    @property
    def u(self) -> Tensor:
        return (self.e - self.z) / (self.e - self.z).norm()


Jacobians = Callable[[Row], tuple[Tensor, Tensor | None]]
"""d y / d z (D, D), and d y / d E (D, K, D) or None where that is zero."""


def straight_through(row: Row) -> tuple[Tensor, None]:
    return EYE, None


def rotation(row: Row) -> Tensor:
    z_hat, e_hat = row.z / row.z.norm(), row.e / row.e.norm()
    w = (z_hat + e_hat) / (z_hat + e_hat).norm()
    return EYE - 2 * torch.outer(w, w) + 2 * torch.outer(e_hat, z_hat)


def rotation_keep(row: Row) -> tuple[Tensor, None]:
    return row.scale * rotation(row), None


def rotation_tangential(row: Row) -> tuple[Tensor, None]:
    z_hat = row.z / row.z.norm()
    return row.scale * rotation(row) @ (EYE - torch.outer(z_hat, z_hat)), None


def rotation_unscaled(row: Row) -> tuple[Tensor, None]:
    return rotation(row), None


def rotation_across(row: Row) -> tuple[Tensor, None]:
    return rotation_tangential(row)[0] / row.scale, None


def rotation_or_straight_through(row: Row) -> tuple[Tensor, None]:
    return (row.scale * rotation(row) if row.z @ row.e > 0 else EYE), None


def reflection(row: Row) -> tuple[Tensor, None]:
    z_hat = row.z / row.z.norm()
    v = z_hat - row.e / row.e.norm()
    return row.scale * (EYE - 2 * torch.outer(v, v) / (v @ v)) @ (EYE - torch.outer(z_hat, z_hat)), None


def at_code(row: Row, matrix: Tensor) -> Tensor:
    reached = torch.zeros(D, K, D, dtype=torch.float64)
    reached[:, row.index] = matrix
    return reached


def along_the_error(row: Row, direction: Tensor) -> tuple[Tensor, Tensor]:
    outer = torch.outer(direction, row.u)
    return EYE - outer, at_code(row, outer)


def read_through(row: Row) -> tuple[Tensor, Tensor]:
    return EYE, at_code(row, EYE)


def nsvq(row: Row) -> tuple[Tensor, Tensor]:
    noise = row.noise.normal(D)[0]
    return along_the_error(row, noise / noise.norm())


def diveq(row: Row) -> tuple[Tensor, Tensor]:
    direction = 0.04**0.5 * row.noise.normal(D)[0] + row.e - row.z
    return along_the_error(row, direction / direction.norm())


def diveq_detached(row: Row) -> tuple[Tensor, Tensor]:
    return along_the_error(row, row.u)


def soft_choice(row: Row, p: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Of sum_k weights_k e_k, with gradient of the weights as if they were p."""
    deviation = row.codes - p @ row.codes
    covariance = torch.einsum("k,kd,ke->de", p, row.codes, deviation)
    by_logits = torch.einsum("k,kd,e->dke", p, deviation, row.z)
    return covariance / TEMPERATURE, torch.einsum("k,de->dke", weights, EYE) + by_logits / TEMPERATURE


def one_hot(row: Row) -> Tensor:
    return torch.eye(K, dtype=torch.float64)[row.index]


def ibq(row: Row) -> tuple[Tensor, Tensor]:
    return soft_choice(row, (row.codes @ row.z / TEMPERATURE).softmax(0), one_hot(row))


def perturbed(row: Row) -> Tensor:
    gumbel = -torch.log(-torch.log1p(-row.noise.uniform(K)[0]))
    return ((row.codes @ row.z + gumbel) / TEMPERATURE).softmax(0)


def gumbel(row: Row) -> tuple[Tensor, Tensor]:
    return soft_choice(row, perturbed(row), one_hot(row))


def gumbel_relaxed(row: Row) -> tuple[Tensor, Tensor]:
    return soft_choice(row, perturbed(row), perturbed(row))


def reinmax(row: Row) -> tuple[Tensor, Tensor]:
    p, drawn = (row.codes @ row.z).softmax(0), one_hot(row)
    matrices = [torch.diag(q) - torch.outer(q, q) for q in ((p + drawn) / 2, p)]
    by_logits = row.codes.T @ (2 * matrices[0] - matrices[1] / 2)
    return by_logits @ row.codes, at_code(row, EYE) + torch.einsum("dk,e->dke", by_logits, row.z)


TABLE: list[tuple[Estimator, bool, bool, Jacobians]] = [
    # estimator, value is the code, decoder reaches the codebook, Jacobians
    (StraightThrough(), True, False, straight_through),
    (UnnormalizedStraightThrough(), True, False, straight_through),
    (EmbeddingStraightThrough(), True, True, read_through),
    (RotationTrick(180.0), True, False, rotation_keep),
    (TangentialRotationTrick(180.0), True, False, rotation_tangential),
    (UnscaledRotationTrick(180.0), True, False, rotation_unscaled),
    (UnscaledTangentialRotationTrick(180.0), True, False, rotation_across),
    (RotationTrick(), True, False, rotation_or_straight_through),
    (Reflection(), True, False, reflection),
    (IndexBackpropagation(TEMPERATURE), True, True, ibq),
    (NSVQ(), False, True, nsvq),
    (DiVeQ(0.04), False, True, diveq),
    (DiVeQ(0.0), True, True, diveq_detached),
    (GumbelSoftmax(TEMPERATURE), True, True, gumbel),
    (RelaxedGumbelSoftmax(TEMPERATURE), False, True, gumbel_relaxed),
    (ReinMax(), True, True, reinmax),
]


def value(estimator: Estimator, row: Row) -> Tensor:
    z, indices = row.z.unsqueeze(0), torch.tensor([row.index])
    selected, valid = row.codes[indices], indices >= 0
    return estimator(Selection(z, z, row.codes, indices, selected, valid, row.noise))[0]


@pytest.mark.parametrize(("estimator", "exact", "trains", "jacobians"), TABLE, ids=[str(row[0]) for row in TABLE])
def test_value_and_jacobians(estimator: Estimator, exact: bool, trains: bool, jacobians: Jacobians) -> None:
    assert estimator.trains_codebook == trains
    for step in range(8):
        noise = Noise(seed=torch.tensor(5), step=torch.tensor(step), first=0, count=1)
        z, codes = torch.randn(D, dtype=torch.float64), torch.randn(K, D, dtype=torch.float64)
        row = Row(z, codes, step % K, noise)
        assert torch.equal(value(estimator, row), row.e) == exact
        ours = torch.autograd.functional.jacobian(
            lambda z, codes, row=row: value(estimator, row._replace(z=z, codes=codes)), (z, codes)
        )
        by_z, by_codes = jacobians(row)
        torch.testing.assert_close(ours[0], by_z, rtol=0, atol=1e-11)
        if by_codes is not None:
            torch.testing.assert_close(ours[1], by_codes, rtol=0, atol=1e-11)
        assert bool((ours[1] != 0).any()) == trains


def test_every_estimator_is_in_the_table() -> None:
    public = {part for part in vars(vqkit).values() if isinstance(part, type) and issubclass(part, Estimator)}
    assert public - {Estimator} == {type(estimator) for estimator, *_ in TABLE}


@pytest.mark.parametrize("slope", [None, torch.tensor([2.0, 3.0, 5.0])])
def test_the_value_is_passed_bit_for_bit_and_the_gradient_to_the_surrogate(slope: Tensor | None) -> None:
    value = torch.tensor([[-0.0, 1e-30, math.inf], [1e30, math.nan, 3.0]], requires_grad=True)
    surrogate = torch.randn(3, 2, requires_grad=True)
    passed = exact_straight_through(value, surrogate.T, slope=slope)
    passed.backward(torch.ones(2, 3))
    assert torch.equal(passed.detach().view(torch.int32), value.detach().view(torch.int32))
    assert torch.equal(surrogate.grad, (torch.ones(2, 3) if slope is None else slope.expand(2, 3)).T)
    assert value.grad is None
    several = torch.vmap(exact_straight_through, in_dims=(0, None))(torch.stack([value, value]), surrogate.T)
    assert torch.equal(several.nan_to_num(), torch.stack([value, value]).nan_to_num())
