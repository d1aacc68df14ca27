"""Weighted distances: the float64 argmin, by dimension and by row, where float32 would decide wrongly too."""

import pytest
import torch
from torch import Tensor

from vqkit.kernels import naive, weighted_nearest
from vqkit.kernels import weighted as module


def data(rows: int, codes: int, dim: int, offset: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, e = (torch.randn(number, dim, generator=generator) + offset for number in (rows, codes))
    return x, e, torch.rand(rows, dim, generator=generator) ** 4 * 10


def assert_best(x: Tensor, codes: Tensor, weights: Tensor) -> Tensor:
    """The indices, whose score is the least of all but for float64's rounding of it."""
    found = weighted_nearest(x, codes, weights, return_scores=True)
    _, least = naive.weighted_nearest(x, codes, weights)
    a = weights.double().expand_as(x)
    scores = (a * (x.double() - codes.double()[found.indices]).square()).sum(-1)
    # D products and sums of [a, a x] . [-e^2, 2 e] around the codes' mean, each of which rounds by 2^-53.
    centre = codes.double().mean(0)
    sizes = (a * ((x - centre).abs() + (codes - centre).abs().amax(0)).square()).sum(-1)
    assert (scores - least <= (16 * x.shape[-1] + 64) * 2.0**-53 * sizes).all()
    torch.testing.assert_close(found.scores.double(), scores, rtol=2.0**-23, atol=0)
    return found.indices


@pytest.mark.parametrize("dim", [1, 3, 16])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_it_is_the_float64_argmin(dim: int, offset: float) -> None:
    x, codes, weights = data(500, 37, dim, offset, seed=dim)
    by_row = assert_best(x, codes, weights)
    by_dimension = assert_best(x, codes, weights[0])
    assert torch.equal(by_row, naive.weighted_nearest(x, codes, weights)[0])
    assert torch.equal(by_dimension, naive.weighted_nearest(x, codes, weights[0])[0])
    plain = weighted_nearest(x, codes, torch.full((dim,), 3.0)).indices
    assert torch.equal(plain, naive.nearest(x, codes)[0][:, 0])
    assert dim == 1 or not torch.equal(plain, by_row)


@pytest.mark.parametrize("by_row", [True, False])
def test_codes_that_rounding_would_confuse_are_told_apart(by_row: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of codes a few units of the last place of float32 apart, and rows between them."""
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(64, 4, generator=generator)
    codes = torch.cat([base, base * (1 + 3 * 2.0**-23)])
    weights = torch.rand(64, 4, generator=generator) if by_row else torch.rand(4, generator=generator)
    x = base + 1e-3 * torch.randn(64, 4, generator=generator)
    assert_best(x, codes, weights)
    again: list[int] = []
    search = module.nearest

    def counted(rows: Tensor, *arguments, **options):
        again.extend([len(rows)] * (rows.dtype == torch.float64))
        return search(rows, *arguments, **options)

    monkeypatch.setattr(module, "nearest", counted)
    weighted_nearest(x, codes, weights)
    assert again == [64]  # none of them is decided in float32
    again.clear()
    weighted_nearest(x, base, weights)
    assert sum(again) <= 8  # and hardly any where codes lie apart


@pytest.mark.parametrize("scale", [1e-22, 1e18])
def test_numbers_whose_squares_leave_float32_are_searched_too(scale: float) -> None:
    x, codes, weights = data(40, 9, 3, seed=8)
    expected = weighted_nearest(x, codes, weights).indices
    assert torch.equal(weighted_nearest(x * scale, codes * scale, weights).indices, expected)
    assert torch.equal(weighted_nearest(x, codes, weights * scale).indices, expected)


def test_layouts_dtypes_and_degenerate_weights() -> None:
    x, codes, weights = data(12, 5, 4)
    expected = weighted_nearest(x, codes, weights).indices
    shaped = weighted_nearest(x.reshape(3, 4, 4), codes, weights.reshape(3, 4, 4), return_scores=True)
    assert torch.equal(shaped.indices, expected.reshape(3, 4)) and shaped.scores.shape == (3, 4)
    wide = weighted_nearest(x.double(), codes, weights, return_scores=True)
    assert torch.equal(wide.indices, expected) and wide.scores.dtype == torch.float64
    half = weighted_nearest(x.half(), codes.half(), weights.half()).indices
    assert torch.equal(half, naive.weighted_nearest(x.half(), codes.half(), weights.half())[0])
    assert weighted_nearest(x[:0], codes, weights[:0]).indices.shape == (0,)
    assert (weighted_nearest(x, codes, torch.zeros(4)).indices == 0).all()
    only_first = torch.tensor([1.0, 0.0, 0.0, 0.0])
    assert torch.equal(weighted_nearest(x, codes, only_first).indices, naive.nearest(x[:, :1], codes[:, :1])[0][:, 0])
    broken = codes.clone()
    broken[expected[0]] = torch.nan
    assert weighted_nearest(x[:1], broken, weights[:1]).indices != expected[0]
    endless = x[:2].clone()
    endless[0, 1] = torch.inf
    for some in (weights[:2], weights[0]):
        found = weighted_nearest(endless, codes, some, return_scores=True)
        assert found.indices[0] == 0 and found.scores.isnan().tolist() == [True, False]


def test_what_does_not_fit_is_refused() -> None:
    x, codes, weights = data(6, 5, 4)
    with pytest.raises(ValueError, match=r"weights has shape \(3,\).*expected \(4,\) or \(6, 4\)"):
        weighted_nearest(x, codes, torch.ones(3))
    with pytest.raises(ValueError, match="weights holds negative numbers, NaN or infinity"):
        weighted_nearest(x, codes, -weights)
    with pytest.raises(ValueError, match="search one codebook at a time"):
        weighted_nearest(x[None], codes[None], weights[None])
