"""Layouts: the tables of the papers' figures, and what holds of every table."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

import vqkit.layouts as layouts
from tests.refusals import refused
from vqkit import MultiRateQuantizer, MultiScaleQuantizer, Quantizer
from vqkit.layouts import Layout, Vocabulary


def drawn(layout: Layout) -> list[str]:
    """A row for each slot: the position at each step, a dot where no code stands."""
    rows = layout.table_positions.view(len(layout.table), -1).mT.tolist()
    return [" ".join("." if position < 0 else str(position) for position in row) for row in rows]


# ---- figures and examples, written out


@pytest.mark.parametrize(
    ("layout", "figure"),
    [
        (layouts.parallel(4, 3), ["0 1 2 3", "0 1 2 3", "0 1 2 3"]),
        # MusicGen, figure 1, from above: delay
        (layouts.delay(4, [0, 1, 2, 3]), ["0 1 2 3 . . .", ". 0 1 2 3 . .", ". . 0 1 2 3 .", ". . . 0 1 2 3"]),
        # its partial delay
        (layouts.delay(4, [0, 1, 1]), ["0 1 2 3 .", ". 0 1 2 3", ". 0 1 2 3"]),
        # text, meaning, sound of Moshi; unsorted, such as its second voice behind the first one's sound
        (layouts.delay(3, [0, 2, 1, 0]), ["0 1 2 . .", ". . 0 1 2", ". 0 1 2 .", "0 1 2 . ."]),
        # the examples of UnrolledPatternProvider in audiocraft, ends without a code left out
        (
            layouts.partial_flat(4, [1, 1, 1]),
            ["0 . . 1 . . 2 . . 3 . .", ". 0 . . 1 . . 2 . . 3 .", ". . 0 . . 1 . . 2 . . 3"],
        ),
        (layouts.partial_flat(4, [1, 2]), ["0 . 1 . 2 . 3 .", ". 0 . 1 . 2 . 3", ". 0 . 1 . 2 . 3"]),
        (layouts.partial_flat(4, [1, 2], delays=[0, 3]), ["0 1 2 . 3 . . .", ". . . 0 . 1 2 3", ". . . 0 . 1 2 3"]),
        # what MusicGen calls VALL-E, and with delays
        (layouts.coarse_first(3, [[0], [0, 0]]), ["0 1 2 . . .", ". . . 0 1 2", ". . . 0 1 2"]),
        (layouts.coarse_first(3, [[0], [0, 1]]), ["0 1 2 . . . .", ". . . 0 1 2 .", ". . . . 0 1 2"]),
        # two levels whose frames come as 0 3 1 4 2
        (layouts.stack_delay(5, 2), ["0 3 1 4 2 .", ". 0 3 1 4 2"]),
        # VAR at sides 1, 2: positions are scales
        (layouts.next_scale([(1, 1), (2, 2)]), ["0 1", ". 1", ". 1", ". 1"]),
    ],
)
def test_figures(layout: Layout, figure: list[str]) -> None:
    assert drawn(layout) == figure


@pytest.mark.parametrize(
    ("layout", "cells"),
    [
        (layouts.flat(2, 3), "c0 c1 c2 d0 d1 d2"),
        (layouts.coarse_first(2, [[0], [0], [0]]).flattened(), "c0 d0 c1 d1 c2 d2"),  # level after level
        (layouts.coarse_first(2, [[0, 0], [0]]).flattened(), "c0 c1 d0 d1 c2 d2"),  # stages of AudioLM
        (layouts.delay(2, [0, 1, 2]).flattened(), "c0 d0 c1 d1 c2 d2"),
        (layouts.multi_rate(2, [1, 2, 4]), "c0 c1 c2 c2 c1 c2 c2 d0 d1 d2 d2 d1 d2 d2"),  # a frame of Orpheus
        (layouts.multi_rate(1, [2, 3]), "c0 c1 c1 c0 c1"),  # begin at 0 1/2, and 0 1/3 2/3
    ],
)
def test_flat_figures(layout: Layout, cells: str) -> None:
    """Positions c, d, and levels."""
    found = zip(layout.table_positions.tolist(), layout.table_levels.tolist(), strict=True)
    assert " ".join(f"{'cd'[position]}{level}" for position, level in found) == cells


def test_indices_of_the_quantizers() -> None:
    """A frame of `MultiRateQuantizer` is what it interleaves, a step of `MultiScaleQuantizer` a scale."""
    code = functools.partial(Quantizer, "vq", dim=4, codebook_size=16)
    rates, scales = MultiRateQuantizer(code, [4, 2, 1]).eval(), MultiScaleQuantizer(code, [1, 2, 3]).eval()
    by_frame = rates.interleave(frames := rates.encode(torch.randn(2, 12, 4))).unbind(1)
    by_scale = (pictures := scales.encode(torch.randn(2, 3, 3, 4))).split([1, 4, 9], dim=1)
    for layout, quantizer, indices, expected in (
        (layouts.multi_rate(3, [1, 2, 4]), rates, frames, by_frame),
        (layouts.next_scale([(1, 1), (2, 2), (3, 3)]), scales, pictures, by_scale),
    ):
        vocabulary = Vocabulary.flat(quantizer.level_sizes)
        found = dict(layout.stream(layout.pack(indices, vocabulary).unbind(1), vocabulary))
        assert layout.num_levels == len(quantizer.level_sizes) and len(found) == len(expected) == 3
        assert all(torch.equal(found[position], codes) for position, codes in enumerate(expected))


def test_steps_of_the_patterns() -> None:
    """Four levels at twelve frames: the steps of MusicGen's patterns, T + max d, 4 T, 2 T."""
    assert len(layouts.parallel(12, 4).table) == 12
    assert len(layouts.delay(12, [0, 1, 2, 3]).table) == 15 and len(layouts.delay(12, [0, 2, 2, 5]).table) == 17
    assert len(layouts.flat(12, 4).table) == 48 == len(layouts.coarse_first(12, [[0, 0]] * 2).flattened().table)
    assert len(layouts.partial_flat(12, [1, 3]).table) == 24
    assert len(layouts.coarse_first(12, [[0], [0, 0, 0]]).table) == 24
    assert len(layouts.coarse_first(12, [[0], [0, 1, 2]]).table) == 26


