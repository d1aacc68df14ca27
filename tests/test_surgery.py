"""Operations on trained codebooks: what they promise of vectors, indices and statistics, and what follows the map."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.refusals import refused
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    CodebookUsage,
    GaussianBottleneck,
    GroupedQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ResidualQuantizer,
    Search,
    Tokenizer,
    TokenShards,
    TokenShardWriter,
    bake,
    codebook_hash,
)
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.functional import unit
from vqkit.methods import METHODS
from vqkit.surgery import (
    CodeMap,
    Surgery,
    carry_embedding,
    carry_head,
    carry_optimizer,
    carry_shards,
    chain_order,
    grow,
    merge,
    most_used,
    principal_axis_order,
    prune,
    reorder,
    shrink,
    shrink_from_latents,
    split,
    transplant,
    usage_order,
    with_quantizer,
)

DIM, CODES = 8, 32
EPS = torch.finfo(torch.float32).eps


def latents(seed: int = 0, count: int = 4000) -> Tensor:
    """(N, 8) of uneven spread, so that codes differ in usage."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator) * torch.linspace(0.2, 2, DIM)


def trained(method: str = "ema", codebook_size: int = CODES, **arguments) -> Quantizer:
    quantizer = Quantizer(method, dim=DIM, codebook_size=codebook_size, **arguments)
    quantizer.initialize([latents()])
    return quantizer


def counts_of(quantizer: Quantizer, x: Tensor) -> Tensor:
    return torch.bincount(quantizer.encode(x), minlength=quantizer.codebook_size)


def error(quantizer: BaseQuantizer, indices: Tensor, x: Tensor) -> float:
    return (quantizer.decode(indices).double() - x.double()).square().sum(1).mean().item()


KINDS = {
    **{method: partial(trained, method) for method in METHODS if method != "fvq"},
    "projected": partial(trained, "vq", codebook_dim=4),
    "normalized": partial(trained, "vq", normalize=True),
    "cosine": partial(trained, "vq", search=Search("cosine")),
    "baked": lambda: bake(trained("simvq")),
    "baked keys": lambda: bake(trained("coda")),
}
CUT = {name: KINDS[name] for name in KINDS if name not in ("cascaded", "coda", "baked keys")}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("by", [usage_order, principal_axis_order, chain_order])
def test_another_order_decodes_to_the_same_bits(make: Callable[[], Quantizer], by: Callable, tmp_path: Path) -> None:
    quantizer, x = make(), latents(1)
    before = {name: value.clone() for name, value in quantizer.state_dict().items() if isinstance(value, Tensor)}
    surgery = reorder(quantizer, by)
    indices, moved = quantizer.encode(x), surgery.remap(quantizer.encode(x))
    table = quantizer.codebook()[surgery.maps[0].source]
    # Codes that a map computes are products, which may round in another way in another place.
    assert torch.equal(surgery.quantizer.codebook(), table) or quantizer.codebook.rows == "derived"
    torch.testing.assert_close(surgery.quantizer.decode(moved), quantizer.decode(indices))
    if quantizer.codebook.rows != "derived":
        assert torch.equal(surgery.quantizer.decode(moved), quantizer.decode(indices))
        assert torch.equal(surgery.quantizer.encode(x), moved)
    assert torch.equal(surgery.quantizer.codebook.usage, quantizer.codebook.usage[surgery.maps[0].source])
    assert sorted(surgery.maps[0].new.tolist()) == list(range(CODES))
    surgery.quantizer.save_pretrained(tmp_path)
    assert torch.equal(Quantizer.from_pretrained(tmp_path).encode(x), surgery.quantizer.encode(x))
    assert all(torch.equal(quantizer.state_dict()[name], value) for name, value in before.items())


