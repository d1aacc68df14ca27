"""Mixtures of codebooks: the invariants of AdaCode and M-AdaCode, and the bits of their files."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.refusals import refused
from vqkit import (
    FSQ,
    AttentionProjection,
    AudioTokenizer,
    ConvProjection2d,
    MixtureQuantizer,
    Projection,
    Quantizer,
    ResidualQuantizer,
    SignedWeights,
    SimplexWeights,
    WindowProjection2d,
    bake,
    first_levels,
)
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.bitstream import NearestNeighbour, TokenCodec
from vqkit.quantizers.mixture_weights import MixtureWeights
from vqkit.quantizers.subsets import rank_of_subsets, subsets_of_rank
from vqkit.surgery import prune

DIM, BOOKS = 8, 4
book = partial(Quantizer, "vq", dim=6, codebook_size=16)
WEIGHTS = [SimplexWeights(4), SignedWeights(8)]


def mixture(**arguments) -> MixtureQuantizer:
    torch.manual_seed(0)
    return MixtureQuantizer(**{"book": book, "num_books": BOOKS, "dim": DIM} | arguments)


def example(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------ the equation


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_the_sum_of_weighted_codes(weights: MixtureWeights) -> None:
    """y = sum over the m largest of w_i V_i Q_i(W_i z), and w within a level of its exact value."""
    quantizer, x = mixture(weights=weights).double().eval(), example(5, 7)
    valid = torch.ones(5, 7, dtype=torch.bool)
    scores = quantizer.weight_net(x, valid)
    simplex = isinstance(weights, SimplexWeights)
    for kept in range(1, BOOKS + 1):
        quantizer.kept = kept
        output = quantizer(x)
        levels = output.indices[..., BOOKS:]
        order = (scores if simplex else scores.abs()).topk(kept, -1).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)
        assert torch.equal(levels >= 0, chosen) and torch.equal(output.indices[..., :BOOKS] >= 0, chosen)
        if simplex:
            found, step = levels.double() / 15, 1 / 15
            exact = scores.exp() * chosen / (scores.exp() * chosen).sum(-1, keepdim=True)
            assert (levels.clamp(min=0).sum(-1) == 15).all()
        else:
            found, step = (levels - 128).double() / 32, 0.5 / 32
            exact = scores
        assert ((found - exact).abs()[chosen] <= step).all()
        expected = torch.zeros_like(x)
        for number, one in enumerate(quantizer.books):
            said = quantizer.project_out[number](one(quantizer.project_in[number](x, valid)).quantized, valid)
            expected += torch.where(chosen[..., number : number + 1], found[..., number : number + 1] * said, 0)
        torch.testing.assert_close(output.quantized, expected, rtol=0, atol=8 * 2**-52)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_a_weight_of_one_is_that_codebook_alone_bit_for_bit(weights: MixtureWeights) -> None:
    quantizer, x = mixture(weights=weights).eval(), example(6, 5).float()
    for number in range(BOOKS):
        with torch.no_grad():  # by a softmax of a difference of 200, and by scores of exactly 0 and 1
            quantizer.weight_net.linear.weight.zero_()
            quantizer.weight_net.linear.bias.zero_()
            quantizer.weight_net.linear.bias[number] = 200.0 if isinstance(weights, SimplexWeights) else 1.0
        valid = torch.ones(6, 5, dtype=torch.bool)
        alone = quantizer.books[number](quantizer.project_in[number](x, valid))
        output = quantizer(x)
        assert torch.equal(output.quantized, quantizer.project_out[number](alone.quantized, valid))
        assert torch.equal(output.indices[..., number], alone.indices)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@pytest.mark.parametrize("kept", [2, BOOKS])
def test_permuting_books_maps_and_weights_together_changes_nothing(weights: MixtureWeights, kept: int) -> None:
    quantizer, x = mixture(weights=weights, kept=kept).double().eval(), example(6, 5)
    before, order = quantizer(x), [2, 0, 3, 1]
    for name in ("books", "project_in", "project_out"):
        setattr(quantizer, name, torch.nn.ModuleList(getattr(quantizer, name)[number] for number in order))
    with torch.no_grad():
        for parameter in quantizer.weight_net.parameters():
            parameter.copy_(parameter[order].clone())
    after = quantizer(x)
    assert torch.equal(after.indices, before.indices[..., order + [BOOKS + number for number in order]])
    # A sum of four terms in another order.
    torch.testing.assert_close(after.quantized, before.quantized, rtol=0, atol=8 * 2**-52)


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_keeping_all_books_masks_nothing(weights: MixtureWeights) -> None:
    scores = example(50)[..., :BOOKS]
    values, levels = weights(scores, BOOKS)
    assert (levels >= 0).all()
    torch.testing.assert_close(weights.exact(scores, scores < math.inf), values, rtol=0, atol=1 / 15)
    assert torch.equal(weights(scores, torch.full((50, 1), BOOKS))[1], levels)


def test_parts_of_a_simplex_are_the_nearest_levels() -> None:
    """By brute force over all levels with that sum, in the largest distance and in the sum of squares."""
    weights = SimplexWeights(2)
    grid = torch.tensor([parts for parts in itertools.product(range(4), repeat=3) if sum(parts) == 3])
    scores = example(40)[..., :3]
    _, levels = weights(scores, 3)
    exact = 3 * scores.softmax(-1)
    best = (grid - exact.unsqueeze(-2)).square().sum(-1).amin(-1)
    torch.testing.assert_close((levels - exact).square().sum(-1), best)


def test_gradients_pass_the_levels_and_leave_out_what_is_masked() -> None:
    for weights in WEIGHTS:
        scores = example(20)[..., :BOOKS].requires_grad_()
        values, levels = weights(scores, 2)
        slope = example(20, seed=2)[..., :BOOKS]
        (found,) = torch.autograd.grad((values * slope).sum(), scores)
        (expected,) = torch.autograd.grad((weights.exact(scores, levels >= 0) * slope).sum(), scores)
        assert torch.equal(found, expected) and not found[levels < 0].any() and found[levels >= 0].any()


# ------------------------------------------------------------------ one model for all rates


def test_training_draws_the_number_of_books_uniformly() -> None:
    quantizer = mixture(dropout=1.0)
    x, counts = example(64, 3).float(), torch.zeros(BOOKS)
    for _ in range(10):
        used = (quantizer(x).indices[..., BOOKS:] >= 0).sum(-1)
        assert (used == used[:, :1]).all()  # one number for a sample
        counts += torch.bincount(used[:, 0] - 1, minlength=BOOKS)
    # 640 draws of a probability of 1/4: five standard deviations.
    assert ((counts - 160).abs() < 5 * math.sqrt(640 * 3 / 16)).all()
    assert (quantizer.eval()(x).indices >= 0).all()


def test_scores_have_no_gradient_where_a_simplex_has_one_corner() -> None:
    for kept in (1, 2):
        quantizer = mixture(kept=kept)
        quantizer(example(4, 30).float()).quantized.square().sum().backward()
        assert bool(quantizer.weight_net.linear.weight.grad.any()) == (kept == 2)


def test_a_book_learns_from_the_cells_that_keep_it() -> None:
    quantizer = mixture(book=partial(Quantizer, "ema", dim=6, codebook_size=16, maintenance=[]), kept=1)
    indices = quantizer(example(4, 30).float()).indices
    counts = [int((indices[..., number] >= 0).sum()) for number in range(BOOKS)]
    assert sum(counts) == 120
    assert [int(one.codebook.pending_counts.sum()) for one in quantizer.books] == counts


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
def test_bits_in_the_file_are_those_of_the_formula(weights: MixtureWeights) -> None:
    """The sum of log2 over what is written is the formula's, and coders write no more than their rounding."""
    quantizer = mixture(weights=weights, channel_dim=1).eval()
    x = example(2, 12, 16).float().movedim(-1, 1)
    cells, codec = 2 * 12 * 16, TokenCodec.of(quantizer)
    for kept in range(1, BOOKS + 1):
        quantizer.kept = kept
        sent = kept - 1 if isinstance(weights, SimplexWeights) else kept
        formula = math.log2(math.comb(BOOKS, kept)) + kept * math.log2(16) + sent * weights.bits
        assert quantizer.bits_per_token == pytest.approx(formula)
        indices = quantizer.encode(x)
        packed = codec.pack(indices, coder="mixed radix")
        assert packed.nominal_bits == pytest.approx(cells * formula)
        assert abs(8 * packed.payload_bytes - cells * formula) <= 64 * len(packed.header.packets)
        assert torch.equal(codec.unpack(packed.content).indices, indices)
        if kept != 2:  # C(4, m) is a power of two: each number is whole bits, and 192 of them whole bytes
            assert 8 * codec.pack(indices, coder="fixed width").payload_bytes == cells * formula
        assert codec.pack(indices).coded_bits <= packed.coded_bits
        assert torch.equal(quantizer.decode(indices), quantizer(x).quantized)