def test_orpheus() -> None:
    """Seven tokens of a frame as Orpheus TTS decodes them, each with an offset of its place in the frame."""
    snac = layouts.multi_rate(3, [1, 2, 4])
    by_place = Layout(snac.table, snac.steps % 7, snac.positions)
    vocabulary = Vocabulary.flat([4096] * 7, special=["eos"], first=128266)
    indices = torch.randint(4096, (1, 21))
    tokens = by_place.pack(indices, vocabulary)[0].tolist()
    coarse, middle, fine = [], [], []
    for start in range(0, 21, 7):
        frame = [token - 128266 - 4096 * place for place, token in enumerate(tokens[start : start + 7])]
        coarse.append(frame[0])
        middle += [frame[1], frame[4]]
        fine += [frame[2], frame[3], frame[5], frame[6]]
    assert [*coarse, *middle, *fine] == indices[0].tolist()


def test_var_mask() -> None:
    """Each scale sees itself and those before, at sides 1, 2, 3: the mask of VAR, scale by scale."""
    layout = layouts.next_scale([(side, side) for side in (1, 2, 3)])
    expected = torch.zeros(14, 14, dtype=torch.bool)
    for begin, end in ((0, 1), (1, 5), (5, 14)):
        expected[begin:end, :end] = True
    assert torch.equal(layout.block_causal_mask(), expected)


def test_levels_of_scales_are_scale_by_scale() -> None:
    assert layouts.next_scale([(1,), (2,)], levels=2).levels.tolist() == [[0, 1], [2, 3], [2, 3]]