def test_orders() -> None:
    usage = torch.tensor([1.0, 5.0, 5.0, 0.0])
    assert usage_order(torch.zeros(4, 2), usage).tolist() == [1, 2, 0, 3]
    line = torch.tensor([[3.0, 3.1], [0.0, 0.1], [2.0, 2.0], [1.0, 1.0]])
    assert principal_axis_order(line, usage).tolist() == chain_order(line, usage).tolist() == [1, 3, 2, 0]
    spiral = torch.tensor([[0.0, 0.0], [9.0, 0.0], [1.0, 0.0], [9.0, 1.0], [4.0, 0.0]])
    chain = chain_order(spiral, usage).tolist()
    left = set(range(5))
    for code, following in pairwise(chain):
        left.remove(code)
        assert (spiral[following] - spiral[code]).norm() == min((spiral[k] - spiral[code]).norm() for k in left)


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_shrink(make: Callable[[], Quantizer], tmp_path: Path) -> None:
    """Each old code goes to the nearest new one; encoding anew is no worse than the map; all of it is saved."""
    quantizer, x = make(), latents()
    counts = counts_of(quantizer, x)
    surgery = shrink(quantizer, 12, usage=counts)
    cut, (code_map,) = surgery.quantizer, surgery.maps
    assert type(cut) is type(quantizer) and cut.codebook_size == len(cut.codebook()) == 12
    assert (surgery.reports[0].before, surgery.reports[0].after) == (CODES, 12)
    spherical = quantizer.normalize or quantizer.search.metric == "cosine"
    old, new = quantizer.codebook().detach(), cut.codebook().detach().clone()
    points, centers = (unit(old), unit(new)) if spherical else (old, new)
    distances = torch.cdist(points.double(), centers.double())
    chosen = distances.gather(1, code_map.new[:, None]).squeeze(1)
    assert (chosen <= distances.amin(1) + 1e-5 * points.norm(dim=1)).all()  # 1e-5: that of a base that is solved for
    own = unit(quantizer.project_in(x)) if spherical else quantizer.project_in(x)
    of_map, of_search = (
        (own - centers[indices]).square().sum(1).mean() for indices in (code_map(quantizer.encode(x)), cut.encode(x))
    )
    assert of_search <= of_map or quantizer.search.metric == "dot"  # which is not the distance
    torch.testing.assert_close(cut.codebook.usage.sum(), quantizer.codebook.usage.sum())
    cut.save_pretrained(tmp_path)
    assert torch.equal(Quantizer.from_pretrained(tmp_path).encode(x), cut.encode(x))
    optimizer = torch.optim.SGD([*cut.parameters(), torch.zeros(1, requires_grad=True)], lr=0.1)
    for _ in range(2):  # statistics of the first step are folded in at the second
        output = cut(x.clone().requires_grad_())
        (output.loss + output.quantized.square().mean()).backward()
        optimizer.step()
    moved = not torch.equal(new, cut.codebook().detach())
    assert moved == (cut.codebook.trained_by != "nothing")


@pytest.mark.parametrize("make", CUT.values(), ids=CUT)
def test_as_many_codes_are_the_same_codes(make: Callable[[], Quantizer]) -> None:
    quantizer = make()
    surgery = shrink(quantizer, CODES, usage=torch.arange(float(CODES)))
    assert torch.equal(surgery.maps[0].new, torch.arange(CODES))
    # A mean of one is exact; on the sphere its length is divided out and multiplied in again.
    torch.testing.assert_close(surgery.quantizer.codebook(), quantizer.codebook(), rtol=8 * EPS, atol=8 * EPS)
    if not (quantizer.normalize or quantizer.search.metric == "cosine"):
        assert torch.equal(surgery.quantizer.codebook(), quantizer.codebook())


def test_shrink_minimises_what_usage_weighs() -> None:
    """The reported distortion is sum u |c - c'|^2 / sum u; it is less than without usage; unused codes count little."""
    quantizer, x = trained(), latents()
    counts = counts_of(quantizer, x).double() ** 2
    codes = quantizer.codebook().double()

    def weighted(surgery: Surgery) -> float:
        moved = codes - surgery.quantizer.codebook().double()[surgery.maps[0].new]
        return (counts @ moved.square().sum(1) / counts.sum()).item()

    ours, blind = shrink(quantizer, 8, usage=counts), shrink(quantizer, 8, usage=torch.ones(CODES))
    assert ours.reports[0].distortion == pytest.approx(weighted(ours), rel=1e-5)  # the usage is kept in float32
    assert weighted(ours) < weighted(blind)
    variance = counts @ (codes - counts @ codes / counts.sum()).square().sum(1) / counts.sum()
    assert ours.reports[0].relative_distortion == pytest.approx(weighted(ours) / variance.item(), rel=1e-5)
    few = torch.zeros(CODES)
    few[:8] = 100
    kept = shrink(quantizer, 8, usage=few)
    assert kept.reports[0].perplexity_before == pytest.approx(8) and kept.reports[0].distortion < 1e-3 * weighted(ours)
    assert kept.maps[0].source.tolist() == list(range(8))


