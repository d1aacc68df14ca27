"""Nested dropout over tokens (Rippel et al. 2014; One-D-Piece, FlexTok, 2025) against its distributions, in float64."""

import math
from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.refusals import refused
from vqkit import (
    LFQ,
    GeometricLengths,
    NestedLengths,
    PowerOfTwoLengths,
    PrefixLengths,
    PrefixQuantizer,
    Quantizer,
    ResidualQuantizer,
    RoundedUpLengths,
    UniformLengths,
    without_quantization,
)

DIM, TOKENS = 6, 8
ONE = partial(Quantizer, "ema", dim=DIM, codebook_size=16)
TWO = partial(ResidualQuantizer, ONE, 2)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


# ---------------------------------------------------------------------- lengths


def uniform(tokens: int) -> dict[int, float]:
    return dict.fromkeys(range(1, tokens + 1), 1 / tokens)


def power_of_two(tokens: int) -> dict[int, float]:
    lengths = [*(2**k for k in range(20) if 2**k < tokens), tokens]
    return dict.fromkeys(lengths, 1 / len(lengths))


def rounded_up(tokens: int) -> dict[int, float]:
    counts = Counter(min(min(2**k for k in range(20) if 2**k >= n), tokens) for n in range(1, tokens + 1))
    return {length: count / tokens for length, count in counts.items()}


def mgvq(tokens: int) -> dict[int, float]:
    return {1: 0.2, 2: 0.1, 3: 0.1, 4: 0.6}


def from_two(tokens: int) -> dict[int, float]:
    return dict.fromkeys(range(2, max(tokens, 2) + 1), 1 / max(tokens - 1, 1))


def geometric(tokens: int) -> dict[int, float]:
    return {n: 0.7 ** (n - 1) * (1 if n == tokens else 0.3) for n in range(1, tokens + 1)}


PUBLISHED = {
    uniform: UniformLengths(),
    from_two: UniformLengths(2),
    power_of_two: PowerOfTwoLengths(),
    rounded_up: RoundedUpLengths(),
    geometric: GeometricLengths(0.7),
}
LENGTHS = [(lengths, published, tokens) for published, lengths in PUBLISHED.items() for tokens in (1, 8, 10)]


@pytest.mark.parametrize(("lengths", "published", "tokens"), [*LENGTHS, (NestedLengths(), mgvq, 4)])
def test_lengths_are_distributed_as_published(lengths: PrefixLengths, published, tokens: int) -> None:
    """Of evenly spaced numbers in [0, 1), each length takes its probability, up to one number at either end."""
    count, expected = 40_000, published(tokens)
    drawn = Counter(lengths((torch.arange(count, dtype=torch.float64) + 0.5) / count, tokens).tolist())
    assert set(drawn) <= set(expected) and math.isclose(sum(expected.values()), 1)
    for length, probability in expected.items():
        assert abs(drawn[length] / count - probability) <= 2 / count


test_lengths_that_do_not_exist_are_refused = refused(
    (lambda: GeometricLengths(0.0), "keep=0.0: expected the probability"),
    (lambda: GeometricLengths(1.0), "keep=1.0: expected the probability"),
    (lambda: UniformLengths(0), "least=0: expected the shortest length"),
    (lambda: NestedLengths([0.3, 0.2]), r"expected numbers in \[0, 1\], none below the one before"),
    (lambda: NestedLengths([0.3, 1.2]), r"expected numbers in \[0, 1\], none below the one before"),
    (lambda: NestedLengths()(torch.zeros(3), 5), "expected 5, one for each that can be left out"),
)


# ---------------------------------------------------------------------- what a cut leaves


def kept_lengths(indices: Tensor) -> Tensor:
    """(B, *S) -> (B,) tokens of each sample, which are its first ones in row-major order."""
    kept = indices.flatten(1) >= 0
    lengths = kept.sum(1)
    assert torch.equal(kept, torch.arange(kept.shape[1]) < lengths.unsqueeze(1))
    return lengths


@pytest.mark.parametrize(
    ("channel_dim", "shape"), [(-1, (64, TOKENS, DIM)), (1, (64, DIM, 1, TOKENS)), (1, (64, DIM, 2, 4))]
)
@pytest.mark.parametrize("dropout", [1.0, 0.4])
def test_samples_are_cut_with_the_probability_of_dropout(dropout: float, channel_dim: int, shape: tuple) -> None:
    quantizer = PrefixQuantizer(ONE, dropout=dropout, channel_dim=channel_dim)
    drawn = torch.cat([kept_lengths(quantizer(torch.randn(shape)).indices) for _ in range(16)])
    expected = torch.full((TOKENS,), dropout / TOKENS)
    expected[-1] += 1 - dropout
    share = torch.bincount(drawn, minlength=TOKENS + 1)[1:] / len(drawn)
    deviation = (expected * (1 - expected) / len(drawn)).sqrt()
    assert ((share - expected).abs() < 4.5 * deviation).all()


