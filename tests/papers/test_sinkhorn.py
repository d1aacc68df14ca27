"""Balanced assignment: a dense Sinkhorn in float64, evenness, and nearest codes outside of training."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.largest_tensor import LargestTensor
from tests.refusals import refused
from vqkit import Quantizer, ResidualQuantizer
from vqkit.kernels import balancing_prices
from vqkit.methods.sinkhorn import SinkhornSearch


def skewed(count: int, dim: int, seed: int = 0) -> Tensor:
    """Vectors most of which lie in one place."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.where(torch.arange(count) % 10 == 0, 3.0, 0.3)
    return 1 + spread[:, None] * torch.randn(count, dim, generator=generator)


def dense_plan(x: Tensor, codes: Tensor, temperature: float, iterations: int) -> Tensor:
    """The plan (N, K) by scaling rows and columns, as it is written down: rows add up to 1/N, then columns to 1/K."""
    cost = torch.cdist(x.double(), codes.double()).square()
    plan = torch.exp(-(cost - cost.min()) / (temperature * cost.std(correction=0)))
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True) / len(x)
        plan = plan / plan.sum(0) / len(codes)
    return plan


@pytest.mark.parametrize(("count", "size", "iterations"), [(400, 16, 5), (300, 7, 1), (50, 64, 20), (3000, 500, 2)])
def test_prices_are_those_of_a_dense_plan(count: int, size: int, iterations: int) -> None:
    x, codes = skewed(count, 5).double(), skewed(size, 5, seed=1).double()
    prices = balancing_prices(x, codes, temperature=0.3, iterations=iterations)
    cost = torch.cdist(x, codes).square()
    logits = -(cost + prices) / (0.3 * cost.std(correction=0))
    plan = dense_plan(x, codes, 0.3, iterations)
    torch.testing.assert_close(logits.softmax(1), plan / plan.sum(1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_many_iterations_give_every_code_the_same_mass() -> None:
    x, codes = skewed(500, 4).double(), skewed(20, 4, seed=1).double()
    prices = balancing_prices(x, codes, temperature=0.5, iterations=300)
    cost = torch.cdist(x, codes).square()
    mass = (-(cost + prices) / (0.5 * cost.std(correction=0))).softmax(1).mean(0)
    torch.testing.assert_close(mass, torch.full_like(mass, 1 / 20), rtol=1e-6, atol=0)


def test_rows_that_do_not_count_have_no_mass() -> None:
    x, codes = skewed(200, 4), skewed(8, 4, seed=1)
    valid = torch.arange(200) % 3 > 0
    broken = torch.where(valid[:, None], x, torch.nan)
    assert balancing_prices(broken, codes, valid=valid).equal(balancing_prices(broken, codes, valid=valid))
    torch.testing.assert_close(balancing_prices(broken, codes, valid=valid), balancing_prices(x[valid], codes))
    assert balancing_prices(x, codes, valid=torch.zeros(200, dtype=torch.bool)).equal(torch.zeros(8))
    assert balancing_prices(x[:0], codes).equal(torch.zeros(8))


def test_a_far_code_does_not_underflow() -> None:
    """In float32, exp(-cost / temperature) of the far code is 0 for every vector; its price is finite all the same."""
    x = skewed(200, 4)
    codes = torch.cat([x[:7], x[:1] + 1000])
    prices = balancing_prices(x, codes, temperature=0.001, iterations=5)
    assert prices.isfinite().all() and prices[-1] == prices.min()


def prices_of_rank(rank: int) -> Tensor:
    return balancing_prices(skewed(300, 4).double().split([120, 180])[rank], skewed(10, 4, seed=1).double())


def test_ranks_share_the_mass(rank_pair: Callable) -> None:
    whole = balancing_prices(skewed(300, 4).double(), skewed(10, 4, seed=1).double())
    ranks = rank_pair(prices_of_rank)
    assert ranks[0].equal(ranks[1])
    torch.testing.assert_close(ranks[0], whole, rtol=1e-9, atol=1e-12)


test_wrong_arguments = refused(
    (lambda: balancing_prices(skewed(10, 4), skewed(10, 4), temperature=0), "temperature is 0"),
    (lambda: SinkhornSearch(iterations=0), "expected at least 1"),
    (lambda: SinkhornSearch(temperature=-1.0), "positive number"),
)


# ---------------------------------------------------------------------- the search


def quantizer(**parts: object) -> Quantizer:
    made = Quantizer("vq", dim=4, codebook_size=16, **parts)
    made.codebook.vectors.detach().copy_(skewed(16, 4, seed=1))
    return made


def test_training_chooses_the_largest_entry_of_the_plan() -> None:
    x, made = skewed(300, 4), quantizer(search=SinkhornSearch(temperature=0.3))
    assert made(x).indices.equal(dense_plan(x, made.codebook.vectors.detach(), 0.3, 5).argmax(1))


def test_training_spreads_and_evaluation_does_not_ask_the_batch() -> None:
    x = 0.5 + 0.3 * torch.randn(640, 4)  # most of it nearest to one of the codes
    plain, made = quantizer(), quantizer(search=SinkhornSearch())
    with torch.no_grad():
        plain.codebook.vectors.normal_()
    made.load_state_dict(plain.state_dict())
    trained, nearest = (torch.bincount(each(x).indices, minlength=16) for each in (made, plain))
    assert nearest.max() > 640 / 2 and nearest.min() == 0
    assert trained.max() < 2 * 640 / 16 and trained.min() > 0
    assert made.encode(x).equal(plain.encode(x))
    made.eval()
    assert made(x).indices.equal(plain.eval()(x).indices)
    assert torch.cat([made(row[None]).indices for row in x[:20]]).equal(made(x).indices[:20])


def test_residual_stages_and_masks() -> None:
    made = ResidualQuantizer(lambda: Quantizer("ema", dim=4, codebook_size=8, search=SinkhornSearch()), 3)
    made.initialize([skewed(200, 4)])
    mask = torch.arange(200) % 4 > 0
    output = made(skewed(200, 4), mask)
    assert (output.indices[~mask] == -1).all() and (output.indices[mask] >= 0).all()
    assert "all stages in one call" in repr(made)


def test_it_is_saved_with_its_constants(tmp_path) -> None:
    made = quantizer(search=SinkhornSearch(temperature=0.2, iterations=7))
    made.save_pretrained(tmp_path)
    search = Quantizer.from_pretrained(tmp_path).search
    assert isinstance(search, SinkhornSearch) and (search.temperature, search.iterations) == (0.2, 7)


def test_nothing_of_all_pairs_is_held() -> None:
    x, codes = torch.randn(2**15, 8), torch.randn(2**10, 8)
    with LargestTensor() as mode:
        balancing_prices(x, codes, iterations=1)
    assert mode.largest <= 4 * 2**20 + 4096  # a block of `softmax_rows.BLOCK` numbers, of 2^25 pairs