def test_error_is_that_within_cells_and_that_of_the_codes() -> None:
    """For codes at the means of their cells: MSE of the map = MSE before + sum u |c - c'|^2 / N, to float64."""
    x = latents().double()
    quantizer = trained().double()
    for _ in range(200):  # until no vector changes its cell
        chosen = quantizer.encode(x)
        means = torch.zeros(CODES, DIM, dtype=torch.float64).index_add_(0, chosen, x)
        quantizer.codebook.vectors.copy_(means / torch.bincount(chosen, minlength=CODES)[:, None])
        if torch.equal(chosen, quantizer.encode(x)):
            break
    indices = quantizer.encode(x)
    surgery = shrink(quantizer, 10, usage=torch.bincount(indices, minlength=CODES))
    expected = error(quantizer, indices, x) + surgery.reports[0].distortion
    assert error(surgery.quantizer, surgery.remap(indices), x) == pytest.approx(expected, rel=1e-12)


def test_shrink_from_latents_is_nearer_to_them() -> None:
    quantizer, x = trained(), latents()
    codes = shrink(quantizer, 8, usage=counts_of(quantizer, x))
    fitted = shrink_from_latents(quantizer, [x], 8)
    assert error(fitted.quantizer, fitted.quantizer.encode(x), x) < error(codes.quantizer, codes.quantizer.encode(x), x)
    on_the_sphere = shrink_from_latents(trained("vq", normalize=True), [x], 8).quantizer.code_vectors()
    torch.testing.assert_close(on_the_sphere.norm(dim=1), torch.ones(8))


def residual() -> ResidualQuantizer:
    quantizer = ResidualQuantizer(partial(Quantizer, "ema", dim=DIM, codebook_size=CODES), 3)
    quantizer.initialize([latents()])
    return quantizer


def grouped() -> GroupedQuantizer:
    one, two = (partial(Quantizer, "ema", dim=4, codebook_size=size) for size in (CODES, 16))
    quantizer = GroupedQuantizer([one, two])
    quantizer.initialize([latents()])
    return quantizer


def test_residual_stages_are_cut_on_what_the_new_ones_leave(tmp_path: Path) -> None:
    quantizer, x = residual(), latents()
    surgery = shrink_from_latents(quantizer, [x], 12)
    rest = x
    for stage, cut in zip(quantizer.stages, surgery.quantizer.stages, strict=True):
        alone = shrink_from_latents(stage, [rest], 12).quantizer
        assert torch.equal(cut.codebook(), alone.codebook())
        rest = rest - alone.decode(alone.encode(rest))
    assert surgery.quantizer.codebook_sizes == (12, 12, 12) and surgery.quantizer.codebook_size == 12
    torch.testing.assert_close(surgery.quantizer.decode(surgery.quantizer.encode(x)), x - rest)
    indices = quantizer.encode(x)
    assert torch.equal(surgery.remap(indices[:, :2]), surgery.remap(indices)[:, :2])  # any prefix decodes
    surgery.quantizer.save_pretrained(tmp_path)
    again = ResidualQuantizer.from_pretrained(tmp_path)
    assert torch.equal(again.encode(x), surgery.quantizer.encode(x))


def cut_on_rank(rank: int, quantizer: ResidualQuantizer) -> list[Tensor]:
    share = latents()[2000 * rank :][:2000]
    surgery = shrink_from_latents(quantizer, [share], 12, samples=4000)
    return [stage.codebook() for stage in surgery.quantizer.stages]


@pytest.mark.slow
def test_ranks_cut_to_the_codes_of_one_process(rank_pair) -> None:
    quantizer = residual()
    first, second = rank_pair(cut_on_rank, quantizer)
    alone = shrink_from_latents(quantizer, [latents()], 12, samples=4000).quantizer
    for one, other, stage in zip(first, second, alone.stages, strict=True):
        assert torch.equal(one, other) and torch.equal(one, stage.codebook())


