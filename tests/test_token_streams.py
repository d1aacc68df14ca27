"""Token shards on their way to a training loop: streams, windows, packed sequences, and joining."""

import json
import os
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from tests.refusals import refused
from vqkit import (
    FSQ,
    PackedTokens,
    ResidualQuantizer,
    TokenShards,
    TokenShardWriter,
    TokenStream,
    TokenWindows,
    codebook_hash,
    distributed,
    layouts,
    pad_tokens,
)

QUANTIZER = FSQ([5, 5])
LENGTHS = [7, 3, 11, 4, 1]


def numbered(count: int) -> list[dict[str, int]]:
    return [{"number": number} for number in range(count)]


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch["number"].tolist()]


def codes(*shape: int, first: int = 0) -> torch.Tensor:
    """No two neighbours alike, and all in range."""
    return ((torch.arange(torch.Size(shape).numel()) + first) % 25).reshape(shape)


@pytest.fixture
def recordings(tmp_path) -> TokenShards:
    """Sequences of `LENGTHS`, of two classes, in two shards."""
    with TokenShardWriter(tmp_path, QUANTIZER, class_names=["a", "b"], samples_per_shard=3) as writer:
        for number, length in enumerate(LENGTHS):
            writer.add(codes(1, length, first=number), [f"{number}.wav"], labels=[number % 2])
    return TokenShards(tmp_path)


# ---- shares and order


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"), [(24, 4, 3), (23, 4, 3), (25, 4, 2), (9, 1, 4), (7, 9, 1)]
)
def test_ranks_share_an_epoch(count, batch_size, world_size, drop_last):
    joint = batch_size * world_size
    if drop_last and count < joint:
        with pytest.raises(
            ValueError, match=f"samples has {count}: expected .* batch of each rank, {joint}, with drop"
        ):
            TokenStream(numbered(count), batch_size=batch_size, drop_last=True)
        return
    options = {"batch_size": batch_size, "drop_last": drop_last, "world_size": world_size}
    streams = [TokenStream(numbered(count), rank=rank, **options) for rank in range(world_size)]
    batches = [list(stream) for stream in streams]
    sizes = [[len(batch["number"]) for batch in of_rank] for of_rank in batches]
    assert all(of_rank == sizes[0] for of_rank in sizes) and len(sizes[0]) == len(streams[0])
    found = sorted(number for of_rank in batches for number in numbers(of_rank))
    if drop_last:
        assert len(found) == len(set(found)) == count // joint * joint
    else:
        assert set(found) == set(range(count)) and len(found) == count + -(count % joint) % world_size


def test_more_ranks_than_samples_all_have_a_batch():
    streams = [TokenStream(numbered(2), batch_size=3, seed=None, rank=rank, world_size=5) for rank in range(5)]
    assert [numbers(stream) for stream in streams] == [[0], [1], [0], [1], [0]]


def test_order_follows_seed_and_epoch():
    def order(seed: int | None, epoch: int) -> list[int]:
        stream = TokenStream(numbered(50), batch_size=8, seed=seed)
        stream.set_epoch(epoch)
        return numbers(stream)

    assert order(None, 3) == list(range(50))
    assert order(1, 0) == order(1, 0)
    orders = [order(0, 0), order(0, 1), order(1, 0), list(range(50))]
    assert len({tuple(one) for one in orders}) == 4 and all(sorted(one) == orders[3] for one in orders)


