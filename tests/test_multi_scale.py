"""Multi-scale quantizers beyond their papers: masks, axes, indices as others read them, and what is refused."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.refusals import refused
from vqkit import (
    BSQ,
    FSQ,
    AudioTokenizer,
    BitFlips,
    CodebookUsage,
    Commitment,
    DoubleQuantization,
    GroupedQuantizer,
    LinearResizing,
    MultiScaleQuantizer,
    PrefixQuantizer,
    Quantizer,
    ResidualQuantizer,
    Tiles,
    Tokenizer,
    TokenShards,
    TokenShardWriter,
)
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d

DIM = 4
stage = partial(Quantizer, "vq", dim=DIM, codebook_size=16)
images = partial(MultiScaleQuantizer, stage, [1, 2, 4], channel_dim=1)


def initialized(**options) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = images(**options)
    quantizer.initialize([torch.randn(64, DIM, 4, 4)])
    return quantizer


# ---------------------------------------------------------------------- masks


def test_a_cell_holds_the_mean_of_its_unmasked_vectors_and_counts_where_there_is_one() -> None:
    quantizer = initialized(num_phis=0).double().eval()
    codes = quantizer.stages[0].codebook.vectors.detach()
    x, mask = torch.randn(1, DIM, 4, 4, dtype=torch.float64), torch.ones(1, 4, 4, dtype=torch.bool)
    mask[0, :2, :2], mask[0, 3, 3] = False, False
    output = quantizer(x, mask)
    mean = x[0][:, mask[0]].mean(1)
    first = (mean - codes).square().sum(1).argmin()
    assert output.indices[0, 0] == first
    rest = x[0] - codes[first].view(-1, 1, 1)
    corner = torch.stack([rest[:, 2, 2], rest[:, 2, 3], rest[:, 3, 2]]).mean(0)  # without the masked one
    assert output.indices[0, 4] == (corner - codes).square().sum(1).argmin()
    assert output.indices[0, 1] == -1 and (output.indices[0, 5:].view(4, 4) >= 0).equal(mask[0])
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    assert not output.quantized[0][:, ~mask[0]].any()
    other = quantizer(torch.where(mask.unsqueeze(1), x, 100.0), mask)
    assert torch.equal(other.indices, output.indices) and torch.equal(other.loss, output.loss)


def test_a_prefix_decodes_where_its_finest_scale_has_cells_and_phi_adds_nothing_to_what_is_left_out() -> None:
    quantizer = initialized().eval()
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, :2], mask[1] = False, False
    indices = quantizer.encode(torch.randn(2, DIM, 4, 4), mask)
    covered = quantizer.decode(indices[:, :5])[0].any(0)
    assert covered.equal(mask[0])
    for end in quantizer.ends:
        assert not quantizer.decode(indices[1:, :end]).any()


# ---------------------------------------------------------------------- axes


@pytest.mark.parametrize(("axes", "up", "mode"), [(1, LinearResizing(), "linear"), (3, LinearResizing(), "trilinear")])
def test_sequences_and_videos(axes: int, up, mode: str) -> None:
    quantizer = MultiScaleQuantizer(
        stage, [1, 2, 3, 5], axes=axes, up=up, num_phis=1, phi_ratio=0.25, channel_dim=1
    ).double()
    torch.nn.init.normal_(quantizer.stages[0].codebook.vectors)
    codes, phi = quantizer.stages[0].codebook.vectors.detach(), quantizer.phi.convolutions[0]
    convolve = {1: F.conv1d, 3: F.conv3d}[axes]
    z = torch.randn(2, DIM, *[5] * axes, dtype=torch.float64)
    rest, indices = z, []
    for size in (1, 2, 3, 5):
        cells = F.interpolate(rest, size=[size] * axes, mode="area").movedim(1, -1)
        nearest = (cells.unsqueeze(-2) - codes).square().sum(-1).argmin(-1)
        h = F.interpolate(codes[nearest].movedim(-1, 1), size=[5] * axes, mode=mode)
        rest = rest - 0.75 * h - 0.25 * convolve(h, phi.weight.detach(), phi.bias.detach(), padding=1)
        indices.append(nearest.flatten(1))
    output = quantizer.eval()(z)
    assert torch.equal(output.indices, torch.cat(indices, 1))
    torch.testing.assert_close(output.quantized, z - rest, rtol=0, atol=1e-12)


def test_grids_may_be_of_another_size_along_each_axis() -> None:
    quantizer = MultiScaleQuantizer(stage, [1, (2, 3), (4, 6)], channel_dim=1).eval()
    indices = quantizer.encode(torch.randn(2, DIM, 4, 6))
    assert quantizer.ends == (1, 7, 31) and indices.shape == (2, 31)
    assert quantizer.next_scale_inputs(indices).shape == (2, 30, DIM)


# ---------------------------------------------------------------------- indices


def test_what_counts_indices_tells_the_scales_apart() -> None:
    """By the codes that each has: VCQ's prefixes, codebooks of their own, levels of a stage."""
    x = torch.randn(3, DIM, 4, 4)
    own = [partial(stage, codebook_size=size) for size in (2, 4, 8)]
    grouped = partial(GroupedQuantizer, partial(stage, dim=2, codebook_size=8), 2)
    for quantizer, sizes, books, bits in (
        (images(level_sizes=[1, 4, 16]), (1, 4, 16), (16,), (0 * 1 + 2 * 4 + 4 * 16) / 21),
        (MultiScaleQuantizer(own, [1, 2, 4], channel_dim=1), (2, 4, 8), (2, 4, 8), (1 * 1 + 2 * 4 + 3 * 16) / 21),
        (MultiScaleQuantizer(grouped, [1, 2, 4], channel_dim=1), (8,) * 6, (8, 8), 6),
    ):
        assert (quantizer.level_sizes, quantizer.book_sizes) == (sizes, books)
        assert quantizer.bits_per_token == pytest.approx(bits, rel=1e-12)
        levels = quantizer.by_level(quantizer.encode(x))
        usage = CodebookUsage(sizes, books=quantizer.level_books)
        usage.update(levels)
        per_scale = len(sizes) // 3
        report = usage.compute()
        assert 0 <= report["dead"] < sum(books)
        assert report["tokens_per_level"] == [3.0] * per_scale + [12.0] * per_scale + [48.0] * per_scale


