"""Distances from codebooks: the equations of DAB's core in float64, every level of composites, and the AUROC."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.largest_tensor import LargestTensor
from tests.refusals import refused
from vqkit import FSQ, GroupedQuantizer, Quantizer, ResidualQuantizer
from vqkit.kernels.softmax_rows import BLOCK
from vqkit.metrics.uncertainty import CodebookUncertainty, auroc, codebook_distance


def problem(rows: int = 20, codes: int = 7, dim: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    z, table = (torch.randn(number, dim, dtype=torch.float64) for number in (rows, codes))
    return z, table, torch.rand(codes, dtype=torch.float64) + 0.1


def squared(z: Tensor, codes: Tensor) -> Tensor:
    return (z[:, None] - codes).square().sum(-1)


@pytest.mark.parametrize("tau", [1e-3, 0.7, 40.0])
def test_distances_are_those_of_the_equations(tau: float) -> None:
    z, codes, prior = problem()
    shares, distances = prior / prior.sum(), squared(z, codes)
    p = (shares.log() - tau * distances).softmax(1)
    found = codebook_distance(z + 100, codes + 100, tau=tau, prior=prior)  # far from the origin, too
    expected = (distances.amin(1), (p * distances).sum(1), -(shares.log() - tau * distances).logsumexp(1))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10 / min(tau, 1))


def test_the_free_energy_is_the_least_value_of_its_objective() -> None:
    z, codes, prior = problem()
    shares, distances, tau = prior / prior.sum(), squared(z, codes), 0.7
    found = codebook_distance(z, codes, tau=tau, prior=prior)

    def objective(p: Tensor) -> Tensor:
        return (torch.special.xlogy(p, p / shares)).sum(1) + tau * (p * distances).sum(1)

    best = (shares.log() - tau * distances).softmax(1)
    torch.testing.assert_close(objective(best), found.free_energy, rtol=0, atol=1e-12)
    torch.testing.assert_close((best * distances).sum(1), found.soft, rtol=0, atol=1e-12)
    for other in (
        torch.rand_like(best),
        best + 0.01 * torch.rand_like(best),
        torch.eye(7).double()[distances.argmin(1)],
    ):
        assert (objective(other / other.sum(1, keepdim=True)) >= found.free_energy - 1e-12).all()


def test_of_one_code_all_three_are_its_distance() -> None:
    z, codes, _ = problem(codes=1)
    found = codebook_distance(z, codes, tau=0.3)
    distance = squared(z, codes)[:, 0]
    torch.testing.assert_close(found, (distance, distance, 0.3 * distance), rtol=1e-12, atol=0)


def test_codes_of_prior_zero_are_not_there() -> None:
    z, codes, prior = problem()
    prior[2:4] = 0
    left = torch.tensor([0, 1, 4, 5, 6])
    both = (
        codebook_distance(z, codes, tau=2.0, prior=prior),
        codebook_distance(z, codes[left], tau=2.0, prior=prior[left]),
    )
    for ours, theirs in zip(*both, strict=True):
        assert torch.equal(ours, theirs)


def test_no_prior_is_an_equal_one_and_half_precision_is_computed_in_float32() -> None:
    z, codes, _ = problem()
    both = codebook_distance(z, codes, tau=2.0), codebook_distance(z, codes, tau=2.0, prior=torch.full((7,), 3))
    torch.testing.assert_close(*both, rtol=0, atol=1e-12)
    assert codebook_distance(z.view(4, 5, 3).bfloat16(), codes.bfloat16(), tau=1.0).soft.shape == (4, 5)
    assert codebook_distance(z.bfloat16(), codes.bfloat16(), tau=1.0).soft.dtype == torch.float32


def test_nothing_of_the_size_of_vectors_times_codes_is_held() -> None:
    z, codes = torch.randn(1500, 2), torch.randn(1000, 2)
    with LargestTensor() as largest:
        codebook_distance(z, codes, tau=1.0)
    assert largest.largest / 4 <= BLOCK < len(z) * len(codes)


def quantizers() -> dict[str, Quantizer | ResidualQuantizer | GroupedQuantizer]:
    def one(dim: int) -> Quantizer:
        return Quantizer("ema", dim=dim, codebook_size=8)

    return {
        "one": one(4),
        "residual": ResidualQuantizer(lambda: one(4), num_stages=3),
        "grouped": GroupedQuantizer([lambda: one(3), lambda: one(1)]),
    }


@pytest.mark.parametrize("name", ["one", "residual", "grouped"])
def test_levels_are_those_of_the_quantizer_and_are_added(name: str) -> None:
    quantizer, x = quantizers()[name], torch.randn(5, 40, 4)
    quantizer.initialize([x])
    state = {key: value.clone() for key, value in quantizer.state_dict().items()}
    uncertainty = CodebookUncertainty(quantizer).fit([x[:3], x[3:]])
    assert len(uncertainty.taus) == quantizer.num_codebooks
    assert quantizer.training
    assert all(torch.equal(value, state[key]) for key, value in quantizer.state_dict().items())
    tokens = uncertainty.tokens(x)
    for level, prior in enumerate(uncertainty.priors):
        indices = quantizer.eval().encode(x)
        indices = indices if indices.ndim == 2 else indices[..., level]
        assert torch.equal(prior, indices.flatten().bincount(minlength=8) + 1)
        dim = [3, 1][level] if name == "grouped" else 4
        # tau is D / 2 over the mean squared distance, so that the mean of tau D is D / 2
        assert float(tokens[level].minimum.mean()) == pytest.approx(dim / 2, rel=1e-4)
    if name == "residual":
        error = (x - quantizer(x).quantized).square().sum(-1)
        torch.testing.assert_close(tokens[-1].minimum / uncertainty.taus[-1], error, rtol=1e-4, atol=1e-5)
    pooled = uncertainty.samples(x)
    for score, parts in zip(pooled, zip(*tokens, strict=True), strict=True):
        torch.testing.assert_close(score, sum(part.mean(1) for part in parts))


def test_masked_and_broken_tokens_count_in_no_sample() -> None:
    quantizer, x = quantizers()["residual"], torch.randn(4, 10, 4)
    quantizer.initialize([x])
    uncertainty = CodebookUncertainty(quantizer).fit([x])
    mask = torch.arange(10).expand(4, 10) < torch.tensor([10, 6, 6, 0])[:, None]
    spoiled = x.clone()
    spoiled[2, 8] = torch.nan
    found = uncertainty.samples(spoiled, mask).free_energy
    torch.testing.assert_close(found[1:3], uncertainty.samples(x[1:3, :6]).free_energy)
    assert found[3].isnan() and uncertainty.tokens(spoiled, mask)[0].soft[1, 6:].isnan().all()


def test_autocast_rounds_nothing() -> None:
    z, codes, prior = (tensor.float() for tensor in problem())
    quantizer, x = Quantizer("factorized", dim=8, codebook_size=8, codebook_dim=4), torch.randn(2, 40, 8)
    quantizer.initialize([x])

    def scores() -> tuple[Tensor, ...]:
        uncertainty = CodebookUncertainty(quantizer).fit([x])
        return *codebook_distance(z, codes, tau=1.0, prior=prior), *uncertainty.samples(x)

    plain = scores()
    with torch.autocast("cpu", torch.bfloat16):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(scores(), plain, strict=True))


def test_vectors_far_from_the_data_are_told_apart() -> None:
    quantizer, x = quantizers()["one"], torch.randn(30, 10, 4)
    quantizer.initialize([x])
    uncertainty = CodebookUncertainty(quantizer).fit([x])
    near, far = uncertainty.samples(x), uncertainty.samples(3 * x)
    assert all(auroc(a, b) > 0.9 for a, b in zip(near, far, strict=True))


def test_auroc_counts_pairs_and_ties_for_a_half() -> None:
    inside, outside = torch.randint(6, (23,)).double(), torch.randint(2, 8, (17,)).double()
    pairs = [(b > a) + 0.5 * (b == a) for a, b in itertools.product(inside.tolist(), outside.tolist())]
    assert auroc(inside, outside) == sum(pairs) / len(pairs)
    assert auroc(inside, outside) + auroc(outside, inside) == pytest.approx(1, abs=1e-15)
    assert auroc(torch.zeros(3), torch.zeros(2)) == 0.5
    assert auroc(torch.tensor([0.0, math.inf]), torch.tensor([math.inf])) == 0.75


test_what_cannot_be_meant_is_refused = refused(
    (lambda z, c: codebook_distance(z, c, tau=0.0), "tau=0.0"),
    (lambda z, c: codebook_distance(z, c[:, :2], tau=1.0), r"expected \(N, D\) and \(K, D\)"),
    (lambda z, c: codebook_distance(z[0], c, tau=1.0), r"z has shape \(3,\)"),
    (lambda z, c: codebook_distance(z, c, tau=1.0, prior=torch.ones(3)), r"prior has shape \(3,\)"),
    (lambda z, c: codebook_distance(z, c, tau=1.0, prior=torch.zeros(7)), "one of them positive"),
    (lambda z, c: auroc(z[:, 0], z[:0, 0]), r"outside has shape \(0,\)"),
    (lambda z, c: auroc(z[:, 0] * torch.nan, z[:, 0]), "none of them NaN"),
    (
        lambda z, c: CodebookUncertainty(FSQ([3, 3, 3])).fit([z]),
        "FSQ has a level that does not choose one of stored codes",
    ),
    (lambda z, c: CodebookUncertainty(Quantizer("vq", dim=3, codebook_size=4)).fit([]), "got none"),
    by=lambda call: call(*problem()[:2]),
)


def test_scores_before_the_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="call fit"):
        CodebookUncertainty(Quantizer("vq", dim=3, codebook_size=4)).samples(torch.randn(2, 5, 3))