def test_workers_change_nothing_and_keep_the_epoch():
    """Persistent workers have a copy of the stream, made before `set_epoch`."""
    alone, shared = (TokenStream(numbered(23), batch_size=4) for _ in range(2))
    loader = DataLoader(shared, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        for stream in (alone, shared):
            stream.set_epoch(epoch)
        wanted = list(alone)
        found = list(loader)
        assert numbers(found) == numbers(wanted)
        assert [batch["state"] for batch in found] == [batch["state"] for batch in wanted]
    assert len(loader) == len(found) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_goes_on_at_the_sample(workers):
    """Behind two workers that are ahead; then under other ranks, with another batch size, through JSON."""
    first = TokenStream(numbered(40), batch_size=4)
    first.set_epoch(2)
    loop = iter(DataLoader(first, batch_size=None, num_workers=workers))
    seen = [next(loop) for _ in range(3)]
    state = json.loads(json.dumps(seen[-1]["state"]))
    rest = []
    for rank in range(2):
        stream = TokenStream(numbered(40), batch_size=7, rank=rank, world_size=2)
        stream.load_state_dict(state)
        assert stream.epoch == 2 and len(stream) == 2
        stream.set_epoch(2)
        batches = list(stream)
        rest += numbers(batches)
        assert batches[-1]["state"] == {"epoch": 3, "consumed": 0, "samples": 40, "seed": 0}
    assert sorted(numbers(seen) + rest) == list(range(40))
    same = TokenStream(numbered(40), batch_size=4)
    same.load_state_dict(state)
    first.set_epoch(3)
    first.set_epoch(2)
    assert numbers(same) == numbers(first)[12:]


def test_state_of_another_run_is_refused():
    stream = TokenStream(numbered(8), batch_size=2)
    state = next(iter(stream))["state"]
    for change, message in [
        ({"samples": 9}, "state has samples=9, this stream has samples=8"),
        ({"seed": None}, "state has seed=None, this stream has seed=0"),
        ({"consumed": 8}, "expected epoch >= 0 and 0 <= consumed < 8"),
        ({"consumed": 1.5}, "expected epoch >= 0 and 0 <= consumed < 8"),
        ({"epoch": "1"}, "expected epoch >= 0 and 0 <= consumed < 8"),
        ({"other": 1}, r'expected batch\["state"\]'),
    ]:
        with pytest.raises(ValueError, match=message):
            stream.load_state_dict(state | change)
    assert numbers(stream) == numbers(TokenStream(numbered(8), batch_size=2))


test_a_stream_that_cannot_be_is_refused = refused(
    (lambda: TokenStream(numbered(4), batch_size=0), "batch_size=0: expected at least 1"),
    (lambda: TokenStream(numbered(4), batch_size=2, seed=-1), "seed=-1: expected at least 0"),
    (lambda: TokenStream(numbered(4), batch_size=2, rank=0), "rank=0, world_size=None: expected both"),
    (
        lambda: TokenStream(numbered(4), batch_size=2, rank=2, world_size=2),
        r"rank=2: expected 0 \.\.\. world_size - 1 = 1",
    ),
    (lambda: TokenStream([], batch_size=2), "samples has 0: expected at least one"),
    (lambda: TokenStream(numbered(4), batch_size=2).set_epoch(-1), "epoch=-1: expected at least 0"),
)


def stream_on_rank(rank: int) -> list[int]:
    return numbers(TokenStream(numbered(12), batch_size=3, seed=None))


@pytest.mark.slow
def test_ranks_are_those_of_the_process_group(rank_pair):
    assert rank_pair(stream_on_rank) == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]


def test_a_stream_older_than_the_process_group_is_refused(monkeypatch):
    early = TokenStream(numbered(4), batch_size=2)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    message = r"made for 1 processes, and there are 2: make it after .*init_process_group"
    workers = DataLoader(early, batch_size=None, num_workers=1)  # forked: it sees the group, too
    for use in (lambda: iter(early), lambda: early.set_epoch(0), lambda: list(workers)):
        with pytest.raises(RuntimeError, match=message):
            use()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_loader_that_keeps_positions_of_workers_goes_on(monkeypatch, workers):
    """As the StatefulDataLoader of torchdata does: it sets the state of an iterator which began anew, in epoch 0."""
    stream, other = (TokenStream(numbered(40), batch_size=4) for _ in range(2))
    stream.set_epoch(1)
    for worker in range(workers):
        place = SimpleNamespace(id=worker, num_workers=workers)
        monkeypatch.setattr("vqkit.tokens.stream.get_worker_info", lambda place=place: place)
        batches = iter(stream)
        next(batches)
        state = json.loads(json.dumps(batches.state_dict()))
        again = iter(other)
        again.load_state_dict(state)
        rest = list(batches)
        assert rest and numbers(again) == numbers(rest)
        with pytest.raises(ValueError, match="the loader's state has joint=4, here joint=3"):
            iter(TokenStream(numbered(40), batch_size=3)).load_state_dict(state)


# ---- joining


