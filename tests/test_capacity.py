"""Gaussian capacity: known distortions, the bound that nothing goes below, and what must not change a figure."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.contract.cases import CASES, Case
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    CenteredFSQ,
    FrozenCodebook,
    GaussianBottleneck,
    GroupedQuantizer,
    MixtureQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
)
from vqkit.metrics import GaussianCapacity, fit_gaussian, gaussian_capacity

SIGN = 1 - 2 / math.pi
LLOYD_MAX = {2: [0.798], 4: [0.4528, 1.5104], 8: [0.2451, 0.7560, 1.3439, 2.1519]}
"""The best levels of a normal number (Max 1960, table I), the positive half."""
LLOYD_MAX_ERROR = {2: SIGN, 4: 0.1175, 8: 0.03454}


def table(vectors: Tensor) -> Quantizer:
    """A quantizer of these codes (K, D)."""
    parts = {"codebook": FrozenCodebook, "maintenance": []}
    quantizer = Quantizer("ema", dim=vectors.shape[1], codebook_size=len(vectors), **parts)
    quantizer.codebook.vectors.copy_(vectors)
    return quantizer


def lloyd_max(levels: int) -> Tensor:
    half = torch.tensor(LLOYD_MAX[levels])
    return torch.cat([-half.flip(0), half])[:, None]


def assert_near(capacity: GaussianCapacity, expected: float) -> None:
    """Within five standard errors, each of which is less than a percent of it."""
    assert capacity.standard_error < expected / 100
    assert abs(capacity.distortion - expected) < 5 * capacity.standard_error


def uniform_error(levels: int, step: float) -> float:
    """Mean squared error of a uniform grid of N(0, 1), by the trapezoidal rule in float64."""
    x = torch.linspace(-9, 9, 9_001, dtype=torch.float64)
    density = (-x.square() / 2).exp() / math.sqrt(2 * math.pi)
    edge = (levels - 1) / 2
    nearest = ((x / step - edge).round() + edge).clamp(-edge, edge) * step
    return float(torch.trapezoid((x - nearest).square() * density, x))


@pytest.mark.parametrize("build", [LFQ, BSQ], ids=["lfq", "bsq"])
def test_a_sign_leaves_one_minus_two_over_pi(build) -> None:
    capacity = gaussian_capacity(build(8), samples=2**15)
    assert_near(capacity, SIGN)
    assert capacity.bits == 1
    # 32,768 tokens of 256 equal codes: the corrected entropy has a deviation of sqrt(255 / 2) / 32,768 nats a token.
    assert abs(capacity.entropy_bits - 1) < 5 * math.sqrt(255 / 2) / 2**15 / math.log(2) / 8
    assert math.isclose(capacity.effective_bits, 0.730, rel_tol=0.01)
    assert math.isclose(capacity.gap_db, 10 * math.log10(4 * SIGN), rel_tol=0.02)


@pytest.mark.parametrize("levels", [4, *(pytest.param(levels, marks=pytest.mark.slow) for levels in (2, 8))])
def test_lloyd_max_levels_reach_their_known_error(levels: int) -> None:
    capacity = gaussian_capacity(table(lloyd_max(levels)))
    assert_near(capacity, LLOYD_MAX_ERROR[levels])
    assert abs(math.log2(capacity.scale)) <= 1 / 16  # they are the best as they are: a step of 1/32 octave


@pytest.mark.parametrize(("levels", "build"), [pytest.param(3, FSQ, marks=pytest.mark.slow), (8, CenteredFSQ)])
def test_the_grid_of_fsq_is_the_best_uniform_one(levels: int, build) -> None:
    quantizer = build([levels] * 4)
    best = min(uniform_error(levels, step / 200) for step in range(80, 280, 2))
    capacity = gaussian_capacity(quantizer, encoder=quantizer.unbounded, samples=2**15)
    assert_near(capacity, best)
    assert capacity.distortion <= gaussian_capacity(quantizer, samples=2**15).distortion + 1e-4  # tanh bends it


def test_nothing_is_lost_by_a_grid_that_is_fine_enough() -> None:
    quantizer = FSQ([2**15] * 2)
    capacity = gaussian_capacity(quantizer, encoder=quantizer.unbounded, samples=2**12)
    assert capacity.distortion < 1e-6 and capacity.entropy_bits is None and capacity.bits == 15


def test_the_scale_of_a_codebook_changes_nothing() -> None:
    vectors = torch.randn(16, 2, generator=torch.Generator().manual_seed(3))
    one, other = (gaussian_capacity(table(vectors * scale), samples=2**12) for scale in (1.0, 2.0**-9))
    assert one.distortion == other.distortion and one.entropy_bits == other.entropy_bits
    assert other.scale == one.scale / 2**9


@pytest.mark.slow
def test_the_scale_of_long_vectors_is_found_too() -> None:
    codes = torch.zeros(8, 2048)
    codes[:, 0] = 2.0**-9 * lloyd_max(8)[:, 0]
    capacity = gaussian_capacity(table(codes), samples=2**10)
    assert abs(math.log2(capacity.scale) + 9) <= 1  # of few vectors, but not that of 1
    # One number of 2,048 is quantized; the variance of 1,024 of it has a relative deviation of sqrt(2 / 1,024).
    assert 2048 * (1 - capacity.distortion) == pytest.approx(1 - LLOYD_MAX_ERROR[8], abs=5 * (2 / 1024) ** 0.5)


def test_independent_halves_average() -> None:
    codes = [lloyd_max(2), lloyd_max(8)]
    halves = [gaussian_capacity(table(code), samples=2**13) for code in codes]
    both = GroupedQuantizer([partial(Quantizer, "ema", dim=1, codebook_size=len(code)) for code in codes])
    for group, code in zip(both.groups, codes, strict=True):
        group.codebook.vectors.copy_(code)
    capacity = gaussian_capacity(both, samples=2**13)
    assert capacity.bits == (1 + 3) / 2
    mean = sum(half.distortion for half in halves) / 2
    assert abs(capacity.distortion - mean) < 5 * sum(half.standard_error for half in halves)
    assert capacity.entropy_bits == pytest.approx(sum(half.entropy_bits for half in halves) / 2, abs=0.01)


def test_indices_of_maps_are_counted_by_the_levels_of_a_sample() -> None:
    stage = partial(Quantizer, "ema", dim=4, codebook_size=16)
    quantizer = MultiScaleQuantizer(stage, scales=[1, 2], channel_dim=1)
    fit_gaussian(quantizer, positions=(2, 2), rounds=1, samples=2**10)
    capacity = gaussian_capacity(quantizer, positions=(2, 2), samples=2**10)
    assert capacity.bits == (1 + 4) * 4 / (4 * 4)
    assert 4**-capacity.bits < capacity.distortion < 0.5


@pytest.mark.parametrize("kept", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_bits_of_a_mixture_are_those_of_its_file(kept: int) -> None:
    quantizer = MixtureQuantizer(partial(Quantizer, "ema", dim=4, codebook_size=8), 2, dim=4, kept=kept)
    fit_gaussian(quantizer, rounds=0, samples=2**10)
    capacity = gaussian_capacity(quantizer, samples=2**11)
    assert capacity.bits == quantizer.bits_per_token / 4  # subsets, codes, and the weights that are sent
    assert 4**-capacity.bits < capacity.distortion < 1
    x = torch.randn(2**12, 4)
    grids = quantizer.to_grids(quantizer.encode(capacity.scale * x))
    # Two entropies of 2,048 and 4,096 cells, each of three grids whose log2 p varies by less than 1.
    shares = [grid.unique(return_counts=True)[1] / len(x) for grid in grids if grid.numel()]
    entropy = -sum(float((share * share.log2()).sum()) for share in shares)
    assert capacity.entropy_bits == pytest.approx(entropy / 4, abs=4 * (3 / 2048 + 3 / 4096) ** 0.5 / 4)


def test_autocast_rounds_nothing() -> None:
    def fitted() -> Quantizer:
        torch.manual_seed(0)
        quantizer = Quantizer("ema", dim=4, codebook_size=8, codebook_dim=2)
        fit_gaussian(quantizer, rounds=1, samples=2**9)
        return quantizer

    plain = fitted()
    with torch.autocast("cpu", torch.bfloat16):
        other = fitted()
    assert torch.equal(other.codebook.vectors, plain.codebook.vectors)
    with torch.autocast("cpu", torch.bfloat16):
        assert gaussian_capacity(other, samples=2**10) == gaussian_capacity(plain, samples=2**10)


def test_fitting_moves_what_training_moves_and_each_stage_by_what_it_was_given() -> None:
    quantizer = ResidualQuantizer(partial(Quantizer, "ema", dim=2, codebook_size=8), 2)
    fit_gaussian(quantizer, rounds=12, samples=2**12)
    x = torch.randn(2**14, 2, generator=torch.Generator().manual_seed(0))
    for stage in quantizer.stages:
        indices = stage.encode(x)
        centroids = torch.stack([x[indices == code].mean(0) for code in range(8)])
        # Of about 2,048 and 2,560 vectors each, whose deviation in a cell is below 1.
        torch.testing.assert_close(stage.codebook.vectors, centroids, rtol=0, atol=6 * (2 / 2048) ** 0.5)
        x = x - stage.decode(indices)
    frozen = Quantizer("seeded", dim=2, codebook_size=8)
    fit_gaussian(frozen, rounds=0, samples=2**10)
    initialized = frozen.codebook.vectors.clone()
    fit_gaussian(frozen, rounds=3, samples=2**10)
    assert frozen.codebook.vectors.std() == pytest.approx(float(initialized.std()), rel=0.1)


def test_a_quantizer_that_counts_too_few_bits_is_refused() -> None:
    class Understated(FSQ):
        @property
        def level_sizes(self) -> tuple[int, ...]:
            return (2,)

    quantizer = Understated([8, 8])
    quantizer.to_grids = lambda indices: [indices % 2]
    with pytest.raises(ValueError, match=r"Understated has a distortion of .* at 0\.5 bits a dimension: expected at"):
        gaussian_capacity(quantizer, samples=2**10)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ValueError, match="gaussian_capacity"):
        gaussian_capacity(GaussianBottleneck(4))
    with pytest.raises(ValueError, match="samples=10: expected at least 1024 vectors"):
        gaussian_capacity(LFQ(4), samples=10)
    with pytest.raises(ValueError, match="rounds=-1: expected at least 1 sample and 0 rounds"):
        fit_gaussian(LFQ(4), rounds=-1)


def test_a_collapsed_codebook_says_nothing() -> None:
    capacity = gaussian_capacity(table(torch.ones(2, 2)), samples=2**10)
    assert capacity.distortion == 1 and capacity.efficiency == 0 and capacity.entropy_bits == pytest.approx(0, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dim", "size", "expected", "seeds"), [(1, 4, 0.1175, 1), (2, 16, 0.1074, 5), (4, 256, 0.0973, 1)]
)
def test_fitted_codebooks_reach_known_distortions(dim: int, size: int, expected: float, seeds: int) -> None:
    """The best of some seeds, within a percent: Lloyd's rounds end in local optima."""
    found = []
    for seed in range(1, 1 + seeds):
        quantizer = Quantizer("ema", dim=dim, codebook_size=size)
        fit_gaussian(quantizer, seed=seed, samples=2**15 if size < 256 else 2**16, rounds=150)
        found.append(gaussian_capacity(quantizer, samples=2**20 // dim).distortion)
    assert min(found) < 1.01 * expected


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_no_quantizer_goes_below_the_bound(case: Case) -> None:
    quantizer = case.build()
    positions = case.grid if case.spatial else (16,)
    fit_gaussian(quantizer, positions=positions, rounds=1, samples=2**10)
    capacity = gaussian_capacity(quantizer, positions=positions, samples=2**10)
    assert 4**-capacity.bits <= capacity.distortion <= 1