def test_groups_are_cut_one_by_one(tmp_path: Path) -> None:
    quantizer, x = grouped(), latents()
    usage = [counts_of(quantizer.groups[0], x[:, :4]), counts_of(quantizer.groups[1], x[:, 4:])]
    surgery = shrink(quantizer, [12, 6], usage=usage)
    for group, cut, size, counts in zip(quantizer.groups, surgery.quantizer.groups, (12, 6), usage, strict=True):
        assert torch.equal(cut.codebook(), shrink(group, size, usage=counts).quantizer.codebook())
    moved = surgery.remap(quantizer.encode(x))
    assert moved.shape == (len(x), 2) and moved.amax(0).tolist() == [11, 5]
    surgery.quantizer.save_pretrained(tmp_path)
    assert torch.equal(GroupedQuantizer.from_pretrained(tmp_path).encode(x), surgery.quantizer.encode(x))
    counted = CodebookUsage(quantizer.codebook_sizes)
    counted.update(quantizer.encode(x))
    assert torch.equal(shrink(quantizer, [12, 6], usage=counted.total_counts()).remap(quantizer.encode(x)), moved)
    fitted = shrink_from_latents(quantizer, [x], [12, 6])
    assert torch.equal(
        fitted.quantizer.groups[1].codebook(),
        shrink_from_latents(quantizer.groups[1], [x[:, 4:]], 6).quantizer.codebook(),
    )


@pytest.mark.parametrize("make", [trained, residual, grouped, partial(trained, "cascaded"), partial(trained, "coda")])
def test_pruning_is_lossless_on_the_data_of_the_counts(make: Callable[[], BaseQuantizer]) -> None:
    quantizer, x = make(), latents(2, 400)[:, :DIM]
    indices = quantizer.encode(x)
    columns = indices.reshape(len(x), -1).unbind(1)
    counts = [torch.bincount(one, minlength=size) for one, size in zip(columns, quantizer.codebook_sizes, strict=True)]
    for one in counts:
        one[3] = 0  # of which the vectors are left out
    some = torch.stack([column != 3 for column in columns]).all(0)
    surgery = prune(quantizer, counts if quantizer.level_axis else counts[0])
    assert surgery.quantizer.codebook_sizes == tuple(int((one > 0).sum()) for one in counts)
    assert min(surgery.quantizer.codebook_sizes) < max(quantizer.codebook_sizes)
    assert all(report.distortion == 0 for report in surgery.reports)
    assert torch.equal(surgery.quantizer.encode(x[some]), surgery.remap(indices[some]))
    torch.testing.assert_close(surgery.quantizer.decode(surgery.remap(indices[some])), quantizer.decode(indices[some]))


def test_what_is_kept() -> None:
    quantizer = trained()
    counts = torch.arange(float(CODES)) * 20
    kept = prune(quantizer, counts, keep=partial(most_used, codebook_size=4))
    assert kept.maps[0].source.tolist() == [28, 29, 30, 31]
    with pytest.warns(UserWarning, match="counts of 32 vectors for 32 codes"):
        assert prune(quantizer, torch.ones(CODES)).quantizer.codebook_size == CODES
    with pytest.raises(ValueError, match="keep leaves no code"):
        prune(quantizer, counts, keep=lambda counts: counts > 1e6)


@pytest.mark.parametrize("make", [trained, residual, grouped, partial(trained, "simvq")])
def test_growing_keeps_what_was_tokenized(make: Callable[[], BaseQuantizer]) -> None:
    quantizer, x = make(), latents()
    surgery = grow(quantizer, 100)
    indices = quantizer.encode(x)
    assert torch.equal(surgery.remap(indices), indices)
    torch.testing.assert_close(surgery.quantizer.decode(indices), quantizer.decode(indices))
    assert surgery.quantizer.codebook_sizes == (100,) * quantizer.num_codebooks
    old, new = (
        next(part for part in item.modules() if isinstance(part, Quantizer)) for item in (quantizer, surgery.quantizer)
    )
    torch.testing.assert_close(new.codebook.usage.sum(), old.codebook.usage.sum())
    assert len(new.codebook().detach().unique(dim=0)) == 100


