"""Finite scalar quantization against its equations (Mentzer et al. 2023)."""

import math

import pytest
import torch

from tests.largest_tensor import LargestTensor
from vqkit import FSQ, LFQ, CenteredFSQ

PUBLISHED = [[8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5]]


def bound(quantizer: FSQ, z: torch.Tensor) -> torch.Tensor:
    half, lift, shift, *_ = quantizer.to(z.dtype).bound[:, : z.shape[-1]]
    return (z + shift).tanh() * half + lift


def oracle(z: float, levels: int, kind: type[FSQ]) -> tuple[float, float]:
    """Value and derivative of one dimension, in scalar arithmetic."""
    half = (levels - 1) * (1 + (1e-3 if kind is CenteredFSQ else -1e-3)) / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    shift = math.atanh(offset / half) if kind is CenteredFSQ else math.tan(offset / half)
    slope = half / math.cosh(z + shift) ** 2 / (levels // 2)
    return round(math.tanh(z + shift) * half - offset) / (levels // 2), slope


@pytest.mark.parametrize("kind", [FSQ, CenteredFSQ])
@pytest.mark.parametrize("levels", [2, 3, 4, 5, 7, 8, 1000])
def test_value_and_gradient_of_one_dimension(kind: type[FSQ], levels: int) -> None:
    quantizer = kind([levels]).double()
    z = torch.linspace(-9, 9, 201, dtype=torch.float64).unsqueeze(1).requires_grad_()
    output = quantizer(z)
    output.quantized.sum().backward()
    expected = [oracle(float(value), levels, kind) for value in z.detach()]
    assert [float(value) for value in output.quantized.detach()] == [value for value, _ in expected]
    torch.testing.assert_close(z.grad.squeeze(1), torch.tensor([slope for _, slope in expected], dtype=torch.float64))
    assert levels > 9 or len(output.quantized.unique()) == levels
    assert (output.indices.min(), output.indices.max()) == (0, levels - 1)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 7, 8])
def test_zero_is_a_level_by_the_centered_rule_and_none_by_the_paper(levels: int) -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert abs(float(bound(CenteredFSQ([levels]), zero))) < 1e-12
    distance = abs(float(bound(FSQ([levels]), zero)))
    assert distance == 0 if levels % 2 else distance > 1e-5


def test_share_of_values_and_tokens_in_which_the_two_rules_differ() -> None:
    z = torch.randn(200_000, 4, generator=torch.Generator().manual_seed(0))
    levels = [8, 5, 5, 5]
    paper, other = FSQ(levels).decode(FSQ(levels).encode(z)), CenteredFSQ(levels).decode(CenteredFSQ(levels).encode(z))
    values = (paper != other).float().mean(0)
    assert ((values > 0.002) & (values < 0.004)).all()
    assert 0.0095 < (paper != other).any(1).float().mean() < 0.0115