def test_stack_delay_separates_what_shares_a_step() -> None:
    """At 16 positions and 4 levels nothing in a step is closer than 3 positions, while delay has neighbours."""

    def closest(layout: Layout) -> int:
        rows = [[position for position in row if position >= 0] for row in layout.table_positions.tolist()]
        return min(abs(a - b) for row in rows for number, a in enumerate(row) for b in row[:number])

    assert closest(layouts.stack_delay(16, 4)) == 3 and closest(layouts.delay(16, [0, 1, 2, 3])) == 1


# ---- scans


def test_zigzag_is_that_of_jpeg() -> None:
    """ITU-T T.81, figure A.6."""
    assert layouts.zigzag(8, 8).tolist() == [
        [0, 1, 5, 6, 14, 15, 27, 28],
        [2, 4, 7, 13, 16, 26, 29, 42],
        [3, 8, 12, 17, 25, 30, 41, 43],
        [9, 11, 18, 24, 31, 40, 44, 53],
        [10, 19, 23, 32, 39, 45, 52, 54],
        [20, 22, 33, 38, 46, 51, 55, 60],
        [21, 34, 37, 47, 50, 56, 59, 61],
        [35, 36, 48, 49, 57, 58, 62, 63],
    ]


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16])
def test_hilbert_steps_to_neighbours(side: int) -> None:
    order = layouts.hilbert(side, side).flatten().argsort()
    row, column = order // side, order % side
    assert (row.diff().abs() + column.diff().abs() == 1).all()
    assert (row[0], column[0]) == (0, 0) and (row[-1], column[-1]) == (0, side - 1)
    for quarter in (row * 2 // side * 2 + column * 2 // side).split(max(side * side // 4, 1)):
        assert (quarter == quarter[0]).all()  # each quarter is left once


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_scans_are_orders(height: int, width: int, segments: int) -> None:
    whole = list(range(height * width))
    for scan in (layouts.raster, layouts.zigzag, layouts.hilbert):
        assert scan(height, width).shape == (height, width)
        assert sorted(scan(height, width).flatten().tolist()) == whole
    assert sorted(layouts.strided(height, segments).tolist()) == list(range(height))


def test_strided() -> None:
    assert layouts.strided(16, 4).argsort().tolist()[:6] == [0, 4, 8, 12, 1, 5]


# ---- what holds of every layout


@st.composite
def made(draw: st.DrawFn) -> Layout:
    """Any pattern, at any order of its positions, framed or not; empty ones too."""
    grid = draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    count = math.prod(grid)
    order = torch.tensor(draw(st.permutations(range(count))), dtype=torch.int64).view(grid)
    levels = draw(st.integers(1, 4))
    late = st.lists(st.integers(0, 5), min_size=1, max_size=3)
    groups = draw(st.lists(late, min_size=1, max_size=3))
    scales = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=2), max_size=3)
    builders = [
        lambda: layouts.flat(order),
        lambda: layouts.flat(order, levels),
        lambda: layouts.parallel(order, levels),
        lambda: layouts.delay(order, groups[0]),
        lambda: layouts.coarse_first(order, groups),
        lambda: layouts.partial_flat(order, [len(group) for group in groups], delays=[group[0] for group in groups]),
        lambda: layouts.partial_flat(count, [levels, 1]),
        lambda: layouts.stack_delay(count, levels),
        lambda: layouts.next_scale(draw(scales)),
        lambda: layouts.next_scale(draw(scales), levels),
        lambda: layouts.multi_rate(grid[0], [1 + delay for delay in groups[0]]),
    ]
    layout = draw(st.sampled_from(builders))()
    if draw(st.booleans()):
        layout = layout.flattened()
    if draw(st.booleans()):
        layout = layout.framed(["bos", "start"][: draw(st.integers(0, 2))], ["eos"])
    return layout


SPECIAL = ("pad", "bos", "eos", "start")


def vocabulary_of(layout: Layout, flat: bool) -> Vocabulary:
    sizes = [3 + 2 * level % 5 for level in range(max(layout.num_levels, 1))]
    return (Vocabulary.flat if flat else Vocabulary.by_level)(sizes, special=SPECIAL)