def test_growing_splits_the_most_used_and_training_goes_on() -> None:
    quantizer, x = trained(), latents()
    surgery = grow(quantizer, CODES + 4)
    assert set(surgery.maps[0].source[CODES:].tolist()) <= set(usage_order(x, quantizer.codebook.usage)[:4].tolist())
    before = error(quantizer, quantizer.encode(x), x)
    for _ in range(100):
        surgery.quantizer(x)
    assert error(surgery.quantizer, surgery.quantizer.encode(x), x) < before
    twice = split(quantizer, [5, 5, 7])
    assert twice.maps[0].source[CODES:].tolist() == [5, 5, 7]
    usage = quantizer.codebook.usage
    torch.testing.assert_close(
        twice.quantizer.codebook.usage[[5, 32, 33, 34]], usage[[5, 5, 5, 7]] / usage.new_tensor([3, 3, 3, 2])
    )


def test_statistics_that_are_pending_follow() -> None:
    """A step after surgery folds what was observed before it: of merged codes the sum, of a split code a share."""
    quantizer, x = trained(), latents()
    quantizer(x)
    merged = shrink(quantizer, 12)
    code_map, book = merged.maps[0], quantizer.codebook
    expected = torch.zeros(12).index_add_(0, code_map.new, book.pending_counts)
    assert torch.equal(merged.quantizer.codebook.pending_counts, expected) and expected.sum() == len(x)
    sums = torch.zeros(12, DIM).index_add_(0, code_map.new, book.pending_sums)
    usage = 0.99 * merged.quantizer.codebook.usage + 0.01 * expected
    moved = merged.quantizer.codebook.vectors.clone()
    moved += 0.01 * (sums - expected[:, None] * moved) / usage[:, None]
    merged.quantizer.step()
    torch.testing.assert_close(merged.quantizer.codebook.vectors, moved)


def test_merging_and_transplanting() -> None:
    one, two = trained("ema", 16), trained("vq", 8)
    surgery, second = merge([one, two])
    assert torch.equal(surgery.quantizer.codebook(), torch.cat([one.codebook(), two.codebook()]).detach())
    x = latents(3)
    for part, own in zip((one, two), (surgery, second), strict=True):
        indices = part.encode(x)
        assert torch.equal(own.quantizer.decode(own.remap(indices)), part.decode(indices))
        assert own.quantizer is surgery.quantizer and own.codebook_hash == codebook_hash(part)
        # Of another quantizer's codes, each stands for the nearest.
        apart = torch.cdist(surgery.quantizer.codebook().double(), part.codebook().double())
        assert torch.equal(own.maps[0].source, apart.argmin(1))
    assert type(surgery.quantizer.codebook) is type(one.codebook)
    assert error(surgery.quantizer, surgery.quantizer.encode(x), x) <= error(one, one.encode(x), x)
    other = transplant(one, two.codebook().detach())
    assert torch.equal(other.quantizer.encode(x), two.encode(x)) and other.quantizer.codebook_size == 8
    distances = torch.cdist(one.codebook().double(), two.codebook().double())
    assert torch.equal(other.maps[0].new, distances.argmin(1))


class FixedSize(Quantizer):
    def __init__(self) -> None:
        super().__init__("ema", dim=DIM, codebook_size=CODES)


OF_FOUR = CodeMap(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1]))


def narrow() -> Quantizer:
    """SimVQ whose map has lost a dimension."""
    quantizer = trained("simvq")
    with torch.no_grad():
        quantizer.codebook.projector.weight[0] = 0
    return quantizer