def test_samples_of_any_size_are_padded(recordings):
    batch = next(iter(DataLoader(recordings, batch_size=3, collate_fn=pad_tokens)))
    assert batch["indices"].shape == (3, 11) and batch["shapes"].tolist() == [[7], [3], [11]]
    assert batch["name"] == ["0.wav", "1.wav", "2.wav"] and batch["label"].tolist() == [0, 1, 0]
    for row, sample in enumerate(recordings[number] for number in range(3)):
        assert torch.equal(batch["indices"][row][batch["mask"][row]], sample["indices"])
    assert (batch["indices"][~batch["mask"]] == -1).all()
    grids = pad_tokens([{"indices": codes(2, 3, 1)}, {"indices": codes(3, 2, 1)}])
    assert grids["indices"].shape == grids["mask"].shape == (2, 3, 3, 1)
    assert grids["indices"][0, 2].eq(-1).all() and torch.equal(grids["indices"][1, :, :2], codes(3, 2, 1))


# ---- windows


@pytest.mark.parametrize(("size", "stride"), [(4, None), (4, 1), (4, 3), (20, None), (1, None)])
def test_windows_of_sequences_hold_every_index(recordings, size, stride):
    windows = TokenWindows(recordings, (size,), stride=stride and (stride,))
    covered = {name: set() for name in recordings.names}
    for window in (windows[number] for number in range(len(windows))):
        start, whole = int(window["start"]), recordings[recordings.names.index(window["name"])]
        assert len(window["indices"]) == min(size, len(whole["indices"]))
        assert torch.equal(window["indices"], whole["indices"][start : start + size])
        assert window["label"] == whole["label"]
        covered[window["name"]].update(range(start, start + len(window["indices"])))
    assert [len(covered[name]) for name in recordings.names] == LENGTHS
    assert len(windows) == sum(1 + -(-max(length - size, 0) // (stride or size)) for length in LENGTHS)
    with pytest.raises(IndexError, match=f"index={len(windows)}: expected 0"):
        windows[len(windows)]


def test_windows_of_grids(tmp_path):
    quantizer = FSQ([5, 5])
    grids = {"a.png": codes(5, 7), "b.png": codes(4, 2)}
    with TokenShardWriter(tmp_path, quantizer) as writer:
        for name, grid in grids.items():
            writer.add(grid[None], [name], extents=[[4 * grid.shape[0], 4 * grid.shape[1]]])
    windows = TokenWindows(TokenShards(tmp_path), (4, 4), stride=(2, 2))
    starts = [(window["name"], *window["start"].tolist()) for window in (windows[n] for n in range(len(windows)))]
    assert starts == [("a.png", y, x) for y in (0, 1) for x in (0, 2, 3)] + [("b.png", 0, 0)]
    for number, (name, y, x) in enumerate(starts):
        assert torch.equal(windows[number]["indices"], grids[name][y : y + 4, x : x + 4])
        assert "extent" not in windows[number]
    for options, message in [
        ({"size": (4, 4, 4)}, r"size=\(4, 4, 4\): expected one to 2 numbers"),
        ({"size": (0,)}, r"size=\(0,\): expected"),
        ({"size": (4, 4), "stride": (2,)}, r"stride=\(2,\): expected one number for each of size=\(4, 4\)"),
        ({"size": (4,), "stride": (5,)}, r"stride=\(5,\): expected .* 1 up to it"),
    ]:
        with pytest.raises(ValueError, match=message):
            TokenWindows(TokenShards(tmp_path), **options)


# ---- packed sequences


def framed(shape: tuple[int, ...]) -> layouts.Layout:
    return layouts.flat(*shape).framed(["bos"], ["eos"])


VOCABULARY = layouts.Vocabulary.flat([25])


@pytest.mark.parametrize("length", [1, 4, 9, 100])
@pytest.mark.parametrize("seed", [None, 3])
def test_packed_sequences_are_the_samples_in_a_row(recordings, length, seed):
    packed = PackedTokens(recordings, framed, VOCABULARY, length=length, seed=seed)
    sequences = [packed[number] for number in range(len(packed))]
    assert all(len(sequence[key]) == length for sequence in sequences for key in sequence)
    joined = {key: torch.cat([sequence[key] for sequence in sequences]) for key in sequences[0]}
    end = sum(LENGTHS) + 2 * len(LENGTHS)
    assert len(packed) == -(-end // length)
    assert (joined["tokens"][end:] == VOCABULARY.special["pad"]).all()
    assert all((joined[key][end:] == -1).all() for key in ("documents", "steps", "labels"))
    pad_free = {key: tensor[:end] for key, tensor in joined.items()}
    begins = [*(pad_free["steps"] == 0).nonzero().flatten().tolist(), end]
    found = []
    for first, last in pairwise(begins):
        tokens, steps, labels = (pad_free[key][first:last] for key in ("tokens", "steps", "labels"))
        assert steps.tolist() == list(range(last - first)) and tokens[0] == VOCABULARY.special["bos"]
        indices = framed((last - first - 2,)).unpack(tokens[None], VOCABULARY)[0]
        found.append((indices.tolist(), labels.unique().item()))
    wanted = [(sample["indices"].tolist(), sample["label"]) for sample in recordings]
    assert sorted(found) == sorted(wanted) and (found == wanted) == (seed is None)
    for sequence in sequences:  # documents change where, and only where, a sample begins
        documents, steps = sequence["documents"], sequence["steps"]
        assert documents[0] == 0 and torch.equal(documents[1:] - documents[:-1] == 1, steps[1:] == 0)


def test_levels_in_slots_are_packed_and_what_is_left_out_is_refused(tmp_path):
    levels = ResidualQuantizer(lambda: FSQ([5, 5]), num_stages=2)
    samples = [codes(1, length, 2, first=length) for length in (5, 2)]
    samples.append(torch.full((1, 4, 2), -1))
    with TokenShardWriter(tmp_path, levels) as writer:
        for name, sample in zip("abc", samples, strict=True):
            writer.add(sample, [name])
    vocabulary = layouts.Vocabulary.by_level([25, 25])
    made = {length: layouts.delay(length, [0, 1]) for length in (5, 2, 4)}
    packed = PackedTokens(TokenShards(tmp_path), lambda shape: made[shape[0]], vocabulary, length=9, seed=None)
    wanted = torch.cat([made[sample.shape[1]].pack(sample, vocabulary)[0] for sample in samples[:2]])
    assert torch.equal(packed[0]["tokens"], wanted) and wanted.shape == (6 + 3, 2)
    assert "labels" not in packed[0] and packed[0]["documents"].tolist() == [0] * 6 + [1] * 3
    with pytest.raises(ValueError, match=r"'c' cannot be packed: indices holds -1 .* without what is left out"):
        packed[1]


def test_packed_sequences_that_cannot_be_are_refused(recordings):
    for options, message in [
        ({"length": 0}, "length=0: expected at least 1"),
        ({"vocabulary": layouts.Vocabulary.flat([25], special=["bos", "eos"])}, 'expected "pad" among them'),
        (
            {"layout": lambda shape: layouts.delay(*shape, [0] * shape[0])},
            "expected samples, and the same slots for all",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            PackedTokens(**({"shards": recordings, "layout": framed, "vocabulary": VOCABULARY, "length": 4} | options))


# ---- whose tokens they are


def test_tokens_of_another_codebook_are_refused(recordings):
    own, other = codebook_hash(QUANTIZER), codebook_hash(FSQ([5, 4]))
    for expected in (QUANTIZER, own, None):
        assert TokenShards(recordings.directory, expected=expected).codebook_hash == own
    for expected in (FSQ([5, 4]), other):
        with pytest.raises(ValueError, match=f"holds tokens of codebook_hash='{own}', expected='{other}'"):
            TokenShards(Path(recordings.directory), expected=expected)


def test_a_folder_that_was_written_again_is_refused(recordings):
    """Names, order and quantizer were read when the data set was made; another process may have written since."""
    stale, path = TokenShards(recordings.directory), sorted(recordings.directory.glob("*.safetensors"))[0]
    content, seen = path.read_bytes(), path.stat().st_mtime_ns
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(seen, seen + 1))
    for use in (lambda: stale[0], lambda: TokenWindows(stale, (2,)), lambda: stale.sample_shape(0)):
        with pytest.raises(ValueError, match=f"{path.name} was written again since .* make TokenShards again"):
            use()
    assert len(TokenShards(recordings.directory)[0]["indices"]) == LENGTHS[0]
