"""Many small books for each token against the equations of their papers, in float64: UniTok, MGVQ, WeTok, XQ-GAN."""

import itertools
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.papers.equations import assert_computes
from vqkit import (
    LFQ,
    AttentionProjection,
    BaseQuantizer,
    BitEntropy,
    ClusterReinit,
    Codebook,
    CodebookLoss,
    CodebookUsage,
    Commitment,
    GroupedQuantizer,
    NestedGroupedQuantizer,
    ProbabilisticAnchor,
    ProjectedQuantizer,
    Quantizer,
    ResidualQuantizer,
    Search,
    UniformLengths,
)

CLOSE = partial(torch.testing.assert_close, rtol=0, atol=1e-13)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def unit_books(z: Tensor, books: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes of unit length in consecutive channels of z (N, G D): indices (N, G), value, commitment and codebook loss
    of each vector and book (N, G)."""
    parts = F.normalize(torch.stack(z.chunk(len(books), -1), 1), dim=-1)
    codes = F.normalize(torch.stack(books), dim=-1)
    indices = torch.einsum("ngd,gkd->ngk", parts, codes).argmax(-1)
    chosen = torch.stack([book[index] for book, index in zip(codes, indices.unbind(1), strict=True)], 1)
    value = (parts + (chosen - parts).detach()).flatten(1)
    commitment = (parts - chosen.detach()).square().mean(-1)
    return indices, value, commitment, (chosen - parts.detach()).square().mean(-1)


def with_random_books(quantizer: BaseQuantizer) -> BaseQuantizer:
    """In float64, each codebook another one: those that a factory builds are equal."""
    for part in quantizer.double().modules():
        if isinstance(part, Codebook):
            torch.nn.init.normal_(part.vectors)
    return quantizer


STAGE = partial(Quantizer, "vq", dim=6, codebook_size=16)
MGVQ_BOOK = partial(
    Quantizer, "cvq", dim=8, normalize=True, maintenance=[ClusterReinit(ProbabilisticAnchor("euclidean"))]
)
MGVQ = partial(NestedGroupedQuantizer, partial(MGVQ_BOOK, codebook_size=32), 4)


def test_mgvq_leaves_the_last_groups_out_as_one_number_decides() -> None:
    """Group i is 0 where u < p_i: a sample keeps 1, 2, 3, 4 groups with chances 0.2, 0.1, 0.1, 0.6."""
    quantizer = NestedGroupedQuantizer(STAGE, 4)
    kept = torch.cat([quantizer(torch.randn(128, 2, 24)).indices >= 0 for _ in range(16)])
    depth = kept.sum(-1)
    assert torch.equal(kept, torch.arange(4) < depth.unsqueeze(-1)) and (depth == depth[:, :1]).all()
    expected = torch.tensor([0.2, 0.1, 0.1, 0.6])
    share = torch.bincount(depth[:, 0], minlength=5)[1:] / len(depth)
    assert ((share - expected).abs() < 4.5 * (expected * (1 - expected) / len(depth)).sqrt()).all()


@pytest.mark.parametrize("training", [True, False])
def test_mgvq_values_losses_and_gradients(training: bool) -> None:
    quantizer = with_random_books(MGVQ()).train(training)
    z, upstream = random(17, 3, 32).requires_grad_(), random(17, 3, 32)
    output = quantizer(z)  # unused codes moved to features before the search
    kept, own = output.indices >= 0, [group.codebook.vectors for group in quantizer.groups]
    assert kept.all() == (not training) and kept[..., 0].all()
    books = [book.detach().clone().requires_grad_() for book in own]
    x = z.detach().clone().requires_grad_()
    indices, value, commitment, codebook = unit_books(x.flatten(0, 1), books)
    rows = kept.flatten(0, 1)
    assert torch.equal(output.indices.flatten(0, 1), torch.where(rows, indices, -1))
    value = value * rows.repeat_interleave(8, 1)
    loss = (rows * (0.25 * commitment + codebook)).mean(0).mean()
    CLOSE(output.quantized.flatten(0, 1), value)
    CLOSE(output.loss, loss)
    ours = torch.autograd.grad(output.loss + (output.quantized * upstream).sum(), [z, *own])
    theirs = torch.autograd.grad(loss + (value * upstream.flatten(0, 1)).sum(), [x, *books])
    CLOSE(ours, theirs)


def test_mgvq_decodes_the_first_groups() -> None:
    """`groups_to_use` of its code: the channels of the others are 0."""
    quantizer = MGVQ().double().eval()
    indices = quantizer.encode(random(5, 32))
    whole = quantizer.decode(indices)
    for groups in range(1, 5):
        part = quantizer.decode(indices[:, :groups])
        assert torch.equal(part[:, : 8 * groups], whole[:, : 8 * groups]) and not part[:, 8 * groups :].any()


# ---------------------------------------------------------------------- UniTok


UNITOK = partial(GroupedQuantizer, partial(Quantizer, "vq", dim=8, codebook_size=64, normalize=True), 8)


def unitok(z: Tensor, books: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    indices, value, commitment, codebook = unit_books(z, list(books.values()))
    return value, indices, (0.25 * commitment.mean(0) + codebook.mean(0)).mean()


def test_unitok_losses_are_the_mean_over_its_books() -> None:
    quantizer = with_random_books(UNITOK())
    assert_computes(unitok, quantizer, random(20, 64))
    assert quantizer.codebook_sizes == (64,) * 8


def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attention_projection(x: Tensor, layer: AttentionProjection) -> Tensor:
    """(N, in) -> (N, out), head by head, with the weights of `layer`."""
    width, head = max(layer.in_dim, layer.out_dim), min(layer.in_dim, layer.out_dim)
    query, key, value = (norm(x, layer.attention_norm) @ w.T for w in layer.query_key_value.weight.split(width))
    query, value = query + layer.query_bias, value + layer.value_bias
    heads = []
    for part in (slice(start, start + head) for start in range(0, width, head)):
        weights = (query[:, part] @ key[:, part].T / head**0.5).softmax(-1)
        heads.append(weights @ value[:, part])
    found = sum(heads) / len(heads) if layer.in_dim > layer.out_dim else torch.cat(heads, -1)
    x = layer.shortcut(norm(x, layer.shortcut_norm)) + layer.attention_out(found)
    first, second = layer.gate_norm
    inner = norm(norm(x, first), second)
    gate = layer.gate(inner)
    gelu = gate / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
    return x + layer.gate_out(gelu * layer.gated(inner))


def test_unitok_projects_by_factorized_attention() -> None:
    quantizer = with_random_books(ProjectedQuantizer(UNITOK, 128, projection=AttentionProjection, channel_dim=1)).eval()
    for parameter in quantizer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = random(2, 128, 3, 5)
    output, outside = quantizer(x), quantizer.quantizer
    assert (quantizer.project_in.num_heads, quantizer.project_out.num_heads) == (2, 2)
    for sample, indices, quantized in zip(x, output.indices, output.quantized, strict=True):
        inside = attention_projection(sample.flatten(1).T, quantizer.project_in)
        found = outside.encode(inside)
        assert torch.equal(indices.flatten(0, 1), found)
        CLOSE(quantized.flatten(1).T, attention_projection(outside.decode(found), quantizer.project_out))


def test_what_is_masked_is_not_attended_to() -> None:
    quantizer = with_random_books(ProjectedQuantizer(UNITOK, 128, projection=AttentionProjection)).eval()
    x, mask = random(3, 7, 128), torch.arange(7) < torch.tensor([[7], [4], [0]])
    output = quantizer(x, mask)
    alone = quantizer(x[1:2, :4])
    assert torch.equal(output.indices[1, :4], alone.indices[0]) and (output.indices[2] == -1).all()
    CLOSE(output.quantized[1, :4], alone.quantized[0])
    assert not output.quantized[2].any() and not output.quantized[1, 4:].any()


def test_sizes_that_are_no_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="in_dim=64, out_dim=40: expected a multiple of the other"):
        AttentionProjection(64, 40)


def test_a_linear_map_is_shared_by_the_books_and_initialize_sees_what_it_gives() -> None:
    quantizer, x = ProjectedQuantizer(UNITOK, 5, channel_dim=1), torch.randn(4, 5, 300)
    quantizer.initialize([x, x + torch.nan])
    twin = UNITOK()
    twin.initialize([quantizer.project_in.linear(x.mT)])
    for mine, other in zip(quantizer.quantizer.groups, twin.groups, strict=True):
        assert torch.equal(mine.codebook.vectors, other.codebook.vectors)
    assert torch.equal(quantizer.encode(x), twin.encode(quantizer.project_in.linear(x.mT)))


# ---------------------------------------------------------------------- WeTok


def test_wetok_entropy_is_exact_in_each_group() -> None:
    """Commitment 0.25 and entropy 0.1 of each group of bits, with all its 2^bits codes written out; their mean."""
    groups, bits, temperature = 4, 5, 0.5
    build = partial(LFQ, bits, losses=[Commitment(0.25), BitEntropy(0.1, temperature=temperature)])
    quantizer, z = GroupedQuantizer(build, groups).double(), random(30, groups * bits).requires_grad_()
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=bits)), dtype=torch.float64)
    x = z.detach().clone().requires_grad_()
    parts = torch.stack(x.chunk(groups, -1), 1)
    chances = (2 * parts @ codes.T / temperature).softmax(-1)
    each = -(chances * chances.log()).sum(-1).mean(0)
    mean = chances.mean(0)
    entropy = each + (mean * mean.log()).sum(-1)
    commitment = (parts - parts.detach().sign()).square().mean([0, 2])
    loss = (0.25 * commitment + 0.1 * entropy).mean()
    output = quantizer(z)
    CLOSE(output.loss, loss)
    CLOSE(torch.autograd.grad(output.loss, z)[0], torch.autograd.grad(loss, x)[0])
    lowest_first = ((parts > 0) * 2 ** torch.arange(bits)).sum(-1)
    assert torch.equal(output.indices, lowest_first) and torch.equal(output.quantized, x.sign())


# ---------------------------------------------------------------------- XQ-GAN, and both orders of nesting


XQGAN = partial(STAGE, search=Search("cosine"), losses=[Commitment(0.25 * 3), CodebookLoss()])
PRODUCTS = partial(GroupedQuantizer, partial(ResidualQuantizer, XQGAN, 3), 2)
RESIDUALS = partial(ResidualQuantizer, partial(GroupedQuantizer, STAGE, 2), 3)


def test_xqgan_is_a_product_of_residuals() -> None:
    """Its losses compare sums of stages with the latent: the mean of the first over stages, 0.25 times the sum of the
    second, and the mean over branches of both. Codes of a stage get the gradient of their own stage here."""
    quantizer = with_random_books(PRODUCTS())
    z, upstream = random(20, 12).requires_grad_(), random(20, 12)
    x = z.detach().clone().requires_grad_()
    last = [branch.stages[-1].codebook.vectors for branch in quantizer.groups]
    last_books, indices, values, losses = [], [], [], []
    for part, branch in zip(x.chunk(2, -1), quantizer.groups, strict=True):
        books = [stage.codebook.vectors.detach().clone() for stage in branch.stages]
        last_books.append(books[-1].requires_grad_())
        total, commitment, codebook = torch.zeros_like(part), 0, 0
        for book in books:
            chosen = (F.normalize(part.detach() - total.detach(), dim=-1) @ F.normalize(book, dim=-1).T).argmax(-1)
            total = total + book[chosen]
            codebook = codebook + F.mse_loss(total, part.detach()) / 3
            commitment = commitment + 0.25 * F.mse_loss(total.detach(), part)
            indices.append(chosen)
        values.append(part + (total - part).detach())
        losses.append(codebook + commitment)
    output, loss, value = quantizer(z), sum(losses) / 2, torch.cat(values, -1)
    assert torch.equal(output.indices, torch.stack(indices, -1))
    CLOSE(output.quantized, value)
    CLOSE(output.loss, loss)
    ours = torch.autograd.grad(output.loss + (output.quantized * upstream).sum(), [z, *last])
    theirs = torch.autograd.grad(loss + (value * upstream).sum(), [x, *last_books])
    CLOSE(ours, theirs)


def test_residuals_of_products_decode_at_any_depth() -> None:
    """Each group takes the nearest code of what is left over in its channels; levels are stage after stage."""
    quantizer, z = with_random_books(RESIDUALS()).eval(), random(20, 12)
    indices, total = quantizer.encode(z), torch.zeros_like(z)
    for depth, stage in enumerate(quantizer.stages, start=1):
        chosen = []
        for number, group in enumerate(stage.groups):
            left, codes = (z - total).chunk(2, -1)[number], group.codebook.vectors.detach()
            nearest = (left.unsqueeze(1) - codes).square().sum(-1).argmin(1)
            assert torch.equal(indices[:, 2 * depth - 2 + number], nearest)
            chosen.append(codes[nearest])
        total = total + torch.cat(chosen, -1)
        CLOSE(quantizer.decode(indices[:, : 2 * depth]), total)
        CLOSE(quantizer.decode(torch.where(torch.arange(6) < 2 * depth, indices, -1)), total)
    half = quantizer.decode(indices[:, :3])  # half a product adds its own channels alone
    CLOSE(half[:, :6], quantizer.decode(indices[:, :4])[:, :6])
    CLOSE(half[:, 6:], quantizer.decode(indices[:, :2])[:, 6:])


def test_products_of_residuals_decode_at_any_depth() -> None:
    """Levels are branch after branch: a depth is the first stages of every branch, and -1 for the others."""
    quantizer, z = with_random_books(PRODUCTS()).eval(), random(20, 12)
    indices = quantizer.encode(z)
    for depth in (1, 2, 3):
        cut = torch.where(torch.arange(6) % 3 < depth, indices, -1)
        branches = zip(quantizer.groups, indices.chunk(2, -1), strict=True)
        assert torch.equal(quantizer.decode(cut), torch.cat([b.decode(own[:, :depth]) for b, own in branches], -1))


@pytest.mark.parametrize("nested", [PRODUCTS, RESIDUALS])
def test_each_book_of_a_nest_is_reported(nested) -> None:
    quantizer, x = nested(), torch.randn(300, 12)
    quantizer.initialize([x])
    quantizer(x.requires_grad_())
    usage, health = CodebookUsage(quantizer.codebook_sizes), quantizer.health()
    usage.count(quantizer.eval().encode(x))
    figures = usage.compute()
    assert len(figures["usage_per_level"]) == len(figures["perplexity_per_level"]) == 6
    outer, inner = quantizer.member_name, next(iter(quantizer.members)).member_name
    sizes = [range(len(list(level.members))) for level in (quantizer, next(iter(quantizer.members)))]
    for one, other in itertools.product(*sizes):
        assert health[f"{outer}_{one}/{inner}_{other}/scale_ratio"] > 0


def test_branches_of_a_product_are_cut_at_one_depth() -> None:
    """`start_drop` 2 of 3 stages, the same draw for all branches."""
    build = partial(ResidualQuantizer, STAGE, 3, dropout=0.7, lengths=UniformLengths(2))
    kept = GroupedQuantizer(build, 2)(torch.randn(64, 5, 12)).indices >= 0
    first, second = kept.chunk(2, -1)
    assert torch.equal(first, second) and first[..., 1].all() and 0 < first[..., 2].float().mean() < 1