test_refused = refused(
    (lambda: shrink(FixedSize(), 8), "FixedSize, whose constructor takes no codebook_size"),
    (lambda: shrink(FSQ([8, 5, 5]), 10), "fewer `levels`"),
    (lambda: shrink(LFQ(8), 10), "fewer `bits`"),
    (lambda: grow(BSQ(8), 1000), "fewer `bits`"),
    (lambda: prune(GaussianBottleneck(DIM), torch.ones(3)), "GaussianBottleneck"),
    (lambda: shrink(trained("cascaded"), 10), "another table than it searches"),
    (lambda: grow(trained("coda"), 40), "searches keys"),
    (lambda: reorder(trained("fvq"), usage_order), "bake the quantizer"),
    (lambda: shrink(residual(), 10), "shrink_from_latents"),
    (
        lambda: reorder(MultiScaleQuantizer(partial(Quantizer, "ema", dim=DIM, codebook_size=8), [1, 2]), usage_order),
        "operate on the quantizers inside",
    ),
    (lambda: split(residual(), [0]), "expected a Quantizer, one codebook"),
    (lambda: shrink(GroupedQuantizer(residual, 2), 10), "shrink_from_latents"),
    (lambda: shrink(trained(), 8, restarts=0), "restarts=0: expected at least 1"),
    (
        lambda: shrink(GroupedQuantizer(partial(trained, codebook_size=16), 2), 8, usage=torch.arange(16.0)),
        r"usage has shape \(16,\): expected counts of each of the 2 levels",
    ),
    (
        lambda: prune(trained(), torch.full((CODES,), 99.0), keep=lambda counts: counts.topk(4).indices),
        r"keep gave \(4,\) torch.int64: expected \(32,\) bool",
    ),
    (
        lambda: carry_embedding(torch.ones(4, 2), OF_FOUR, usage=torch.ones(3)),
        r"usage has shape \(3,\): expected \(4,\)",
    ),
    (lambda: carry_head(torch.ones(4, 2), torch.ones(3), OF_FOUR), r"bias has shape \(3,\): expected \(4,\)"),
    (lambda: shrink(trained(), 33), "expected 1 ... 32; `grow`"),
    (lambda: grow(trained(), 31), "use shrink"),
    (lambda: shrink(trained(), 8, usage=torch.ones(31)), r"usage has shape \(31,\): expected \(32,\)"),
    (lambda: shrink(grouped(), 8, usage=[torch.ones(32)]), "usage has 1 entries: expected 2, one for each level"),
    (lambda: shrink(trained(), 8, usage=-torch.ones(32)), "not negative"),
    (lambda: reorder(trained(), lambda codes, usage: usage.long()), "expected a permutation"),
    (lambda: split(trained(), [32]), r"expected \(M,\) indices in 0 ... 31"),
    (lambda: grow(trained(), 40, step=0.0), "step=0.0"),
    (lambda: merge([trained(), trained("vq", normalize=True)]), "expected one space"),
    (lambda: merge([]), "expected one at least"),
    (lambda: transplant(trained(), torch.zeros(4, 7)), r"expected finite \(K', 8\)"),
    (lambda: transplant(narrow(), latents(5, 10)), "its map gives no code vectors like these"),
)


def test_maps_of_counts_and_rows() -> None:
    merged = CodeMap(torch.tensor([0, 1, 0, 1]), torch.tensor([2, 1]))
    assert merged.count(torch.tensor([1.0, 2, 3, 4])).tolist() == [4, 6]
    rows = torch.tensor([[1.0], [2], [3], [4]])
    assert merged.average(rows).tolist() == [[2], [3]]
    assert merged.average(rows, torch.tensor([3.0, 0, 1, 0])).tolist() == [[1.5], [3]]
    assert merged(torch.tensor([[3, -1], [2, 0]])).tolist() == [[1, -1], [0, 0]]
    divided = CodeMap(torch.tensor([0, 1]), torch.tensor([0, 1, 1, 1]))
    assert divided.count(torch.tensor([5.0, 6])).tolist() == [5, 2, 2, 2]
    assert divided.average(rows[:2]).tolist() == [[1], [2], [2], [2]]
    with pytest.raises(ValueError, match="4"):
        merged(torch.tensor([4]))
    # The source of new code 2 became code 0, which stands for another: nobody is left with nothing.
    beside = CodeMap(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 0]))
    assert beside.count(torch.tensor([3.0, 5, 1])).tolist() == [4, 1, 4]
    assert carry_head(torch.ones(3, 2), None, beside)[1].exp().tolist() == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("call", [partial(shrink, codebook_size=8), partial(grow, codebook_size=40)])
def test_autocast_changes_nothing(call: Callable[..., Surgery]) -> None:
    quantizer = trained("simvq")
    with torch.autocast("cpu", torch.bfloat16):
        inside = call(quantizer)
    assert torch.equal(inside.quantizer.codebook(), call(quantizer).quantizer.codebook())


