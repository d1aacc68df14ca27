"""SNAC's levels of different frame rates (Siuzdak et al. 2024, arXiv 2410.14411), written out in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.papers.test_split_quantizers import assert_same, gradients
from tests.refusals import refused
from vqkit import (
    BSQ,
    CodebookLoss,
    Commitment,
    GroupedQuantizer,
    MultiRateQuantizer,
    Quantizer,
    ResidualQuantizer,
    StraightThrough,
    SumOverMembers,
    bake,
)

DIM, STRIDES = 6, [6, 3, 2, 1]
STEP = 6
CODE = partial(Quantizer, "factorized", dim=DIM, codebook_size=16, codebook_dim=3)
BOOK = partial(Quantizer, "vq", dim=DIM, codebook_size=16, losses=[Commitment(0.25), CodebookLoss()])


SNAC = {"estimator": None, "reduction": SumOverMembers(), "channel_dim": 1}


def build(stage=CODE, **options) -> MultiRateQuantizer:
    """In float64, with parameters of which no two are alike; SNAC unless the options say otherwise."""
    quantizer = MultiRateQuantizer(stage, STRIDES, **SNAC | options).double()
    for number, parameter in enumerate(quantizer.parameters()):
        parameter.data.normal_(std=0.5, generator=torch.Generator().manual_seed(number))
    return quantizer


def frames(batch: int = 3, count: int = 4 * STEP, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, DIM, count, dtype=torch.float64, generator=generator).requires_grad_()


def published_level(x: Tensor, stride: int, code: Quantizer) -> tuple[Tensor, Tensor, Tensor]:
    """(B, D, T) pooled, mapped, the nearest code by angle, mapped back and repeated; its indices and loss."""
    pooled = F.avg_pool1d(x, stride, stride).mT
    low = pooled @ code.project_in.weight.T + code.project_in.bias
    codes = code.codebook.vectors
    indices = (F.normalize(low, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)
    loss = 0.25 * F.mse_loss(low, codes[indices].detach()) + F.mse_loss(codes[indices], low.detach())
    passed = low + (codes[indices] - low).detach()
    return (passed @ code.project_out.weight.T + code.project_out.bias).mT.repeat_interleave(stride, -1), indices, loss


def test_levels_pool_and_repeat_and_detach_nothing() -> None:
    quantizer, z = build(), frames()
    total, levels, losses = torch.zeros_like(z), [], []
    for stride, stage in zip(STRIDES, quantizer.stages, strict=True):
        value, indices, loss = published_level(z - total, stride, stage)
        total = total + value
        levels.append(indices)
        losses.append(loss)
    expected_loss = torch.stack(losses).sum()

    output = quantizer(z)
    assert torch.equal(output.indices, torch.cat(levels, 1))
    assert_same([output.quantized, output.loss], [total, expected_loss])
    assert_same(gradients(output.quantized, output.loss, z, quantizer), gradients(total, expected_loss, z, quantizer))


def test_an_estimator_over_the_sum_detaches_what_is_subtracted() -> None:
    quantizer, z = build(BOOK, estimator=StraightThrough()), frames()
    total, levels, losses = torch.zeros_like(z), [], []
    for stride, stage in zip(STRIDES, quantizer.stages, strict=True):
        pooled, codes = F.avg_pool1d(z - total.detach(), stride, stride).mT, stage.codebook.vectors
        levels.append((pooled.unsqueeze(-2) - codes).square().sum(-1).argmin(-1))
        chosen = codes[levels[-1]]
        losses.append(0.25 * F.mse_loss(pooled, chosen.detach()) + F.mse_loss(chosen, pooled.detach()))
        total = total + chosen.mT.repeat_interleave(stride, -1)
    expected, expected_loss = z + (total - z).detach(), torch.stack(losses).sum()

    output = quantizer(z)
    assert torch.equal(output.indices, torch.cat(levels, 1))
    assert_same([output.quantized, output.loss], [expected, expected_loss])
    assert_same(
        gradients(output.quantized, output.loss, z, quantizer), gradients(expected, expected_loss, z, quantizer)
    )


def test_indices_go_to_levels_and_to_steps_and_back() -> None:
    quantizer = build().eval()
    indices = quantizer.encode(frames())
    levels = quantizer.split_levels(indices)
    assert [tuple(level.shape) for level in levels] == [(3, 4), (3, 8), (3, 12), (3, 24)]
    assert torch.equal(quantizer.join_levels(levels), indices)
    rows = quantizer.interleave(indices)
    assert rows.shape == (3, 4, 1 + 2 + 3 + 6)
    for step in range(4):
        expected = torch.cat(
            [level[:, step * n : (step + 1) * n] for level, n in zip(levels, (1, 2, 3, 6), strict=True)], 1
        )
        assert torch.equal(rows[:, step], expected)
    assert torch.equal(quantizer.deinterleave(rows), indices)
    columns = quantizer.by_level(indices)
    assert columns.shape == (3, 48, 4) == (3, 48, len(quantizer.level_sizes))
    for column, level in zip(columns.unbind(-1), levels, strict=True):
        assert torch.equal(column[column >= 0].reshape(level.shape), level)
    assert ((columns >= 0).sum(-1) == 1).all()


def test_a_step_is_encoded_by_itself() -> None:
    quantizer, z = build().eval(), frames()
    alone = [quantizer.encode(part) for part in z.split(STEP, -1)]
    rows = torch.cat([quantizer.interleave(part) for part in alone], 1)
    assert torch.equal(quantizer.deinterleave(rows), quantizer.encode(z))


def test_coarse_levels_decode_alone() -> None:
    quantizer, z = build().eval(), frames()
    indices, total = quantizer.encode(z), torch.zeros_like(z)
    assert not quantizer.decode(quantizer.prefix(indices, 0)).any()
    for number, (stride, stage) in enumerate(zip(STRIDES, quantizer.stages, strict=True), start=1):
        value = published_level(z - total, stride, stage)[0]
        total = total + value
        assert_same([quantizer.decode(quantizer.prefix(indices, number))], [total])
    assert torch.equal(quantizer.prefix(indices, len(STRIDES)), indices)


def test_an_index_stands_for_the_mean_of_the_frames_that_count() -> None:
    quantizer = MultiRateQuantizer(BOOK, [4, 1], channel_dim=1).double()
    for stage in quantizer.stages:
        nn.init.normal_(stage.codebook.vectors)
    z = frames(2, 8).detach()
    mask = torch.ones(2, 8, dtype=torch.bool)
    mask[0, 2:] = False
    output = quantizer.eval()(torch.where(mask.unsqueeze(1), z, 1e30), mask)
    coarse, fine = quantizer.split_levels(output.indices)
    alone = quantizer.stages[0].encode(z[0, :, :2].mean(-1, keepdim=True).mT)
    assert coarse[0].tolist() == [int(alone), -1] and (coarse[1] >= 0).all()
    assert torch.equal(fine >= 0, mask)
    assert not output.quantized[0, :, 2:].any()
    assert torch.equal(quantizer.decode(output.indices), output.quantized)


def test_dropout_leaves_fine_levels_out_for_single_samples() -> None:
    quantizer, z = build(dropout=1.0), frames(400, STEP)
    output = quantizer(z)
    used = torch.stack([(level >= 0).all(1) for level in quantizer.split_levels(output.indices)], 1)
    whole_or_none = [level.flatten(1) >= 0 for level in quantizer.split_levels(output.indices)]
    assert all(torch.equal(level.any(1), level.all(1)) for level in whole_or_none)
    depths = used.sum(1)
    assert torch.equal(used, torch.arange(4) < depths.unsqueeze(1))
    assert all(abs((depths == n).double().mean() - 0.25) < 4 * (0.25 * 0.75 / 400) ** 0.5 for n in (1, 2, 3, 4))
    assert torch.equal(quantizer.eval().decode(output.indices), output.quantized)
    # A level that a sample drops counts as 0 in its loss.
    total, losses = torch.zeros_like(z), []
    for number, (stride, stage) in enumerate(zip(STRIDES, quantizer.stages, strict=True)):
        kept = depths > number
        value, _, loss = published_level((z - total)[kept], stride, stage)
        total = total.index_add(0, kept.nonzero().squeeze(1), value)
        losses.append(loss * kept.double().mean())
    assert_same([output.loss], [torch.stack(losses).sum()])


def test_each_level_is_initialized_on_what_coarser_ones_leave_over() -> None:
    """Of 16 different steps the first level finds the means, and the second what is left of the halves."""
    quantizer = MultiRateQuantizer([BOOK, partial(BOOK, codebook_size=32)], [4, 2], channel_dim=1).double()
    z = frames(16, 4).detach().repeat(10, 1, 1)
    quantizer.initialize([*z.split(40)], samples=640)
    decoded = quantizer.eval()(z).quantized
    assert_same([decoded], [F.avg_pool1d(z, 2, 2).repeat_interleave(2, -1)])


def test_stages_may_have_levels_and_codebooks_of_their_own() -> None:
    pair = partial(ResidualQuantizer, partial(BOOK, codebook_size=8), 2)
    quantizer = MultiRateQuantizer([pair, partial(ResidualQuantizer, BOOK, 2)], [2, 1]).double().eval()
    indices = quantizer.encode(frames(2, 4).detach().mT)
    assert indices.shape == (2, 6, 2) and quantizer.codebook_sizes == (16, 16)
    assert quantizer.level_sizes == (8, 8, 16, 16) and quantizer.level_strides == (2, 2, 1, 1)
    assert quantizer.bits_per_token == (1 * (3 + 3) + 2 * (4 + 4)) / 3
    assert quantizer.interleave(indices).shape == (2, 2, 3, 2)
    assert torch.equal(quantizer.deinterleave(quantizer.interleave(indices)), indices)
    assert quantizer.by_level(indices).shape == (2, 6, 4)
    indices[0, 0, 0] = 12
    with pytest.raises(ValueError, match=r"indices lie in .* 12: expected -1 \(left out\) or 0 ... 7"):
        quantizer.decode(indices)


@pytest.mark.parametrize("shape", [(0, DIM, 2 * STEP), (2, DIM, 0)])
def test_without_frames_there_are_no_indices(shape: tuple[int, ...]) -> None:
    quantizer = build()
    z = torch.zeros(shape, dtype=torch.float64).requires_grad_()
    output = quantizer(z)
    assert output.indices.shape == (shape[0], shape[2] // STEP * 12) and output.loss.item() == 0
    assert quantizer.decode(output.indices).shape == shape
    assert quantizer.by_level(output.indices).shape == (*output.indices.shape, 4)


def test_a_baked_copy_keeps_the_rates() -> None:
    quantizer, z = build(BOOK), frames()
    table = bake(quantizer)
    assert table.strides == quantizer.strides and torch.equal(table.encode(z), quantizer.eval().encode(z))


test_what_does_not_fit_is_refused_with_words = refused(
    (lambda q: q(frames(2, 7)), r"\(2, 7\): expected \(B, T\) with a multiple of 6 frames"),
    (lambda q: q(torch.zeros(2, DIM)), r"\(2,\): expected \(B, T\) with a multiple of 6 frames"),
    (lambda q: q.decode(torch.zeros(2, 7, dtype=torch.int64)), "expected .B, L., L a multiple of 12"),
    (lambda q: q.prefix(torch.zeros(2, 12, dtype=torch.int64), 5), "num_levels=5: expected 0 ... 4"),
    (lambda _: MultiRateQuantizer(BOOK, [1, 2]), r"strides=\[1, 2\]: expected frames .* coarse first"),
    (lambda _: MultiRateQuantizer(BOOK, []), r"strides=\[\]: expected frames"),
    (lambda _: MultiRateQuantizer([BOOK], [2, 1]), "stage lists 1 factories: expected one for each of"),
    (lambda _: MultiRateQuantizer([BOOK, partial(BOOK, dim=4)], [2, 1]), r"dim \[6, 4\]: expected one size"),
    (
        lambda _: MultiRateQuantizer([BOOK, partial(BSQ, 70, dim=DIM)], [2, 1], estimator=None),
        r"stage built quantizers of \[0, 2\] levels: expected the same number",
    ),
    (
        lambda _: GroupedQuantizer(partial(MultiRateQuantizer, BOOK, [2, 1]), 2),
        "group built a MultiRateQuantizer, which has no index for each position",
    ),
    by=lambda call: call(build()),
)
