"""Lookup-free quantization against its equations (Yu et al. 2023), by enumeration of all codes in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.conftest import RankPair
from tests.papers.equations import assert_computes
from tests.refusals import refused
from vqkit import LFQ, BitEntropy, CodebookUsage, MSBFirstLFQ, Selection
from vqkit.kernels import bit_patterns, pattern_sums
from vqkit.quantizers.bit_entropy import bit_entropy, near_equal

NEAR_ZERO = 0.01
"""A scale at which the probabilities of the bits are neither 0 nor 1 at temperature 0.01."""


def all_codes(bits: int) -> Tensor:
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)), dtype=torch.float64)


def probabilities(z: Tensor, size: float = 1.0, temperature: float = 0.01) -> Tensor:
    """(N, 2^D): softmax over every code of 2 z . c / T."""
    return (2 * z @ (size * all_codes(z.shape[1])).T / temperature).softmax(1)


def shannon(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def oracle(z: Tensor, _: object = None) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized (straight-through), indices (first dimension lowest), and loss."""
    sign = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
    p = probabilities(z)
    loss = 0.25 * (z - sign).square().mean() + 0.1 * (shannon(p).mean() - shannon(p.mean(0)))
    places = torch.tensor([2**number for number in range(z.shape[1])])
    return z + (sign - z).detach(), ((z > 0) * places).sum(1), loss


def problem(rows: int = 50, bits: int = 6) -> Tensor:
    return (NEAR_ZERO * torch.randn(rows, bits, dtype=torch.float64) + 0.004).requires_grad_()


def test_values_losses_and_gradients() -> None:
    z = problem()
    output = assert_computes(oracle, LFQ(6).double(), z)
    assert torch.equal(output.quantized, torch.where(z > 0, 1.0, -1.0).double())


def test_gradient_passes_as_it_is() -> None:
    z, upstream = torch.randn(50, 6, requires_grad=True), torch.randn(50, 6)
    LFQ(6, losses=[])(z).quantized.backward(upstream)
    assert torch.equal(z.grad, upstream)


@pytest.mark.parametrize("bits", [1, 2, 5, 10])
def test_entropy_of_a_vector_is_a_sum_over_its_bits(bits: int) -> None:
    z = problem(20, bits).detach()
    torch.testing.assert_close(bit_entropy(4 * z / 0.01).sum(1), shannon(probabilities(z)), rtol=0, atol=1e-12)


def selection(z: Tensor, valid: Tensor | None = None) -> Selection:
    valid = torch.ones(len(z), dtype=torch.bool) if valid is None else valid
    codes = torch.where(z.detach() > 0, 1.0, -1.0).to(z.dtype)
    return Selection(latents=z, z=z, codes=None, indices=valid.long() - 1, selected=codes, valid=valid)


@pytest.mark.parametrize("diversity", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("group_bits", [1, 2, 4, 5, 9])
def test_entropy_of_the_batch_is_that_of_each_group_of_bits(group_bits: int, diversity: float) -> None:
    bits = 7
    z = problem(40, bits)
    y = z.detach().clone().requires_grad_()
    loss = BitEntropy(1.0, group_bits=group_bits, diversity=diversity)(selection(z), z)
    p = probabilities(y)
    joint, sizes, places = p.mean(0), near_equal(bits, group_bits), [0]
    for size in sizes:
        places.append(places[-1] + size)
    marginals = [joint.view(2**place, 2**size, -1).sum((0, 2)) for place, size in zip(places, sizes, strict=False)]
    of_groups = sum(shannon(marginal) for marginal in marginals)
    expected = shannon(p).mean() - diversity * of_groups
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-11)
    assert of_groups >= shannon(joint) - 1e-12
    if group_bits == 1:  # the entropy of the batch does not factorise
        assert of_groups > shannon(joint) + 1e-3


def test_temperature_is_that_of_the_logits() -> None:
    z = torch.randn(30, 4, dtype=torch.float64)
    p = probabilities(z, temperature=1.5)
    loss = BitEntropy(1.0, temperature=1.5)(selection(z), z)
    torch.testing.assert_close(loss, shannon(p).mean() - shannon(p.mean(0)), rtol=0, atol=1e-12)


def test_blocks_of_rows_change_nothing(monkeypatch) -> None:
    logits = torch.randn(23, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(23, dtype=torch.float64)
    whole = pattern_sums(logits, weights, [4, 3])
    monkeypatch.setattr(bit_patterns, "BLOCK", 20)
    assert torch.allclose(pattern_sums(logits, weights, [4, 3]), whole, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x: pattern_sums(x, weights, [4, 3]), (logits,))
    assert pattern_sums(logits[:0], weights[:0], [4, 3]).tolist() == [0.0] * 24


def test_near_certain_bits_keep_their_digits_in_float32() -> None:
    """H = (1 + a) exp(-a) + O(exp(-2 a)); the usual log(p + eps) would give 0 or eps."""
    for size in (20.0, 50.0, 80.0):
        logits = torch.tensor([-size, size], requires_grad=True)
        values = bit_entropy(logits)
        values.sum().backward()
        assert values.tolist() == pytest.approx([(1 + size) * math.exp(-size)] * 2, rel=1e-5)
        slope = size * math.exp(-size)
        assert logits.grad.tolist() == pytest.approx([slope, -slope], rel=1e-5)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 1e18])