def test_what_does_not_train_stays_so() -> None:
    quantizer = trained("vq").requires_grad_(False)
    assert not shrink(quantizer, 8).quantizer.codebook.vectors.requires_grad


def test_moments_of_a_whole_row_follow() -> None:
    """Adafactor keeps a number for each row and one for each column."""
    quantizer = trained("vq")
    optimizer = torch.optim.Adafactor(quantizer.parameters())
    quantizer(latents()).loss.backward()
    optimizer.step()
    before = optimizer.state[quantizer.codebook.vectors]["row_var"].clone()
    surgery = reorder(quantizer, usage_order)
    carry_optimizer(optimizer, quantizer, surgery)
    assert torch.equal(optimizer.state[surgery.quantizer.codebook.vectors]["row_var"], before[surgery.maps[0].source])
    cut = shrink(surgery.quantizer, 8)
    carry_optimizer(optimizer, surgery.quantizer, cut)
    cut.quantizer(latents()).loss.backward()
    optimizer.step()


@pytest.mark.parametrize("make_optimizer", [torch.optim.AdamW, partial(torch.optim.SGD, momentum=0.9, lr=0.01)])
def test_an_optimizer_goes_on_where_it_was(make_optimizer: Callable) -> None:
    """Steps, another order, and more steps are the same steps without it, row by row."""
    ours, plain = trained("vq"), trained("vq")
    ours_optimizer, optimizer = make_optimizer(ours.parameters()), make_optimizer(plain.parameters())

    def steps(quantizer: Quantizer, optimizer: torch.optim.Optimizer, first: int) -> None:
        for seed in range(first, first + 3):
            optimizer.zero_grad()
            quantizer(latents(seed, 256)).loss.backward()
            optimizer.step()

    steps(ours, ours_optimizer, 0), steps(plain, optimizer, 0)
    surgery = reorder(ours, chain_order)
    carry_optimizer(ours_optimizer, ours, surgery)
    steps(surgery.quantizer, ours_optimizer, 3), steps(plain, optimizer, 3)
    # Sums over the vectors of a code run in the same order; only rows have moved.
    torch.testing.assert_close(surgery.quantizer.codebook(), plain.codebook()[surgery.maps[0].source])
    halves = split(plain, [4])
    state = {name: value.clone() for name, value in optimizer.state[plain.codebook.vectors].items() if value.ndim == 2}
    carry_optimizer(optimizer, plain, halves)
    for name, value in state.items():
        after = optimizer.state[halves.quantizer.codebook.vectors][name]
        assert torch.equal(after, torch.cat([value, value[4:5]]))
    assert plain.codebook.vectors not in optimizer.state


def test_language_models_follow() -> None:
    """Rows of merged codes are averaged by usage, and their probabilities add up where the rows were equal."""
    code_map = CodeMap(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1]))
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(7, 3, generator=generator), torch.randn(7, generator=generator)
    usage = torch.tensor([1.0, 1, 3, 0])
    cut = carry_embedding(weight, code_map, usage=usage, first=2)
    assert torch.equal(cut[[0, 1, 4]], weight[[0, 1, 6]])
    torch.testing.assert_close(cut[2:4], torch.stack([(weight[2] + 3 * weight[4]) / 4, weight[3]]))
    weight[4], weight[5] = weight[2], weight[3]
    hidden = torch.randn(5, 3, generator=generator)
    new_weight, new_bias = carry_head(weight, bias, code_map, usage=usage, first=2)
    old = (hidden @ weight.T + bias).softmax(-1)
    new = (hidden @ new_weight.T + new_bias).softmax(-1)
    torch.testing.assert_close(
        new, torch.stack([old[:, 0], old[:, 1], old[:, 2] + old[:, 4], old[:, 3] + old[:, 5], old[:, 6]], 1)
    )
    halves = CodeMap(torch.arange(7), torch.tensor([*range(7), 3]))
    grown = (hidden @ carry_head(weight, None, halves)[0].T + carry_head(weight, None, halves)[1]).softmax(-1)
    plain = (hidden @ weight.T).softmax(-1)
    torch.testing.assert_close(grown[:, 3] + grown[:, 7], plain[:, 3])
    torch.testing.assert_close(grown[:, 3], grown[:, 7])
    with pytest.raises(ValueError, match="weight has 7 rows"):
        carry_embedding(weight, code_map, first=4)