def test_a_seed_draws_lengths_of_its_own() -> None:
    x = torch.randn(64, TOKENS, DIM)
    first, second = (kept_lengths(PrefixQuantizer(ONE, seed=seed)(x).indices) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_a_prefix_and_the_depth_of_its_levels_are_drawn_apart() -> None:
    quantizer = PrefixQuantizer(partial(ResidualQuantizer, ONE, TOKENS, dropout=1.0), dropout=1.0)
    kept = quantizer(torch.randn(512, TOKENS, DIM)).indices >= 0
    drawn = torch.stack([kept[..., 0].sum(1), kept[:, 0].sum(1)]).double()
    assert torch.corrcoef(drawn)[0, 1].abs() < 4.5 / 512**0.5


def test_what_is_cut_has_no_value_no_loss_and_no_statistics() -> None:
    quantizer, x = PrefixQuantizer(ONE).double(), random(15, TOKENS - 1, DIM).requires_grad_()
    upstream = random(15, TOKENS - 1, DIM)
    output = quantizer(x)
    kept = output.indices >= 0
    assert 15 < int(kept.sum()) < kept.numel()
    codes = quantizer.quantizer.codebook.vectors.detach()[output.indices.clamp(min=0)]
    torch.testing.assert_close(output.quantized, codes * kept.unsqueeze(-1), rtol=0, atol=1e-14)
    counts = torch.bincount(output.indices[kept], minlength=16)
    assert torch.equal(quantizer.quantizer.codebook.pending_counts, counts.double())
    commitment = ((x - codes).square().mean(-1) * kept).sum() / kept.numel()
    torch.testing.assert_close(output.losses["commitment"], commitment, rtol=0, atol=1e-14)
    ours = torch.autograd.grad(output.loss + (output.quantized * upstream).sum(), x)[0]
    theirs = torch.autograd.grad(0.25 * commitment, x)[0] + upstream * kept.unsqueeze(-1)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("build", [ONE, TWO, partial(LFQ, DIM), partial(LFQ, 20, dim=DIM)])
@pytest.mark.parametrize("mask_token", [False, True])
def test_training_gives_the_decoder_what_indices_decode_to(build, mask_token: bool) -> None:
    quantizer, x = PrefixQuantizer(build, mask_token=mask_token).double(), random(16, TOKENS, DIM)
    output = quantizer(x)
    torch.testing.assert_close(quantizer.decode(output.indices), output.quantized, rtol=0, atol=1e-14)
    quantizer.eval()
    indices = quantizer.encode(x)
    assert (indices >= 0).all() and torch.equal(quantizer(x).indices, indices)
    lengths = torch.arange(16) % (TOKENS + 1)
    whole, cut = quantizer.decode(indices), quantizer.decode(quantizer.prefix(indices, lengths))
    behind = torch.zeros(DIM, dtype=torch.float64) if quantizer.mask_token is None else quantizer.mask_token
    for sample, length in enumerate(lengths.tolist()):
        assert torch.equal(cut[sample, :length], whole[sample, :length])
        assert (cut[sample, length:] == behind).all()
        assert torch.equal(quantizer.decode(indices[:, :length])[sample], whole[sample, :length])
    assert torch.equal(quantizer.prefix(indices, 3), quantizer.prefix(indices, torch.full((16,), 3)))
    for length in (-1, 1.5, torch.tensor([1, 2])):
        with pytest.raises(
            ValueError, match="expected the number of tokens to keep, at least 0, or one for each of 16"
        ):
            quantizer.prefix(indices, length)


def test_the_mask_token_learns_from_every_place_that_it_takes() -> None:
    quantizer, x = PrefixQuantizer(ONE, mask_token=True).double(), random(16, TOKENS, DIM)
    mask, upstream = torch.rand(16, TOKENS) < 0.8, random(16, TOKENS, DIM)
    output = quantizer(x, mask)
    (output.quantized * upstream).sum().backward()
    expected = upstream[output.indices < 0].sum(0)
    torch.testing.assert_close(quantizer.mask_token.grad, expected, rtol=0, atol=1e-13)
    quantizer.mask_token.grad = None
    with without_quantization(quantizer):
        passed = quantizer(x)
    assert torch.equal(passed.quantized, x) and (passed.indices == -1).all()
    (passed.quantized.sum() + passed.loss).backward()
    assert not quantizer.mask_token.grad.any()


def test_one_quantizer_is_built() -> None:
    with pytest.raises(ValueError, match="quantizer lists 2 factories: expected one"):
        PrefixQuantizer([ONE, ONE])
    assert PrefixQuantizer([TWO]).codebook_sizes == (16, 16)
