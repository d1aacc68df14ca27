"""Mimi's split quantizer (Défossez et al. 2024, arXiv 2410.00037, sec. 3.3) and DualCodec's (Li et al. 2025, arXiv
2505.13000), written out in float64."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit import (
    BaseQuantizer,
    CodebookLoss,
    Commitment,
    FeatureSplitQuantizer,
    IncompatibleParts,
    Quantizer,
    ResidualQuantizer,
    SplitQuantizer,
)

DIM, SEMANTIC, ACOUSTIC, STAGES = 12, 5, 6, 3
COMMITMENT, CODEBOOK = 0.25, 1.0
BOOK = partial(Quantizer, "vq", codebook_size=16, losses=[Commitment(COMMITMENT), CodebookLoss(CODEBOOK)])
CODE = partial(Quantizer, "factorized", codebook_size=16, codebook_dim=3)


def spread_out(quantizer: BaseQuantizer) -> BaseQuantizer:
    """In float64, with parameters of which no two are alike."""
    quantizer.double()
    for number, parameter in enumerate(quantizer.parameters()):
        generator = torch.Generator().manual_seed(number)
        parameter.data.normal_(std=0.5, generator=generator)
    return quantizer


def mimi(**options) -> SplitQuantizer:
    acoustic = partial(ResidualQuantizer, partial(BOOK, dim=ACOUSTIC), STAGES)
    return spread_out(SplitQuantizer([partial(BOOK, dim=SEMANTIC), acoustic], dim=DIM, **options))


def dualcodec(**options) -> FeatureSplitQuantizer:
    acoustic = partial(ResidualQuantizer, partial(CODE, dim=ACOUSTIC), STAGES, estimator=None)
    return spread_out(FeatureSplitQuantizer([partial(CODE, dim=SEMANTIC), acoustic], **options))


def vectors(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(output: Tensor, loss: Tensor, z: Tensor, quantizer: BaseQuantizer) -> list[Tensor]:
    """Of the input and of all parameters, for a decoder that weighs each number of the output differently."""
    task = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    return list(torch.autograd.grad(task + loss, [z, *quantizer.parameters()], retain_graph=True))


assert_same = partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)


def mean_square(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).square().mean()


def chain(z: Tensor, books: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Residual quantization with straight-through over the sum: its value, the indices, and the loss of each stage."""
    total, indices, losses = torch.zeros_like(z), [], []
    for codes in books:
        residual = z - total.detach()
        indices.append((residual.unsqueeze(-2) - codes).square().sum(-1).argmin(-1))
        chosen = codes[indices[-1]]
        losses.append(
            COMMITMENT * mean_square(residual, chosen.detach()) + CODEBOOK * mean_square(residual.detach(), chosen)
        )
        total = total + chosen
    return z + (total - z).detach(), indices, losses


def factorized(z: Tensor, code: Quantizer) -> tuple[Tensor, Tensor, Tensor]:
    """DAC's codes: a map in, the nearest by angle, the code as it is, a map out; value, indices and loss."""
    low = z @ code.project_in.weight.T + code.project_in.bias
    codes = code.codebook.vectors
    indices = (F.normalize(low, dim=-1) @ F.normalize(codes, dim=-1).T).argmax(-1)
    loss = 0.25 * mean_square(low, codes[indices].detach()) + mean_square(low.detach(), codes[indices])
    passed = low + (codes[indices] - low).detach()
    return passed @ code.project_out.weight.T + code.project_out.bias, indices, loss


def test_mimi_adds_two_branches_of_the_same_latents_between_their_maps() -> None:
    quantizer, z = mimi(), vectors(4, 7, DIM)
    (first_in, rest_in), (first_out, rest_out) = quantizer.project_in, quantizer.project_out
    semantic, acoustic = quantizer.branches
    first, first_indices, first_losses = chain(z @ first_in.weight.T, [semantic.codebook.vectors])
    rest, rest_indices, rest_losses = chain(z @ rest_in.weight.T, [stage.codebook.vectors for stage in acoustic.stages])
    expected = first @ first_out.weight.T + rest @ rest_out.weight.T
    # The released code: the mean over a branch's stages, weighted by the share of its stages among all.
    penalty = (sum(first_losses) + STAGES * torch.stack(rest_losses).mean()) / (1 + STAGES)

    output = quantizer(z)
    assert torch.equal(output.indices, torch.stack([*first_indices, *rest_indices], -1))
    assert quantizer.codebook_sizes == (16,) * (1 + STAGES)
    assert_same([output.quantized, output.loss], [expected, penalty])
    assert_same(gradients(output.quantized, output.loss, z, quantizer), gradients(expected, penalty, z, quantizer))