def sample(layout: Layout, vocabulary: Vocabulary, batch: int = 2) -> Tensor:
    sizes = torch.tensor(vocabulary.codebook_sizes)[layout.levels]
    return torch.randint(1 << 30, (batch, *layout.shape)) % sizes


@given(made(), st.booleans(), st.integers(0, 3), st.sampled_from([torch.int64, torch.int32, torch.int16, torch.uint8]))
@settings(max_examples=80, deadline=None)
def test_unpack_undoes_pack(layout: Layout, flat: bool, batch: int, dtype: torch.dtype) -> None:
    """Against the table read one by one; each cell comes once, and everything else is a special token."""
    vocabulary = vocabulary_of(layout, flat)
    indices = sample(layout, vocabulary, batch).to(dtype)
    tokens = layout.pack(indices, vocabulary)
    assert tokens.dtype == dtype and tokens.shape == (batch, *layout.table.shape)
    levels = layout.levels.flatten().tolist()
    for row, packed in zip(indices.flatten(1).tolist(), tokens.flatten(1).tolist(), strict=True):
        for cell, token in zip(layout.table.flatten().tolist(), packed, strict=True):
            if cell >= 0:
                assert token == row[cell] + vocabulary.offsets[levels[cell]]
            else:
                assert token == vocabulary.special[layout.special[-1 - cell]]
    found = layout.table[layout.table >= 0]
    assert sorted(found.tolist()) == list(range(len(levels)))
    unpacked = layout.unpack(tokens, vocabulary)
    assert unpacked.dtype == dtype and torch.equal(unpacked, indices)