def test_books_of_several_levels_and_sizes_in_a_file() -> None:
    sizes = [partial(ResidualQuantizer, partial(book, codebook_size=size), 2) for size in (8, 16, 12)]
    quantizer = mixture(book=sizes, num_books=None, kept=2).eval()
    x, mask = example(2, 9).float(), torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    codec = TokenCodec.of(quantizer)
    for indices in (quantizer.encode(x), quantizer.encode(x, mask), quantizer.encode(x[:0]), quantizer.encode(x[0])):
        assert torch.equal(codec.unpack(codec.pack(indices).content).indices, indices)
    assert quantizer.bits_per_token == pytest.approx(math.log2(3) + 2 * 2 * 4 + 4)


def test_a_file_without_codes_is_read_whatever_the_reader_keeps() -> None:
    """Of masked cells alone, of no samples, and of cells that are all damaged."""
    quantizer, x = mixture(kept=2).eval(), example(1, 6).float()
    masked, none = quantizer.encode(x, torch.zeros(1, 6, dtype=torch.bool)), quantizer.encode(x[:0])
    codec = TokenCodec.of(quantizer)
    files = [codec.pack(indices).content for indices in (masked, none)]
    damaged = codec.pack(quantizer.encode(x))
    content = bytearray(damaged.content)
    content[damaged.header.offsets()[0]] ^= 1
    for kept in (1, 2.0, BOOKS):
        quantizer.kept = kept
        assert quantizer.bits_per_token == quantizer.bits(int(kept))
        assert torch.equal(codec.unpack(files[0]).indices, masked)
        assert codec.unpack(files[1]).indices.shape == none.shape
        assert torch.equal(codec.unpack(bytes(content), partial=True).indices, masked)


