"""Binary spherical quantization against its equations (Zhao et al. 2024), by enumeration of all codes in float64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.papers.equations import assert_computes
from tests.papers.test_lfq import probabilities, shannon
from vqkit import BSQ, Commitment, TextbookBSQ


def oracle(z: Tensor, build: type[BSQ]) -> tuple[Tensor, Tensor, Tensor]:
    """Quantized, indices (first dimension highest), and loss."""
    bits = z.shape[1]
    u = z / z.norm(dim=1, keepdim=True)
    sign = torch.where(z > 0, 1.0, -1.0).to(z.dtype)
    if build is BSQ:
        quantized = (u + (sign - u).detach()) / math.sqrt(bits)
    else:
        quantized = u + (sign / math.sqrt(bits) - u).detach()
    p = probabilities(u, size=1 / math.sqrt(bits), temperature=1.0)
    places = torch.tensor([2 ** (bits - 1 - number) for number in range(bits)])
    return quantized, ((z > 0) * places).sum(1), 0.1 * (shannon(p).mean() - shannon(p.mean(0)))


@pytest.mark.parametrize("build", [BSQ, TextbookBSQ])
def test_values_losses_and_gradients(build: type[BSQ]) -> None:
    z = 3 * torch.randn(50, 7, dtype=torch.float64)
    assert_computes(lambda z, _: oracle(z, build), build(7).double(), z, atol=1e-13)


@pytest.mark.parametrize(("build", "factor"), [(BSQ, 1 / math.sqrt(7)), (TextbookBSQ, 1.0)])
def test_gradient_to_the_unit_vector_and_through_the_sphere(build: type[BSQ], factor: float) -> None:
    z, upstream = torch.randn(20, 7, dtype=torch.float64), torch.randn(20, 7, dtype=torch.float64)
    z.requires_grad_()
    build(7, losses=[]).double()(z).quantized.backward(upstream)
    length = z.detach().norm(dim=1, keepdim=True)
    u = z.detach() / length
    expected = factor * (upstream - u * (u * upstream).sum(1, keepdim=True)) / length
    torch.testing.assert_close(z.grad, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close((z.grad * z.detach()).sum(1), torch.zeros(20).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("bits", [1, 9, 18, 62, 130])
def test_codes_have_unit_length_and_the_error_its_bound(bits: int) -> None:
    z = torch.cat([torch.randn(200, bits), torch.eye(bits)[:3], -torch.eye(bits)[:3], torch.ones(1, bits)])
    y = BSQ(bits)(z).quantized
    torch.testing.assert_close(y.norm(dim=1), torch.ones(len(z)))
    error = (z / z.norm(dim=1, keepdim=True) - y).norm(dim=1)
    bound = math.sqrt(2 - 2 / math.sqrt(bits))
    assert (error <= bound + 1e-3).all()
    assert error[200] == pytest.approx(bound, abs=1e-3)  # the bound is reached along an axis
    assert error[-1] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("bits", [18, 70])
def test_entropy_keeps_its_digits_in_float32_where_both_terms_are_near_their_largest(bits: int) -> None:
    """At temperature 1 two entropies of D log 2, 48.5 for 70 bits, differ by a few hundredths or tenths."""
    z = torch.randn(40, bits)
    exact = BSQ(bits).double()(z.double()).losses["entropy"]
    assert -0.2 < float(exact) < -0.005
    assert float(BSQ(bits)(z).losses["entropy"]) == pytest.approx(float(exact), rel=1e-5)


def test_published_commitment_is_a_sum_over_dimensions() -> None:
    z, beta = torch.randn(40, 6, dtype=torch.float64), 0.3
    output = BSQ(6, losses=[Commitment(beta * 6)]).double()(z)
    u = z / z.norm(dim=1, keepdim=True)
    expected = beta * (u - torch.where(z > 0, 1.0, -1.0).double() / math.sqrt(6)).square().sum(1).mean()
    torch.testing.assert_close(output.loss, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bits", [1, 24, 25, 36, 62])
def test_one_index_of_up_to_62_bits_is_exact(bits: int) -> None:
    z = torch.randn(500, bits)
    quantizer = BSQ(bits)
    expected = [int("".join("1" if value > 0 else "0" for value in row), 2) for row in z.tolist()]
    assert quantizer.encode(z).tolist() == expected and quantizer.codebook_size == 2**bits
    assert torch.equal(quantizer.decode(torch.tensor(expected)), quantizer(z).quantized)


@pytest.mark.parametrize(
    ("bits", "widths"), [(63, [32, 31]), (124, [62, 62]), (125, [42, 42, 41]), (256, [52, 51, 51, 51, 51])]
)
def test_more_bits_make_several_indices(bits: int, widths: list[int]) -> None:
    quantizer, z = BSQ(bits), torch.randn(30, bits)
    indices = quantizer(z).indices
    expected = []
    for row in z.tolist():
        word = "".join("1" if value > 0 else "0" for value in row)
        places = [sum(widths[:level]) for level in range(len(widths) + 1)]
        expected.append([int(word[a:b], 2) for a, b in itertools.pairwise(places)])
    assert indices.tolist() == expected == quantizer.encode(z).tolist()
    assert quantizer.codebook_sizes == tuple(2**width for width in widths)
    assert quantizer.codebook_size == max(quantizer.codebook_sizes) and quantizer.num_codebooks == len(widths)
    assert torch.equal(quantizer.decode(indices), quantizer(z).quantized)
    with pytest.raises(ValueError, match=f"{2 ** widths[-1]}.*: expected -1 .* or 0 ... {2 ** widths[-1] - 1}"):
        quantizer.decode(torch.tensor([0] * (len(widths) - 1) + [2 ** widths[-1]]))


def test_a_level_that_is_not_there_decodes_to_zeros() -> None:
    quantizer = BSQ(70)
    z = torch.randn(5, 70)
    indices, whole = quantizer.encode(z), quantizer(z).quantized
    assert torch.equal(quantizer.decode(indices[:, :1]), whole * (torch.arange(70) < 35))
    indices[:, 0] = -1
    assert torch.equal(quantizer.decode(indices), whole * (torch.arange(70) >= 35))
    projected = BSQ(70, dim=4)
    assert not projected.decode(torch.full((3, 2), -1)).any()


def test_a_zero_vector_has_a_code_and_a_finite_gradient() -> None:
    z = torch.zeros(3, 8)
    z[1] = 1e-30
    z.requires_grad_()
    output = BSQ(8)(z)
    assert torch.equal(BSQ(8).encode(z), output.indices)
    assert output.indices.tolist() == [0, 255, 0]
    torch.testing.assert_close(output.quantized.norm(dim=1), torch.ones(3))
    (output.loss + output.quantized.sum()).backward()
    torch.testing.assert_close(z.grad, torch.full((3, 8), 1 / math.sqrt(8)), rtol=0.1, atol=0)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="bits=0: expected a whole number"):
        BSQ(0)