@pytest.mark.parametrize("levels", PUBLISHED)
def test_every_index_round_trips(levels: list[int]) -> None:
    quantizer = FSQ(levels)
    indices = torch.arange(quantizer.codebook_size)
    codes = quantizer.decode(indices)
    assert len(codes.unique(dim=0)) == quantizer.codebook_size == math.prod(levels)
    assert codes.abs().max() <= 1
    # A latent whose bounded value is the code: the inverse of the bound, in float64.
    counts = torch.tensor(levels)
    half = (counts.double() - 1) * (1 - 1e-3) / 2
    offset = torch.where(counts % 2 == 0, 0.5, 0.0).double()
    z = ((codes.double() * (counts // 2) + offset) / half).clamp(-1 + 1e-9, 1 - 1e-9).atanh() - (offset / half).tan()
    assert torch.equal(quantizer.double().encode(z), indices)


@pytest.mark.parametrize("levels", [[2**20], [1024, 1024], [2] * 20, [101, 103, 97], [1024, 1025], [2**12] * 2])
def test_quotients_in_floating_point_are_those_of_integers(levels: list[int]) -> None:
    quantizer, widths = FSQ(levels), torch.tensor(levels) // 2
    indices = torch.arange(max(0, quantizer.codebook_size - 2**17), quantizer.codebook_size)
    digits = indices.unsqueeze(-1) // quantizer.place_values % torch.tensor(levels)
    assert torch.equal(quantizer.decode(indices), (digits - widths) / widths)


def test_indices_that_float32_does_not_hold_round_trip() -> None:
    quantizer, x = FSQ([32] * 5).eval(), torch.randn(500, 5)
    assert torch.equal(quantizer.decode(quantizer.encode(x)), quantizer(x).quantized)


@pytest.mark.parametrize("quantizer", [FSQ([8, 5, 5, 5]), LFQ(12, losses=[])])
def test_a_step_holds_no_integer_for_each_digit(quantizer: FSQ | LFQ) -> None:
    x = torch.randn(8, 512, quantizer.dim, requires_grad=True)
    with LargestTensor() as record:
        quantizer(x).quantized.sum().backward()
    assert record.largest == 4 * x.numel()


def test_the_first_dimension_is_the_fastest_digit() -> None:
    codes = FSQ([3, 5]).decode(torch.arange(15))
    assert codes[:3, 0].tolist() == [-1, 0, 1] and len(codes[:3, 1].unique()) == 1


def test_initialize_scales_the_projection_and_nothing_else() -> None:
    data = 50 * torch.randn(2000, 16) + 30
    quantizer = FSQ([8, 5, 5, 5], dim=16)
    quantizer(data)
    with pytest.warns(UserWarning, match="beyond 3"):
        quantizer.health()
    quantizer.initialize([data])
    z = quantizer.project_in(data)
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(z.std(0), torch.ones(4), rtol=1e-2, atol=0)
    quantizer(data)
    assert quantizer.health()["saturated"] < 0.02


def test_initialize_from_vectors_without_spread_leaves_the_scale_alone() -> None:
    quantizer = FSQ([8, 5, 5, 5], dim=16)
    before = quantizer.project_in.weight.clone()
    quantizer.initialize([torch.randn(1, 16)])
    assert torch.equal(quantizer.project_in.weight, before)


def test_saturation_is_a_share_of_the_unmasked_vectors() -> None:
    quantizer = FSQ([5, 5])
    mask = torch.zeros(100, dtype=torch.bool)
    mask[:10] = True
    quantizer(torch.full((100, 2), 9.0), mask)
    with pytest.warns(UserWarning, match="beyond 3"):
        assert quantizer.health()["saturated"] == 1


def test_saturation_is_that_of_the_last_training_forward_compiled_or_not() -> None:
    quantizer, others = FSQ([5, 5]), torch.full((5000, 2), 9.0)
    compiled = torch.compile(quantizer, backend="eager", fullgraph=True)
    assert quantizer.health()["saturated"] == 0
    for forward, value, beyond in ((quantizer, 9.0, 0.5), (compiled, 0.0, 0.0), (compiled, 9.0, 0.5)):
        x, mask = torch.tensor([[0.0, value], [9.0, 9.0]]).repeat(2500, 1), torch.tensor([True, False]).repeat(2500)
        forward(x, mask)
        x.fill_(9.0), mask.fill_(True)  # what the user has is not kept
        with torch.no_grad():
            quantizer(others)
        quantizer.eval()(others), quantizer.train()
        assert quantizer.health()["saturated"] == beyond
    quantizer(torch.zeros(3, 2))  # fewer than before
    assert quantizer.health()["saturated"] == 0


def test_a_state_of_other_levels_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"levels are \[8, 5, 5\], and the state has \[5, 8, 5\]"):
        FSQ([8, 5, 5]).load_state_dict(FSQ([5, 8, 5]).state_dict())


@pytest.mark.parametrize("kind", [FSQ, CenteredFSQ])
def test_the_bound_is_as_exact_as_the_module(kind: type[FSQ]) -> None:
    """Half of [8, 5] by hand, in scalar arithmetic; and back in float32, the bits of before."""
    quantizer = kind([8, 5])
    single = quantizer.bound.clone()
    half = 7 * (1 + (1e-3 if kind is CenteredFSQ else -1e-3)) / 2
    shift = math.atanh(0.5 / half) if kind is CenteredFSQ else math.tan(0.5 / half)
    found = quantizer.double().bound[:3, 0].tolist()
    assert found == pytest.approx([half, -0.5, shift], rel=4 * torch.finfo(torch.float64).eps)
    assert torch.equal(quantizer.float().bound, single)
    with torch.device("meta"):
        empty = kind([8, 5]).double()
    assert torch.equal(empty.to_empty(device="cpu").bound, kind([8, 5]).double().bound)


def test_one_picture_has_the_codes_of_its_rows() -> None:
    """Of a batch of one, rows lie apart in memory: they cannot be taken side by side."""
    quantizer, picture = FSQ([8, 5, 5, 5], channel_dim=1), torch.randn(1, 4, 4, 8)
    output, rows = quantizer(picture), FSQ([8, 5, 5, 5])(picture.movedim(1, -1).reshape(-1, 4))
    assert torch.equal(output.indices.flatten(), rows.indices)
    assert torch.equal(output.quantized.movedim(1, -1).reshape(-1, 4), rows.quantized)