def test_a_damaged_file_leaves_whole_cells_out() -> None:
    quantizer = mixture(kept=2).eval()
    indices, codec = quantizer.encode(example(1, 40).float()), TokenCodec.of(quantizer)
    packed = codec.pack(indices, coder="fixed width", packet_cells=20)
    for place in (0, 3, -1):  # a subset, a code, a weight
        damaged = bytearray(packed.content)
        damaged[packed.header.offsets()[place] - (place < 0)] ^= 1
        found = codec.unpack(bytes(damaged), partial=True)
        lost = (found.indices < 0).all(-1)
        assert lost.sum() == 20 and torch.equal(found.indices[~lost], indices[~lost])
        filled = codec.unpack(bytes(damaged), partial=True, conceal=NearestNeighbour()).indices
        assert (filled[..., BOOKS:].clamp(min=0).sum(-1) >= 15).all()
        quantizer.decode(filled)


def test_what_no_file_holds() -> None:
    quantizer = mixture()
    indices, codec = quantizer.eval().encode(example(2, 9).float()), TokenCodec.of(quantizer)
    with pytest.raises(ValueError, match=r"indices has 5 levels: expected all 8.* set `kept`"):
        codec.pack(indices[..., :5])
    quantizer.kept = 2
    with pytest.raises(ValueError, match="different numbers of books, up to 4"):
        codec.pack(torch.cat([indices, quantizer.encode(example(2, 9).float())]))
    with pytest.raises(ValueError, match="was written by another tokenizer"):
        TokenCodec.of(mixture(weights=SimplexWeights(5))).unpack(codec.pack(indices).content)


def test_subsets_are_numbered_without_gaps() -> None:
    for count, size in [(1, 1), (5, 1), (5, 3), (6, 6)]:
        subsets = torch.tensor(
            [[place in found for place in range(count)] for found in itertools.combinations(range(count), size)]
        )
        rank = rank_of_subsets(subsets)
        assert sorted(rank.tolist()) == list(range(math.comb(count, size)))
        assert torch.equal(subsets_of_rank(rank, count, size), subsets)