def test_mimi_leaves_samples_unquantized_in_training_and_learns_from_them() -> None:
    """The released code draws for each sample and each branch; codes are chosen, and losses paid, in any case."""
    z, plain = vectors(400, 3, DIM), mimi()
    quantizer, all_of_it = mimi(unquantized=0.5), mimi(unquantized=1.0)
    maps = [(into.weight, out.weight) for into, out in zip(plain.project_in, plain.project_out, strict=True)]
    through = [z @ into.T @ out.T for into, out in maps]
    coded = [branch(z @ into.T).quantized @ out.T for branch, (into, out) in zip(plain.branches, maps, strict=True)]
    expected, output = plain(z), quantizer(z)
    assert_same([all_of_it(z).quantized, output.loss], [sum(through), expected.loss])
    assert torch.equal(output.indices, expected.indices)

    choices = [(first, rest) for first in (coded[0], through[0]) for rest in (coded[1], through[1])]
    distances = torch.stack([(output.quantized - sum(pair)).abs().amax((1, 2)) for pair in choices])
    kinds = distances.argmin(0)
    assert distances.amin(0).max() < 1e-12
    assert all(60 < (kinds == kind).sum() < 140 for kind in range(4))  # 100 +- 4.6 deviations of 8.7
    assert not torch.equal(quantizer(z).quantized, output.quantized)
    expected = torch.stack([sum(pair)[number] for number, pair in ((n, choices[k]) for n, k in enumerate(kinds))])
    assert_same(gradients(output.quantized, output.loss, z, quantizer)[:1],
                gradients(expected, plain(z).loss, z, plain)[:1])  # fmt: skip
    assert torch.equal(quantizer.eval()(z).quantized, plain.eval()(z).quantized)
    with pytest.raises(ValueError, match=r"unquantized=2.0: expected a probability"):
        mimi(unquantized=2.0)


def test_any_prefix_of_mimis_levels_decodes_semantic_first() -> None:
    quantizer, z = mimi().eval(), vectors(4, 7, DIM)
    indices = quantizer.encode(z)
    first, rest = quantizer.project_out
    semantic = quantizer.branches[0].codebook.vectors[indices[..., 0]] @ first.weight.T
    assert_same([quantizer.decode(indices[..., :1])], [semantic])
    total = torch.zeros(4, 7, ACOUSTIC, dtype=torch.float64)
    for level, stage in enumerate(quantizer.branches[1].stages, start=1):
        total = total + stage.codebook.vectors[indices[..., level]]
        assert_same([quantizer.decode(indices[..., : level + 1])], [semantic + total @ rest.weight.T])
    assert torch.equal(quantizer.decode(indices), quantizer(z).quantized)


def test_dualcodec_subtracts_the_semantic_codes_and_detaches_nothing() -> None:
    quantizer, x = dualcodec(), vectors(4, 7, SEMANTIC + ACOUSTIC)
    features, latents = x.split([SEMANTIC, ACOUSTIC], -1)
    semantic, acoustic = quantizer.branches
    s, indices, loss = factorized(features, semantic)
    shift = s @ quantizer.project_out.weight.T
    total, all_indices, losses = torch.zeros_like(latents), [indices], [loss]
    for stage in acoustic.stages:
        value, indices, loss = factorized(latents - shift - total, stage)
        total = total + value
        all_indices.append(indices)
        losses.append(loss)
    expected = torch.cat([s, shift + total], -1)
    penalty = torch.stack(losses).sum() / (1 + STAGES)

    output = quantizer(x)
    assert quantizer.dim == SEMANTIC + ACOUSTIC
    assert torch.equal(output.indices, torch.stack(all_indices, -1))
    assert_same([output.quantized, output.loss], [expected, penalty])
    assert_same(gradients(output.quantized, output.loss, x, quantizer), gradients(expected, penalty, x, quantizer))
    assert_same([quantizer.decode(output.indices[..., :1])], [torch.cat([s, shift], -1)])