def test_shards_hold_the_tokens_of_all_scales(tmp_path: Path) -> None:
    quantizer = initialized()
    indices = quantizer.encode(torch.randn(5, DIM, 4, 4))
    names = [f"{number}.png" for number in range(5)]
    with TokenShardWriter(tmp_path, quantizer) as writer:
        writer.add(indices, names)
    shards = TokenShards(tmp_path)
    assert torch.equal(torch.stack([shards[number]["indices"].long() for number in range(5)]), indices)


# ---------------------------------------------------------------------- what is refused


test_what_does_not_fit_is_refused_at_construction = refused(
    ({"scales": []}, "expected at least one size"),
    ({"scales": [1, [2, 2, 2]]}, "a number for each of 1 to 3 axes"),
    ({"scales": [1, 2], "axes": 4}, "a number for each of 1 to 3 axes"),
    ({"scales": [1, 2.0, 4]}, "each a whole number"),
    ({"scales": [2, 1]}, "coarse first, none smaller than one before it"),
    ({"scales": [0, 1]}, "sizes of at least 1"),
    ({"stage": [stage, stage]}, "stage lists 2 factories: expected one for each of 3 scales"),
    ({"stage": [stage, stage, partial(stage, dim=5)]}, r"dim \[4, 4, 5\]: expected one size"),
    ({"stage": [stage, stage, partial(BSQ, 70, dim=DIM)], "estimator": None}, "expected the same number"),
    ({"num_phis": 4}, "num_phis=4: expected 0 ... 3"),
    ({"phi_ratio": 0.0}, "phi_ratio=0.0: expected a number above 0"),
    ({"level_sizes": [1, 2]}, r"level_sizes=\[1, 2\]: expected for each of 3 scales"),
    ({"level_sizes": [1, 2, 8]}, "the largest of them all 16"),
    ({"level_sizes": [1, 2, 5], "stage": partial(FSQ, [5] * DIM)}, "of one Quantizer's codebook"),
    ({"flips": BitFlips()}, "Quantizer has no bits to turn over"),
    ({"losses": [DoubleQuantization()]}, "DoubleQuantization is not defined for the sum after a scale"),
    ({"losses": [Commitment(), Commitment()]}, "2 losses are called 'commitment'"),
    ({"losses": [Commitment()]}, "nothing trains phi"),
    ({"stage": partial(stage, codebook_dim=2)}, "pass estimator=None"),
    by=lambda options: MultiScaleQuantizer(**{"stage": stage, "scales": [1, 2, 4]} | options),
)


test_flips_that_cannot_be_are_refused = refused(
    (lambda: BitFlips(-0.1), r"expected a number in \[0, 1\]"),
    (lambda: BitFlips(1.5), r"expected a number in \[0, 1\]"),
    (lambda: BitFlips(num_scales=0), "num_scales=0: expected at least 1"),
)