@given(made(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_steps_and_ranges_are_those_of_the_table(layout: Layout, flat: bool) -> None:
    vocabulary = vocabulary_of(layout, flat)
    steps = {int(cell): step for step, row in enumerate(layout.table) for cell in row.view(-1) if cell >= 0}
    assert layout.steps.flatten().tolist() == [steps[cell] for cell in range(layout.levels.numel())]
    low, end = layout.token_ranges(vocabulary)
    tokens = layout.pack(sample(layout, vocabulary, 20), vocabulary)
    assert ((tokens >= low) & (tokens < end)).all()
    widths = torch.tensor(vocabulary.codebook_sizes)[layout.table_levels.clamp(min=0)]
    assert torch.equal(end - low, torch.where(layout.table >= 0, widths, 1))


@given(st.integers(0, 4), st.integers(1, 3), st.booleans(), st.data())
@settings(max_examples=50, deadline=None)
def test_a_table_is_valid_exactly_if_every_cell_comes_once(cells: int, slots: int, wide: bool, data) -> None:
    shape = (data.draw(st.integers(0, 3)), slots) if wide else (data.draw(st.integers(0, 6)),)
    entries = data.draw(
        st.one_of(
            st.lists(st.integers(-2, cells), min_size=math.prod(shape), max_size=math.prod(shape)),
            st.permutations([*range(cells), *[-1] * (math.prod(shape) - cells)]),
        )
    )[: math.prod(shape)]
    table, numbers = torch.tensor(entries, dtype=torch.int64), torch.arange(cells)
    if len(entries) < math.prod(shape):
        table = torch.cat([table, torch.full((math.prod(shape) - len(entries),), -1)])
    build = lambda: Layout(table.view(shape), numbers * 0, numbers)  # noqa: E731
    if sorted(entry for entry in entries if entry >= 0) == list(range(cells)) and min(entries, default=0) >= -1:
        build()
    else:
        with pytest.raises(ValueError, match=r"expected every cell once|expected numbers of"):
            build()


@given(made(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_stream(layout: Layout, flat: bool) -> None:
    """Every position once, whole, and at the first step by which all of it has been given."""
    vocabulary = vocabulary_of(layout, flat)
    indices = sample(layout, vocabulary)
    given_steps = []

    def generated():
        for step, tokens in enumerate(layout.pack(indices, vocabulary).unbind(1)):
            given_steps.append(step)
            yield tokens

    seen = []
    for position, codes in layout.stream(generated(), vocabulary):
        assert torch.equal(codes, indices[:, layout.positions == position])
        assert given_steps[-1] == layout.steps[layout.positions == position].max()
        seen.append(position)
    assert sorted(seen) == layout.positions.unique().tolist()


@given(made(), st.booleans(), st.data())
@settings(max_examples=30, deadline=None)
def test_logits(layout: Layout, flat: bool, data) -> None:
    """Each cell has those of its place and level; -inf where its level has no code, NaN where its step is missing."""
    vocabulary = vocabulary_of(layout, flat)
    steps = data.draw(st.integers(0, len(layout.table)))
    logits = torch.randn(2, steps, *layout.table.shape[1:], vocabulary.size + data.draw(st.integers(0, 2)))
    found = layout.unpack_logits(logits, vocabulary)
    sizes = [vocabulary.codebook_sizes[level] for level in layout.levels.flatten().tolist()]
    assert found.shape == (2, *layout.shape, max(sizes, default=0))
    for place, cell in enumerate(layout.table.flatten().tolist()):
        if cell < 0:
            continue
        own = found.flatten(1, -2)[:, cell]
        if layout.steps.flatten()[cell] >= steps:
            assert own.isnan().all()
            continue
        first = vocabulary.offsets[int(layout.levels.flatten()[cell])]
        assert torch.equal(own[:, : sizes[cell]], logits.flatten(1, -2)[:, place, first : first + sizes[cell]])
        assert (own[:, sizes[cell] :] == -torch.inf).all()


def test_logits_have_the_gradient_of_their_loss() -> None:
    layout, vocabulary = layouts.delay(3, [0, 1]), Vocabulary.by_level([4, 3])
    logits = torch.randn(2, 4, 2, vocabulary.size, dtype=torch.float64, requires_grad=True)
    indices = sample(layout, vocabulary)
    found = layout.unpack_logits(logits, vocabulary)
    torch.nn.functional.cross_entropy(found.flatten(0, -2), indices.flatten()).backward()
    expected = torch.zeros_like(logits)
    for batch in range(2):
        for frame in range(3):
            for level, size in enumerate((4, 3)):
                own = logits.detach()[batch, frame + level, level, :size].softmax(0)
                own[indices[batch, frame, level]] -= 1
                expected[batch, frame + level, level, :size] = own / 12
    torch.testing.assert_close(logits.grad, expected)


def test_packing_does_not_loop() -> None:
    """As many operators for one frame as for a hundred, and for one sample as for many."""

    class Count(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            self.calls += 1
            return function(*arguments, **(keywords or {}))

    def calls(frames: int, batch: int) -> int:
        layout, vocabulary = layouts.delay(frames, [0, 1, 2]), Vocabulary.flat([5, 6, 7])
        indices = sample(layout, vocabulary, batch)
        with Count() as count:
            count.calls = 0
            layout.unpack(layout.pack(indices, vocabulary), vocabulary)
        return count.calls

    assert calls(1, 1) == calls(100, 50)


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    layout, vocabulary = layouts.delay(5, [0, 1, 2]).framed(["bos"]), Vocabulary.flat([5, 6, 7])
    indices = sample(layout, vocabulary).cuda()
    tokens = layout.pack(indices, vocabulary)
    assert tokens.is_cuda and torch.equal(tokens.cpu(), layout.pack(indices.cpu(), vocabulary))
    assert torch.equal(layout.unpack(tokens, vocabulary), indices)
    logits = torch.randn(2, 4, 3, vocabulary.size)
    expected = layout.unpack_logits(logits, vocabulary)
    torch.testing.assert_close(layout.unpack_logits(logits.cuda(), vocabulary).cpu(), expected, equal_nan=True)
    for position, codes in layout.stream(tokens.unbind(1), vocabulary):
        assert codes.is_cuda and torch.equal(codes, indices[:, position])


# ---- vocabularies


def test_vocabularies() -> None:
    flat = Vocabulary.flat([4, 2, 3], special=["pad", "mask"], first=100)
    assert (flat.offsets, flat.special, flat.size) == ((100, 104, 106), {"pad": 109, "mask": 110}, 111)
    by_level = Vocabulary.by_level([4, 2, 6])
    assert (by_level.offsets, by_level.special, by_level.size) == ((0, 0, 0), {"pad": 6, "bos": 7, "eos": 8}, 9)
    assert Vocabulary.flat([4], special=[]).size == 4 and flat.name_of(110) == "mask" and flat.name_of(3) is None


def test_a_layout_asks_only_for_what_it_uses() -> None:
    """No pad without holes; levels beyond those of the layout are unused."""
    assert layouts.flat(2).pack(torch.tensor([[0, 1]]), Vocabulary.flat([2, 9], special=[])).tolist() == [[0, 1]]


# ---- mistakes

DELAY = layouts.delay(3, [0, 1])
TWO = Vocabulary.flat([4, 3])
TOKENS = DELAY.pack(torch.zeros(2, 3, 2, dtype=torch.int64), TWO)


def changed(batch: int, step: int, slot: int, token: int) -> Tensor:
    tokens = TOKENS.clone()
    tokens[batch, step, slot] = token
    return tokens


test_mistakes = refused(
    (
        lambda: DELAY.pack(torch.tensor([[[0, 0]] * 3, [[0, 0], [0, 3], [0, 0]]]), TWO),
        "indices holds 3 in sample 1 of the batch at step 2, slot 1 (level 1, position 1): expected 0 ... 2",
    ),
    (
        lambda: DELAY.pack(torch.full((1, 3, 2), -1), TWO),
        "indices holds -1 in sample 0 of the batch at step 0, slot 0 (level 0, position 0): expected 0 ... 3; pack "
        "samples without what is left out (-1)",
    ),
    (lambda: DELAY.pack(torch.zeros(2, 3), TWO), "indices has dtype torch.float32: expected integers"),
    (lambda: DELAY.pack([[[0, 0]] * 3], TWO), "indices is a builtins.list: expected a torch.Tensor"),
    (
        lambda: DELAY.pack(torch.zeros(2, 4, 2, dtype=torch.int64), TWO),
        "indices has shape (2, 4, 2): expected (B, 3, 2)",
    ),
    (
        lambda: DELAY.pack(
            torch.zeros(1, 3, 2, dtype=torch.uint8), Vocabulary.flat([250, 4], special=["x", "y", "pad"])
        ),
        "indices has dtype torch.uint8: tokens go up to 256",
    ),
    (lambda: DELAY.pack(TOKENS[:, :3], Vocabulary.flat([4])), "vocabulary has 1 codebook_sizes: expected 2"),
    (
        lambda: DELAY.framed(["bos"]).pack(TOKENS[:, :3], Vocabulary.flat([4, 3], special=["pad"])),
        "vocabulary has the special tokens ('pad',): the layout has ['bos'], too",
    ),
    (
        lambda: DELAY.unpack(changed(1, 2, 0, TWO.special["eos"]), TWO),
        "tokens holds 9, the special token 'eos', in sample 1 of the batch at step 2, slot 0 (level 0, position 2)",
    ),
    (
        lambda: DELAY.unpack(changed(0, 1, 1, 3), TWO),
        "tokens holds 3 in sample 0 of the batch at step 1, slot 1 (level 1, position 0): expected 4 ... 6",
    ),
    (lambda: DELAY.unpack(TOKENS[:, :3], TWO), "tokens has shape (2, 3, 2): expected (B, 4, 2)"),
    (
        lambda: list(layouts.flat(2).stream([torch.tensor([0]), torch.tensor([5])], Vocabulary.flat([4]))),
        "tokens holds 5, the special token 'bos', in sample 0 of the batch at step 1 (level 0, position 1)",
    ),
    (lambda: list(DELAY.stream([TOKENS[:, 0, 0]], TWO)), "tokens of step 0 has shape (2,): expected (B, 2)"),
    (lambda: list(DELAY.stream([TOKENS[:, 0], TOKENS[:1, 1]], TWO)), "tokens of step 1 are 1 samples: expected 2"),
    (lambda: DELAY.unpack_logits(torch.zeros(2, 4, 2, 10).long(), TWO), "expected floating point (B, n, 2, V)"),
    (lambda: DELAY.unpack_logits(torch.zeros(2, 4, 10), TWO), "logits has shape (2, 4, 10)"),
    (
        lambda: DELAY.unpack_logits(torch.zeros(2, 5, 2, 6), TWO),
        "logits has 5 steps and 6 tokens: expected at most 4, those of the layout, and at least 7",
    ),
    (lambda: layouts.delay(3, []), "delays is [[]]: expected a number for each level"),
    (lambda: layouts.delay(3, [0, -1]), "delays is [[0, -1]]: expected a number for each level, at least 0"),
    (lambda: layouts.parallel(3, 0), "levels is 0: expected at least 1"),
    (lambda: layouts.flat(3, 0), "levels is 0: expected at least 1"),
    (lambda: layouts.flat(-1), "the extent of the grid is (-1,)"),
    (lambda: layouts.flat(torch.tensor([0, 2])), "expected every number 0 ... 1 once"),
    (lambda: layouts.flat(torch.rand(3)), "positions has dtype torch.float32"),
    (lambda: layouts.partial_flat(3, [1, 0]), "groups is [1, 0]"),
    (lambda: layouts.partial_flat(3, [1, 2], delays=[1]), "delays is [1]: expected a number for each of 2 groups"),
    (lambda: layouts.next_scale([(1, 0)]), "scales is [(1, 0)]"),
    (lambda: layouts.multi_rate(3, [1, 0]), "rates is [1, 0]"),
    (lambda: layouts.strided(3, 0), "segments is 0"),
    (lambda: Layout(torch.tensor([0, 0]), *[torch.arange(2)] * 2), "cell 0 (level 0, position 0) 2 times"),
    (lambda: Layout(torch.tensor([0, 2]), *[torch.arange(2)] * 2), "table holds 0 ... 2"),
    (lambda: Layout(torch.tensor([0, -2]), *[torch.zeros(1).long()] * 2), "table holds -2 ... 0"),
    (lambda: Layout(torch.tensor([0]), torch.tensor([-1]), torch.tensor([0])), "levels holds -1"),
    (lambda: Layout(torch.tensor([0]), torch.tensor([0]), torch.tensor([[0]])), "twice the shape of one sample"),
    (lambda: DELAY.framed(["bos"]).pack(TOKENS[:, :3], Vocabulary.flat([4, 3], special=["bos"])), "['pad'], too"),
    (
        lambda: Layout(torch.tensor([0]), *[torch.tensor([0])] * 2, special=["bos"]),
        "special is ('bos',): expected different names, 'pad' first",
    ),
    (lambda: Vocabulary.flat([4, 0]), "codebook_sizes is (4, 0)"),
    (lambda: Vocabulary.by_level([]), "codebook_sizes is ()"),
    (lambda: Vocabulary([4, 4], [0], {}), "offsets is (0,): expected one number for each of 2"),
    (lambda: Vocabulary.flat([2**62, 2**62 + 1]), f"the largest token is {2**63 + 3}: expected one of int64"),
    (lambda: Vocabulary([4, 4], [0, 8], {"pad": 9}), "special token 'pad' is 9: the codes of level 1 are 8 ... 11"),
    (lambda: Vocabulary([4], [0], {"pad": 5, "bos": 5}), "special tokens 'pad' and 'bos' are both 5"),
    (lambda: Vocabulary([4], [0], {"pad": -1}), "special token 'pad' is -1: expected at least 0"),
    (lambda: Vocabulary.flat([4], special=["pad", "pad"]), "special is ('pad', 'pad'): expected every name once"),
    literal=True,
)


def test_holes_are_not_looked_at() -> None:
    assert torch.equal(DELAY.unpack(changed(0, 0, 1, 12345), TWO), DELAY.unpack(TOKENS, TWO))