def test_dualcodec_leaves_the_acoustic_branch_out_with_half_of_dropout() -> None:
    quantizer, x = dualcodec(dropout=0.5), vectors(4000, 2, SEMANTIC + ACOUSTIC)
    whole = quantizer.eval()(x)
    output = quantizer.train()(x)
    left_out = (output.indices[:, :, 1:] == -1).flatten(1)
    assert torch.equal(left_out.any(1), left_out.all(1))
    dropped = left_out.all(1)
    share = 0.5 / 2
    assert abs(dropped.double().mean() - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert torch.equal(output.indices[..., 0], whole.indices[..., 0])
    alone = quantizer.decode(whole.indices[..., :1])
    expected = torch.where(dropped[:, None, None], alone, whole.quantized)
    assert_same(output.quantized, expected)
    # A sample without acoustic codes counts as 0 in their losses.
    kept = x[~dropped]
    semantic = quantizer.eval().branches[0](x[..., :SEMANTIC]).loss
    acoustic = quantizer.branches[1](kept[..., SEMANTIC:] - alone[~dropped][..., SEMANTIC:]).loss
    expected_loss = (semantic + STAGES * acoustic * len(kept) / 4000) / (1 + STAGES)
    assert_same(output.loss, expected_loss)


def test_each_branch_is_initialized_on_what_it_will_be_given() -> None:
    """The centres of 16 points that repeat are these points."""
    z = vectors(16, DIM).detach().repeat(20, 1)
    books = [partial(BOOK, dim=SEMANTIC), partial(BOOK, dim=DIM - SEMANTIC)]
    split, fed = (spread_out(build(books)) for build in (partial(SplitQuantizer, dim=DIM), FeatureSplitQuantizer))
    split.initialize([z])
    for branch, project in zip(split.branches, split.project_in, strict=True):
        assert_same(branch.decode(branch.encode(project(z))), project(z))
    fed.initialize([z])
    assert_same(fed.decode(fed.encode(z)), z)
    left_over = z[:, SEMANTIC:] - fed.project_out(z[:, :SEMANTIC])
    assert_same([fed.branches[1].decode(fed.branches[1].encode(left_over))], [left_over])


def test_one_branch_is_a_chain_that_is_projected_once() -> None:
    acoustic = partial(ResidualQuantizer, partial(BOOK, dim=ACOUSTIC), STAGES)
    quantizer, z = spread_out(SplitQuantizer([acoustic], dim=DIM)), vectors(9, DIM)
    (into,), (out,), (inner,) = quantizer.project_in, quantizer.project_out, quantizer.branches
    found, expected = quantizer(z), inner(into(z))
    assert torch.equal(found.indices, expected.indices)
    assert_same([found.quantized, found.loss], [out(expected.quantized), expected.loss])


def test_a_map_that_diverged_does_not_take_codebooks_along() -> None:
    stage = partial(Quantizer, "ema", dim=4, codebook_size=8)
    quantizer = SplitQuantizer([stage, stage], dim=4)
    nn.init.constant_(quantizer.project_in[0].weight, 3e38)
    for _ in range(3):
        output = quantizer(torch.rand(60, 4) + 1)
    assert (output.indices[:, 0] == -1).all() and (output.indices[:, 1] >= 0).all()
    assert (quantizer.encode(torch.rand(60, 4) + 1)[:, 0] == -1).all()
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def test_what_cannot_be_split_is_refused_with_words() -> None:
    for kind in (partial(SplitQuantizer, dim=4), FeatureSplitQuantizer):
        with pytest.raises(ValueError, match="expected a list of one factory for each branch"):
            kind(partial(Quantizer, "vq", dim=4, codebook_size=8))
    stage = partial(Quantizer, "ema", dim=4, codebook_size=8)
    with pytest.raises(ValueError, match="branch lists 1 factories: expected 2, a semantic and an acoustic one"):
        FeatureSplitQuantizer([stage])
    with pytest.raises(ValueError, match=r"branch=\[\]: expected a factory for each branch, at least 1"):
        SplitQuantizer([], dim=4)
    with pytest.raises(IncompatibleParts, match="the value of NSVQ lies far from the code in training"):
        FeatureSplitQuantizer([partial(Quantizer, "nsvq", dim=4, codebook_size=8), stage])
    with pytest.raises(IncompatibleParts, match="pass estimator=None, so that each stage keeps its own"):
        ResidualQuantizer(partial(SplitQuantizer, [stage, stage], dim=8), 2)