def test_maps_and_indices_of_another_size_are_refused() -> None:
    quantizer, x = initialized(), torch.randn(2, DIM, 5, 4)
    for call in (lambda: quantizer(x), lambda: quantizer.initialize([x])):
        with pytest.raises(ValueError, match=r"x is a map of \(5, 4\) vectors: expected \(4, 4\), the last of scales"):
            call()
    for shape in ((2, 6), (2, 0), (2, 21, 1), (21,)):
        with pytest.raises(ValueError, match="of whole scales, coarse first, n one of 1, 5, 21"):
            quantizer.decode(torch.zeros(shape, dtype=torch.int64))


def test_what_needs_an_index_for_each_position_refuses_it() -> None:
    member = partial(MultiScaleQuantizer, stage, [1, 2, 4])
    for composite in (partial(ResidualQuantizer, member, 2), partial(GroupedQuantizer, member, 2)):
        with pytest.raises(ValueError, match="which has no index for each position: put "):
            composite()
    with pytest.raises(ValueError, match="which has no index for each position"):
        PrefixQuantizer(member)
    sizes = {"dim": DIM, "channels": 4, "strides": (4,)}
    with pytest.raises(ValueError, match=r"MultiScaleQuantizer takes maps of one size.* with axes=1"):
        AudioTokenizer(ConvEncoder1d(**sizes), images(), ConvDecoder1d(**sizes), sample_rate=16000)
    sizes = {"dim": DIM, "channels": 32, "channel_multipliers": [1], "patch_size": 4}
    tokenizer = Tokenizer(ConvEncoder2d(**sizes), images(), ConvDecoder2d(**sizes)).eval()
    for call in (Tiles(16).encode, Tiles(16).decode):
        with pytest.raises(ValueError, match="MultiScaleQuantizer has no index for each patch"):
            call(tokenizer, torch.zeros(1, 3, 16, 16))
    assert tokenizer.decode(tokenizer.encode(torch.zeros(1, 3, 16, 16))).shape == (1, 3, 16, 16)


# ---------------------------------------------------------------------- training


def test_losses_of_the_sums_take_the_place_of_those_of_the_stages_with_their_names() -> None:
    built = MultiScaleQuantizer(partial(Quantizer, "ibq", dim=DIM, codebook_size=16), [1, 4], estimator=None)
    assert {loss.name for loss in built.stages[0].losses} == {"double_quantization", "entropy"}
    plain = MultiScaleQuantizer(stage, [1, 4], losses=[], num_phis=0)
    assert {loss.name for loss in plain.stages[0].losses} == {"commitment", "codebook"}


def test_a_sample_that_uses_some_scales_alone_decodes_from_its_indices_and_counts_as_zero_elsewhere() -> None:
    quantizer, x = initialized(dropout=1.0, num_phis=0).double(), torch.randn(64, DIM, 4, 4, dtype=torch.float64)
    output = quantizer(x)
    depths = torch.stack([output.indices[:, end - 1] >= 0 for end in quantizer.ends], 1).sum(1)
    assert set(depths.tolist()) == {1, 2, 3}
    assert torch.equal(quantizer.decode(output.indices), output.quantized)
    errors: Tensor = torch.zeros((), dtype=torch.float64)
    for number, end in enumerate(quantizer.ends):
        total = quantizer.decode(output.indices[:, :end])
        used = depths > number
        errors = errors + (total - x)[used].square().sum() / x.numel() / 3
    torch.testing.assert_close(output.losses["commitment"], errors.detach(), rtol=1e-12, atol=0)


def test_losses_of_sums_are_the_mean_over_positions_also_of_masks_that_differ() -> None:
    """A cell of a sample that is cut may hold more positions than that of another."""
    quantizer = initialized(num_phis=0, dropout=1.0).double()
    x, mask = torch.randn(8, DIM, 4, 4, dtype=torch.float64), torch.rand(8, 4, 4) < torch.rand(8, 1, 1)
    output = quantizer(x, mask)
    expected, total = torch.zeros((), dtype=torch.float64), torch.zeros_like(x)
    for number, part in enumerate(quantizer.pyramid.split(output.indices)):
        total = total + quantizer.pyramid.enlarge(number, quantizer.stages[0].lookup(part)).movedim(-1, 1)
        counted = mask & (part >= 0).flatten(1).any(1).view(-1, 1, 1)
        expected = expected + ((total - x).square().mean(1) * counted).sum() / mask.sum() / 3
    torch.testing.assert_close(output.losses["commitment"], expected, rtol=1e-12, atol=0)