@pytest.mark.parametrize("make", [trained, grouped])
def test_shards_follow(make: Callable[[], BaseQuantizer], tmp_path: Path) -> None:
    quantizer = make()
    counts = [torch.arange(float(size)) * 25 for size in quantizer.codebook_sizes]
    surgery = prune(quantizer, counts if quantizer.level_axis else counts[0])
    indices = quantizer.encode(latents(4, 60).reshape(6, 10, DIM))
    indices[2, 3] = -1
    names = [f"sample {number}" for number in range(6)]
    with TokenShardWriter(tmp_path / "old", quantizer, data_hash="mine", class_names=["a", "b"]) as writer:
        writer.add(indices, names, labels=[0, 1, 0, 1, 0, 1])
    for _ in range(2):  # what is there already is left as it is
        carry_shards(tmp_path / "old", tmp_path / "new", surgery, tokenizer="tokenizer")
    shards = TokenShards(tmp_path / "new")
    shards.verify()
    assert shards.names == names and shards.codebook_hash == codebook_hash(surgery.quantizer)
    assert shards.codebook_sizes == surgery.quantizer.codebook_sizes and shards.class_names == ("a", "b")
    assert all(torch.equal(shards[n]["indices"], surgery.remap(indices)[n]) for n in range(6))
    assert [shards[n]["label"] for n in range(6)] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(ValueError, match="that of the quantizer that was cut"):
        carry_shards(tmp_path / "new", tmp_path / "third", surgery)


def carry_on_rank(rank: int, directory: Path, surgery: Surgery) -> None:
    carry_shards(directory / "old", directory / "new", surgery)


def test_ranks_share_the_shards_out(tmp_path: Path, rank_pair) -> None:
    quantizer = trained()
    surgery = reorder(quantizer, usage_order)
    with TokenShardWriter(tmp_path / "old", quantizer) as writer:
        writer.add(torch.arange(5)[:, None], list("abcde"))
    rank_pair(carry_on_rank, tmp_path, surgery)
    shards = TokenShards(tmp_path / "new")
    assert torch.equal(torch.cat([sample["indices"] for sample in shards]), surgery.maps[0](torch.arange(5)))
    assert shards.names == list("abcde")


def test_shards_of_pictures_keep_their_extents(tmp_path: Path) -> None:
    quantizer = trained()
    surgery = reorder(quantizer, usage_order)
    with TokenShardWriter(tmp_path / "old", quantizer) as writer:
        for name, height in (("a", 2), ("b", 3)):
            writer.add(torch.full((1, height, 4), height), [name], extents=[[8 * height, 32]])
    carry_shards(tmp_path / "old", tmp_path / "new", surgery)
    sample = TokenShards(tmp_path / "new")[1]
    assert sample["extent"].tolist() == [24, 32]
    assert torch.equal(sample["indices"], surgery.maps[0](torch.full((3, 4), 3)))


def test_a_tokenizer_with_another_quantizer(tmp_path: Path) -> None:
    backbone = {"dim": DIM, "channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 4}
    quantizer = Quantizer("ema", dim=DIM, codebook_size=CODES, channel_dim=1)
    tokenizer = Tokenizer(ConvEncoder2d(**backbone), quantizer, ConvDecoder2d(**backbone))
    surgery = shrink(tokenizer.quantizer, 4)
    cut = with_quantizer(tokenizer, surgery.quantizer)
    x = 2 * torch.rand(1, 3, 16, 16) - 1
    assert cut.eval().encode(x).max() < 4 and tokenizer.quantizer.codebook_size == CODES
    cut.save_pretrained(tmp_path)
    assert torch.equal(Tokenizer.from_pretrained(tmp_path).eval().decode(cut.encode(x)), cut.decode(cut.encode(x)))
    assert not {id(p) for p in cut.parameters()} & {id(p) for p in tokenizer.parameters()}
    with pytest.raises(ValueError, match="expected 8 and 1"):
        with_quantizer(tokenizer, Quantizer("vq", dim=4, codebook_size=4, channel_dim=1))