# ------------------------------------------------------------------ maps, and what holds elsewhere


@pytest.mark.parametrize(
    "projection", [ConvProjection2d, partial(WindowProjection2d, num_groups=1, depth=2, num_heads=2, window_size=4)]
)
def test_maps_around_each_cell_see_nothing_that_is_left_out(projection) -> None:
    maps, x = projection(DIM, 3).double(), example(2, 5, 6)
    valid = torch.rand(2, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.7
    elsewhere = torch.where(valid.unsqueeze(-1), x, 100.0)
    assert maps(x, valid).shape == (2, 5, 6, 3)
    assert torch.equal(maps(x, valid), maps(elsewhere, valid))
    with pytest.raises(ValueError, match=r"expected a map \(B, H, W, dim\)"):
        maps(x[0], valid[0])


def test_adacode_of_maps_decodes_bit_for_bit() -> None:
    net = partial(WindowProjection2d, num_groups=1, depth=2, num_heads=2, window_size=4)
    quantizer = mixture(
        weights=SignedWeights(), weight_net=net, project_out=ConvProjection2d, dropout=1.0, channel_dim=1
    )
    x = example(2, 6, 5).float().movedim(-1, 1)
    output = quantizer(x)
    assert torch.equal(quantizer.decode(output.indices), output.quantized)  # of the m that training drew
    assert torch.equal(bake(quantizer).encode(x), quantizer.eval().encode(x))


def test_sound_takes_maps_of_single_vectors_alone() -> None:
    sizes = {"dim": DIM, "channels": 4, "strides": (2, 4)}
    ends = ConvEncoder1d(**sizes), ConvDecoder1d(**sizes)
    codec = AudioTokenizer(ends[0], mixture(channel_dim=1), ends[1], sample_rate=8000).eval()
    sound = torch.randn(1, 1, 320, generator=torch.Generator().manual_seed(0))
    assert codec.encode(sound).shape == (1, 40, 2 * BOOKS)
    assert codec.kbps == pytest.approx(1 * (4 * 4 + 4 * 4))
    with pytest.raises(ValueError, match="quantizer=MixtureQuantizer takes maps of one size"):
        quantizer = mixture(channel_dim=1, project_in=lambda a, b: AttentionProjection(8, 8), book=partial(book, dim=8))
        AudioTokenizer(ends[0], quantizer, ends[1], sample_rate=8000)


test_what_has_no_meaning_is_refused = refused(
    *(
        (lambda kept=kept: mixture(kept=kept), f"kept={kept}: expected how many books a cell keeps, 1 ... 4")
        for kept in (0, 5, 1.5, math.nan, math.inf)
    ),
    (
        lambda: mixture(book=[book, partial(ResidualQuantizer, book, 2)], num_books=None),
        r"book built quantizers of \[1, 2\] levels",
    ),
    (lambda: SimplexWeights(0), "bits=0: expected the bits of a weight"),
    (lambda: SignedWeights(math.nan), "bits=nan: expected the bits of a weight"),
    (lambda: SignedWeights(limit=0), "limit=0: expected the largest weight"),
    (lambda: mixture(weights=4), "weights=4: expected MixtureWeights"),
    (lambda: ConvProjection2d(2, 2, kernel_size=2), "kernel_size=2: expected an odd number"),
    (lambda: prune(mixture(), torch.ones(8, 16)), "prune got MixtureQuantizer: expected a Quantizer, or a Grouped"),
    (lambda: first_levels(mixture(), [1]).__enter__(), "levels=1 of MixtureQuantizer"),
)


def test_grids_can_be_books(tmp_path) -> None:
    quantizer = mixture(book=[partial(FSQ, [5, 4], dim=6), book], num_books=None, kept=1)
    x = example(3, 5).float()
    quantizer.kept = 2
    quantizer.save_pretrained(tmp_path)
    again = MixtureQuantizer.from_pretrained(tmp_path)
    assert again.kept == 2 and isinstance(again.weight_net, Projection)
    assert torch.equal(again.eval()(x).quantized, quantizer.eval()(x).quantized)