def test_values_and_gradients_are_finite_at_any_scale(scale: float) -> None:
    z = (scale * torch.randn(30, 12)).requires_grad_()
    output = LFQ(12, losses=[BitEntropy()])(z)
    output.loss.backward()
    assert output.loss.isfinite() and z.grad.isfinite().all()


def entropy_on_rank(rank: int, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = (z[:30] if rank == 0 else z[30:]).clone().requires_grad_()
    loss = BitEntropy(1.0, group_bits=3)
    per_sample = bit_entropy(4 * rows / 0.01).sum(1).mean()
    diversity_only = loss(selection(rows), rows) - per_sample
    diversity_only.backward()
    in_eval = loss.eval()(selection(rows), rows)
    return diversity_only.detach(), rows.grad, in_eval.detach()


def test_entropy_of_the_mean_is_over_all_ranks(rank_pair: RankPair) -> None:
    """Uneven batches: a mean of the ranks' means, or of their entropies, would be another number."""
    z = problem()
    results = rank_pair(entropy_on_rank, z.detach())
    joint = probabilities(z).mean(0).view(8, 8)
    expected = -(shannon(joint.sum(1)) + shannon(joint.sum(0)))
    expected.backward()
    for value, _, _ in results:
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-12)
    # DistributedDataParallel averages over ranks.
    torch.testing.assert_close(torch.cat([result[1] for result in results]) / 2, z.grad, rtol=0, atol=1e-12)
    for (_, _, in_eval), rows in zip(results, (z[:30], z[30:]), strict=True):  # each rank looks at its own
        torch.testing.assert_close(in_eval, BitEntropy(1.0, group_bits=3)(selection(rows), rows).detach())


def test_bit_orders() -> None:
    z = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [1.0, 1.0, -1.0]])
    assert LFQ(3).encode(z).tolist() == [1, 4, 3]
    assert MSBFirstLFQ(3).encode(z).tolist() == [4, 1, 6]


def test_zero_has_the_sign_minus_one() -> None:
    quantizer, z = LFQ(3), torch.tensor([[0.0, -0.0, 1e-30]])
    output = quantizer(z)
    assert torch.equal(quantizer.encode(z), output.indices)
    assert output.quantized.tolist() == [[-1.0, -1.0, 1.0]] and output.indices.tolist() == [4]


def test_every_index_round_trips() -> None:
    quantizer, indices = LFQ(9), torch.arange(512)
    codes = quantizer.decode(indices)
    assert torch.equal(codes.unique(dim=0), all_codes(9).float())
    assert torch.equal(quantizer.encode(codes), indices)


def test_initialize_splits_the_data_at_each_bit() -> None:
    data = 50 * torch.randn(2000, 16) + 300
    quantizer = LFQ(6, dim=16)
    quantizer(data)
    with pytest.warns(UserWarning, match=r"of the bits are the same|lie beyond 3"):
        report = quantizer.health()
    assert report["stuck_bits"] > 0.5 and report["saturated"] > 0.5
    quantizer.initialize([data])
    z = quantizer.project_in(data)
    torch.testing.assert_close(z.std(0), torch.ones(6), rtol=1e-2, atol=0)
    assert (((z > 0).float().mean(0) - 0.5).abs() < 0.05).all()
    quantizer(data)
    report = quantizer.health()
    assert report["stuck_bits"] == 0 and report["saturated"] < 0.02


def test_a_small_batch_says_nothing_about_stuck_bits() -> None:
    quantizer = LFQ(6)
    quantizer(torch.randn(1, 6))
    assert quantizer.health()["stuck_bits"] == 0


test_bad_arguments_are_refused = refused(
    (lambda: BitEntropy(temperature=0), "temperature=0: expected a positive number"),
    (lambda: BitEntropy(diversity=-1), "diversity=-1: expected a number of at least 0"),
    (lambda: BitEntropy(group_bits=21), "group_bits=21: expected 1 to 20"),
    (lambda: CodebookUsage(LFQ(40).codebook_size), "does not fit the memory; count the levels"),
)


def test_a_state_of_another_bit_order_is_refused() -> None:
    state = MSBFirstLFQ(8).state_dict()
    with pytest.raises(RuntimeError, match="packs its bits in another order"):
        LFQ(8).load_state_dict(state)
    MSBFirstLFQ(8).load_state_dict(state)
