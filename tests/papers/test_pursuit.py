"""Matching pursuit: identities of energy, orthogonal dictionaries, the orthogonal variant, tokens, dead atoms."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vqkit import CodebookLoss, Commitment, Entropy, IncompatibleParts, NonnegativePursuitQuantizer, PursuitQuantizer
from vqkit.quantizers.pursuit import (
    DEAD,
    UnitCodebook,
    matching_pursuit,
    nonnegative_choice,
    orthogonal_matching_pursuit,
    signed_choice,
)

N, D, K, M = 40, 16, 64, 8
EPS = torch.finfo(torch.float64).eps
CHOICES = pytest.mark.parametrize("choice", [signed_choice, nonnegative_choice])


def rows(count: int = N, dim: int = D, seed: int = 0) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dictionary(size: int = K, dim: int = D) -> Tensor:
    return F.normalize(rows(size, dim, seed=1), dim=-1)


def energy(x: Tensor) -> Tensor:
    return x.square().sum(-1)


@CHOICES
def test_each_step_takes_away_the_square_of_its_coefficient(choice) -> None:
    x, atoms = rows(), dictionary()
    for steps in range(1, M + 1):
        before = matching_pursuit(x, atoms, steps - 1, choice=choice).residual if steps > 1 else x
        found = matching_pursuit(x, atoms, steps, choice=choice)
        taken = found.coefficients[:, -1].square()
        # Sums of D squares, and atoms of unit length to D eps.
        assert ((energy(before) - taken - energy(found.residual)).abs() <= 8 * D * EPS * energy(x)).all()
    total = torch.einsum("nm,nmd->nd", found.coefficients, atoms[found.indices]) + found.residual
    torch.testing.assert_close(total, x, rtol=0, atol=8 * M * EPS * float(x.abs().max()))


def test_the_loop_by_hand() -> None:
    x, atoms = rows(), dictionary()
    for choice, size in ((signed_choice, Tensor.abs), (nonnegative_choice, lambda dots: dots)):
        found, residual = matching_pursuit(x, atoms, 3, choice=choice), x.clone()
        for step in range(3):
            dots = residual @ atoms.T
            best = size(dots).argmax(1)
            value = dots.gather(1, best[:, None])[:, 0]
            if choice is nonnegative_choice:
                value = value.clamp(min=0)
            assert torch.equal(found.indices[:, step], best)
            torch.testing.assert_close(found.coefficients[:, step], value)
            residual = residual - value[:, None] * atoms[best]
        torch.testing.assert_close(found.residual, residual)


def test_over_an_orthonormal_dictionary_it_takes_the_largest_products() -> None:
    x, atoms = rows(), torch.linalg.qr(rows(D, D, seed=2)).Q
    dots = x @ atoms.T
    expected = dots.abs().topk(5, dim=-1)
    for pursue in (matching_pursuit, orthogonal_matching_pursuit):
        found = pursue(x, atoms, 5)
        assert torch.equal(found.indices, expected.indices)
        torch.testing.assert_close(found.coefficients, dots.gather(1, expected.indices))
    assert float(matching_pursuit(x, atoms, D).residual.abs().max()) < 1e-13


def test_orthogonal_pursuit_leaves_nothing_along_what_it_took() -> None:
    x, atoms = rows(), dictionary()
    found = orthogonal_matching_pursuit(x, atoms, M)
    taken = atoms[found.indices]
    along = torch.einsum("nmd,nd->nm", taken, found.residual)
    # Gram-Schmidt twice is orthogonal to a few eps; the least squares by lstsq agree to eps times the condition.
    assert float(along.abs().max()) < 100 * M * EPS * float(x.norm(dim=1).max())
    solved = torch.linalg.lstsq(taken.mT, x.unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(found.coefficients, solved, rtol=1e-9, atol=1e-9)
    total = torch.einsum("nm,nmd->nd", found.coefficients, taken)
    torch.testing.assert_close(total + found.residual, x, rtol=0, atol=1e-12)
    assert (found.indices.sort(1).values.diff(dim=1) > 0).all()
    assert (energy(found.residual) <= energy(matching_pursuit(x, atoms, M).residual)).all()


def test_orthogonal_pursuit_stops_where_nothing_is_left() -> None:
    atoms = dictionary(5, 3)
    found = orthogonal_matching_pursuit(rows(6, 3), atoms, 5)
    assert found.coefficients.isfinite().all() and float(found.residual.abs().max()) < 1e-13
    zero = orthogonal_matching_pursuit(torch.zeros(2, 3, dtype=torch.float64), atoms, 4)
    assert not zero.coefficients.any() and not zero.residual.any()


# ------------------------------------------------------------------ tokens


def pursuing(cls=PursuitQuantizer, **options) -> PursuitQuantizer:
    quantizer = cls(D, K, **{"steps": 4, "levels": 9} | options).double()
    quantizer.initialize([rows(600, seed=3)])
    return quantizer


@pytest.mark.parametrize("cls", [PursuitQuantizer, NonnegativePursuitQuantizer])
def test_tokens_are_atoms_and_even_levels(cls) -> None:
    quantizer, x = pursuing(cls).eval(), rows()
    indices, atoms = quantizer.encode(x), quantizer.codebook()
    low = -1 if cls is PursuitQuantizer else 0
    shares = low + (1 - low) * indices[:, 1::2].double() / 8
    total = torch.einsum("nm,nmd->nd", quantizer.ranges * shares, atoms[indices[:, ::2]])
    torch.testing.assert_close(quantizer.decode(indices), total)
    assert quantizer.bits_per_token == pytest.approx(4 * (math.log2(K) + math.log2(9)))
    assert quantizer.codebook_sizes == (K, 9) * 4 and quantizer.level_books == (0, 1, 0, 2, 0, 3, 0, 4)
    assert torch.equal(quantizer.decode(indices[:, :3]), quantizer.decode(indices[:, :2]))


@pytest.mark.parametrize("cls", [PursuitQuantizer, NonnegativePursuitQuantizer])
def test_rounding_is_nearest_and_later_steps_see_it(cls) -> None:
    """|r'|^2 = |r|^2 - c^2 + (c - c')^2, with c the best coefficient of what really is left."""
    quantizer, x = pursuing(cls).eval(), rows()
    indices, atoms = quantizer.encode(x), quantizer.codebook()
    spacing = (2 if cls is PursuitQuantizer else 1) * quantizer.ranges / 8
    for step in range(4):
        before = x - (quantizer.decode(indices[:, : 2 * step]) if step else 0)
        after = x - quantizer.decode(indices[:, : 2 * step + 2])
        found, best = quantizer.best_atoms(before, atoms)
        assert torch.equal(found, indices[:, 2 * step])
        sent = torch.linalg.vecdot(before - after, atoms[found])
        inside = best.abs() <= quantizer.ranges[step]
        assert ((best - sent).abs()[inside] <= spacing[step] / 2 * (1 + 1e-9)).all() and inside.double().mean() > 0.9
        dot = torch.linalg.vecdot(before, atoms[found])
        change = energy(before) - dot.square() + (dot - sent).square() - energy(after)
        assert (change.abs() <= 32 * D * EPS * energy(x)).all()


def test_many_levels_are_the_continuous_codes() -> None:
    quantizer, x = pursuing(levels=2**20, steps=M).eval(), rows(seed=3)[:20]
    exact = quantizer.sparse_codes(x)
    left = x - quantizer.decode(quantizer.encode(x))
    inside = (exact.coefficients.abs() <= quantizer.ranges).all(1)
    assert int(inside.sum()) > 10
    torch.testing.assert_close(
        left[inside], exact.residual[inside], rtol=0, atol=M * float(quantizer.ranges[0]) / 2**20
    )


def test_one_step_is_gain_shape_quantization() -> None:
    quantizer, x = pursuing(steps=1, levels=5).eval(), rows()
    indices = quantizer.encode(x)
    dots = x @ quantizer.codebook().T
    assert torch.equal(indices[:, 0], dots.abs().argmax(1))
    grid = torch.linspace(-1, 1, 5, dtype=torch.float64) * quantizer.ranges[0]
    gain = dots.gather(1, indices[:, :1])
    assert torch.equal(indices[:, 1], (gain - grid).abs().argmin(1))


# ------------------------------------------------------------------ what learns


def test_gradients_of_the_loss() -> None:
    quantizer, x = pursuing(revival=0.0), rows().requires_grad_()
    output, vectors = quantizer(x), quantizer.codebook.vectors
    shares = -1 + 2 * output.indices[:, 1::2].double() / 8
    total = torch.einsum("nm,nmd->nd", quantizer.ranges * shares, F.normalize(vectors, dim=-1)[output.indices[:, ::2]])
    expected = (x.detach() - total).square().mean() + 0.25 * (x - total.detach()).square().mean()
    torch.testing.assert_close(output.loss, expected)
    task = torch.randn_like(x)
    mine = torch.autograd.grad(output.loss + (task * output.quantized).sum(), [x, vectors], retain_graph=True)
    theirs = torch.autograd.grad(expected + (task * x).sum(), [x, vectors])
    torch.testing.assert_close(mine, theirs)


def test_atoms_are_of_unit_length_after_a_step_and_read_so_before() -> None:
    quantizer = pursuing()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=50.0)
    for seed in range(3):
        optimizer.zero_grad()
        quantizer(rows(seed=seed)).loss.backward()
        optimizer.step()
        moved = quantizer.codebook.vectors.detach().norm(dim=1)
        assert float((moved - 1).abs().max()) > 1e-3
        torch.testing.assert_close(quantizer.codebook().detach().norm(dim=1), torch.ones(K).double())
        quantizer.step()
        torch.testing.assert_close(quantizer.codebook.vectors.detach().norm(dim=1), torch.ones(K).double())
    kept = quantizer.codebook.vectors.detach().clone()
    quantizer(rows())
    quantizer.step()
    assert torch.equal(quantizer.codebook.vectors, kept)  # without a gradient nothing moves by a bit


def test_dead_atoms_alone_are_drawn_to_what_is_left() -> None:
    quantizer, x = pursuing(losses=[CodebookLoss(0.0)], revival=1e-2), rows()
    dead = torch.arange(K) % 4 == 0
    quantizer.codebook.usage.copy_(torch.where(dead, 0.5 * DEAD, 1.0))
    selection = selection_of(quantizer.eval(), x)
    output = quantizer.train()(x)
    residual = (x - output.quantized).detach()
    atoms = quantizer.codebook().detach()
    dots = residual @ atoms[dead].T
    best = dots.gather(1, dots.abs().argmax(1, keepdim=True)).squeeze(1)
    torch.testing.assert_close(output.losses["revival"], ((energy(residual) - best.square()) / D).mean())
    torch.testing.assert_close(output.loss, 1e-2 * output.losses["revival"])
    output.loss.backward()
    gradient = quantizer.codebook.vectors.grad
    assert not gradient[~dead].any() and gradient[dead].any()
    assert float((torch.linalg.vecdot(gradient, quantizer.codebook.vectors.detach())).abs().max()) < 1e-15
    with torch.no_grad():
        quantizer.codebook.vectors.sub_(0.1 * gradient / gradient.norm())
    assert quantizer.revived(selection) < output.losses["revival"].detach()


def selection_of(quantizer: PursuitQuantizer, x: Tensor):
    quantized = quantizer.quantize(x, torch.ones(len(x), dtype=torch.bool))
    assert quantized.selection is not None
    return quantized.selection


def test_without_dead_atoms_nothing_is_drawn_and_eval_has_no_such_loss() -> None:
    quantizer = pursuing(losses=[CodebookLoss(0.0)])
    output = quantizer(rows())
    output.loss.backward()
    assert not quantizer.codebook.vectors.grad.any()
    assert "revival" not in quantizer.eval()(rows()).losses
    assert "revival" not in pursuing(revival=0.0)(rows()).losses


@pytest.mark.slow
def test_revival_brings_atoms_back() -> None:
    """Atoms that lie where no vector is: some of them are chosen after training with the term, none without it."""
    chosen = {}
    for weight in (0.0, 1.0):
        quantizer = PursuitQuantizer(4, 12, 2, levels=2**12, revival=weight, usage_decay=0.5).double()
        x = rows(256, 4, seed=5) * torch.tensor([1.0, 1.0, 0.0, 0.0]).double()
        vectors = torch.eye(4).double()[torch.tensor([0, 1] + [2] * 10)]
        vectors = vectors + 1e-3 * rows(12, 4, seed=6) * (torch.arange(12) >= 2).unsqueeze(-1)
        with torch.no_grad():
            quantizer.codebook.vectors.copy_(F.normalize(vectors, dim=-1))
            quantizer.ranges.fill_(4.0)
        optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.04)
        for _ in range(60):
            optimizer.zero_grad()
            quantizer(x).loss.backward()
            optimizer.step()
        chosen[weight] = len(quantizer.eval().encode(x)[:, ::2].unique())
    assert chosen[0.0] == 2 and chosen[1.0] > 2


def test_usage_counts_the_atoms_and_not_the_levels() -> None:
    quantizer = pursuing()
    output = quantizer(rows())
    atoms = output.indices[:, ::2].flatten()
    assert torch.equal(quantizer.codebook.pending_counts.long(), atoms.bincount(minlength=K))
    assert quantizer.codebook.pending_counts.sum() == 4 * N


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PursuitQuantizer(4, 8, 0), ValueError, "steps=0"),
        (lambda: PursuitQuantizer(4, 8, levels=1), ValueError, "levels=1: expected at least 2"),
        (lambda: PursuitQuantizer(4, 8, revival=-1.0), ValueError, r"revival=-1\.0"),
        (lambda: PursuitQuantizer(4, 8, losses=[Entropy()]), IncompatibleParts, "Entropy is defined for single codes"),
        (lambda: PursuitQuantizer(4, 8, losses=[Commitment(), Commitment()]), IncompatibleParts, "commitment"),
        (lambda: matching_pursuit(rows(), dictionary(), 0), ValueError, "steps=0"),
        (lambda: orthogonal_matching_pursuit(rows(), dictionary(), 0), ValueError, "steps=0"),
    ],
)
def test_what_cannot_be_is_refused(build, error, message) -> None:
    with pytest.raises(error, match=message):
        build()


def test_unit_codebook_starts_on_the_sphere() -> None:
    assert torch.allclose(UnitCodebook(8, 4).vectors.norm(dim=1), torch.ones(8))


def test_sparse_codes_do_not_lose_digits_under_autocast() -> None:
    quantizer, x = PursuitQuantizer(D, K, 3).eval(), rows().float()
    expected = quantizer.sparse_codes(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = quantizer.sparse_codes(x)
    assert torch.equal(found.indices, expected.indices) and torch.equal(found.coefficients, expected.coefficients)
