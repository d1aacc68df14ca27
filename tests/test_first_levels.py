"""Vectors of the first levels, with gradients."""

from functools import partial

import pytest
import torch

from tests.refusals import refused
from vqkit import (
    FeatureSplitQuantizer,
    GroupedQuantizer,
    Quantizer,
    ResidualQuantizer,
    SplitQuantizer,
    first_levels,
    without_quantization,
)

DIM = 6
code = partial(Quantizer, "ema", dim=DIM, codebook_size=8)
factorized = partial(Quantizer, "factorized", dim=DIM, codebook_dim=3, codebook_size=8)
chain = partial(ResidualQuantizer, code, 3)

CASES = {
    "one": partial(Quantizer, "ema", dim=DIM, codebook_size=8, channel_dim=1),
    "residual": partial(chain, channel_dim=1),
    "residual, all cut short": partial(chain, channel_dim=1, dropout=1.0),
    "residual without an estimator": partial(ResidualQuantizer, factorized, 3, estimator=None, channel_dim=1),
    "split": partial(SplitQuantizer, [code, chain], dim=DIM, channel_dim=1),
    "split, all cut short": partial(SplitQuantizer, [code, chain], dim=DIM, channel_dim=1, dropout=1.0),
    "split, none quantized for the decoder": partial(
        SplitQuantizer, [code, chain], dim=DIM, channel_dim=1, unquantized=1.0
    ),
    "of features": partial(FeatureSplitQuantizer, [code, chain], channel_dim=1),
}


def latents(quantizer, count=5):
    return torch.randn(2, quantizer.dim, count, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("case", CASES)
def test_they_are_what_the_first_indices_decode_to(case) -> None:
    quantizer = CASES[case]().double()
    z = latents(quantizer)
    everything = range(1, quantizer.num_codebooks + 1)
    with first_levels(quantizer, everything) as vectors:
        output = quantizer(z)
    assert list(vectors) == list(everything)
    for count in everything:
        indices = output.indices[..., :count] if quantizer.level_axis else output.indices
        torch.testing.assert_close(vectors[count], quantizer.decode(indices), rtol=0, atol=1e-13)


def test_the_gradient_of_a_chain_is_straight() -> None:
    quantizer = CASES["residual"]().double()
    z, weight = latents(quantizer), torch.randn(2, DIM, 5, dtype=torch.float64)
    with first_levels(quantizer, [1]) as vectors:
        quantizer(z)
    (gradient,) = torch.autograd.grad((vectors[1] * weight).sum(), z)
    assert torch.equal(gradient, weight)


def test_the_gradient_of_a_branch_goes_through_its_maps_alone() -> None:
    quantizer = CASES["split"]().double()
    z, weight = latents(quantizer), torch.randn(2, DIM, 5, dtype=torch.float64)
    with first_levels(quantizer, [1]) as vectors:
        quantizer(z)
    (vectors[1] * weight).sum().backward()
    outer, inner = quantizer.project_out[0].weight, quantizer.project_in[0].weight
    torch.testing.assert_close(z.grad, torch.einsum("bot,oh,hi->bit", weight, outer, inner), rtol=0, atol=1e-13)
    assert outer.grad.any() and inner.grad.any()
    others = [maps[1].weight.grad for maps in (quantizer.project_in, quantizer.project_out)]
    assert not any(gradient is not None and gradient.any() for gradient in others)


def test_features_are_the_first_channels_of_the_first_level() -> None:
    quantizer = CASES["of features"]().double()
    with first_levels(quantizer, [1]) as vectors:
        output = quantizer(latents(quantizer))
    assert torch.equal(vectors[1][:, :DIM], output.quantized[:, :DIM])


def test_without_quantization_they_are_of_unquantized_vectors() -> None:
    quantizer = CASES["split"]().double()
    z = latents(quantizer)
    with without_quantization(quantizer), first_levels(quantizer, [1]) as vectors:
        quantizer(z)
    maps = quantizer.project_out[0].weight @ quantizer.project_in[0].weight
    torch.testing.assert_close(vectors[1], torch.einsum("oi,bit->bot", maps, z), rtol=0, atol=1e-13)


def test_nothing_is_noted_outside_and_the_last_forward_counts() -> None:
    quantizer = CASES["residual"]()
    with first_levels(quantizer, [1]) as vectors:
        quantizer(torch.randn(2, DIM, 5))
        second = quantizer(torch.randn(2, DIM, 5))
    expected = quantizer.decode(second.indices[..., :1])
    quantizer(torch.randn(2, DIM, 5))
    torch.testing.assert_close(vectors[1], expected, rtol=0, atol=8 * 2**-24 * expected.abs().max().item())
    assert quantizer.noted_levels is None


groups = partial(GroupedQuantizer, code, 2)

test_levels_that_do_not_add_up_are_refused = refused(
    (lambda: first_levels(chain(), [4]), "levels=4: expected 1 to 3, the levels of ResidualQuantizer"),
    (lambda: first_levels(chain(), [0]), "levels=0: expected 1 to 3"),
    (lambda: first_levels(code(), [2]), "levels=2 of Quantizer with 1 levels: expected 1"),
    (lambda: first_levels(groups(), [1]), "levels=1 of GroupedQuantizer with 2 levels: expected 2"),
    (lambda: first_levels(ResidualQuantizer([groups] * 2), [3]), "levels=1 of GroupedQuantizer with 2 levels"),
    by=lambda context: context().__enter__(),
)
