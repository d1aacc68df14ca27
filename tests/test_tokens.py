import hashlib
import json
import os
import re
import time
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader

from vqkit import FSQ, Quantizer, ResidualQuantizer, Tokenizer, TokenShards, TokenShardWriter, codebook_hash
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.saving import files as saving_files
from vqkit.tokens import writer as writing
from vqkit.tokens.names import escaped, unescaped
from vqkit.tokens.writer import storage_dtype


class Codes(nn.Module):
    """What a writer asks of a quantizer, at any size."""

    def __init__(self, *codebook_sizes: int, state: float = 0.0) -> None:
        super().__init__()
        self.codebook_sizes = codebook_sizes
        self.codebook_size = max(codebook_sizes)
        self.num_codebooks = len(codebook_sizes)
        self.level_axis = self.num_codebooks > 1
        self.register_buffer("codes", torch.full((2,), state))

    def check_has_codes(self, call: str) -> None:
        """It has."""


ONE, TWO, THREE = Codes(1000), Codes(1000, 1000), Codes(1000, 1000, 1000)


def writer(directory: Path, quantizer: nn.Module = ONE, **options) -> TokenShardWriter:
    return TokenShardWriter(directory, quantizer, **({"data_hash": "def", "samples_per_shard": 4} | options))


def indices(first: int, last: int) -> torch.Tensor:
    """(last - first, 2, 3); sample n holds 6n .. 6n + 5."""
    return torch.arange(6 * first, 6 * last).reshape(-1, 2, 3)


def names(first: int, last: int) -> list[str]:
    return [f"ordner/bild {number:03d} ü.png" for number in range(first, last)]


def fill(shards: TokenShardWriter, first: int, last: int, step: int = 3) -> None:
    for start in range(first, last, step):
        stop = min(start + step, last)
        shards.add(indices(start, stop), names(start, stop))


def reword(directory: Path, **changes) -> None:
    """Changes what the manifest says; None leaves an entry out."""
    (path,) = directory.glob("manifest-*.json")
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def files(directory: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in directory.glob(pattern))


@pytest.mark.parametrize(
    "name", [b"caf\xe9", b"\xc3\xa9\xe9\\", b"\\xe9", b"a\nb\x7f\xc2\x85", "\u00fc\u65e5".encode(), b"\\"]
)
def test_names_of_any_bytes_are_escaped_and_come_back(name, tmp_path):
    path = os.fsdecode(name)
    shown = escaped(path)
    assert unescaped(shown) == path
    assert shown.encode().decode().isprintable()
    assert (shown == path) == (path.isprintable() and "\\" not in path)
    with writer(tmp_path) as shards:
        if not path.isprintable() and "\n" not in path:
            with pytest.raises(ValueError, match=r"not UTF-8: expected text; store `vqkit\.tokens\.names\.escaped"):
                shards.add(indices(0, 1), [path])
        shards.add(indices(0, 1), [shown])
    assert TokenShards(tmp_path).names == [shown]


def test_reader_gives_back_what_was_written(tmp_path):
    with writer(tmp_path, tokenizer="runs/a/tokenizer") as shards:
        fill(shards, 0, 10)
    read = TokenShards(tmp_path)
    read.verify()
    assert len(files(tmp_path, "*.safetensors")) == 3
    assert read.names == names(0, 10)
    assert torch.equal(torch.stack([sample["indices"] for sample in read]), indices(0, 10))
    assert [sample["name"] for sample in read] == read.names
    assert (read.shape, read.codebook_size, read.num_codebooks) == ((2, 3), 1000, 1)
    assert read.codebook_hash == codebook_hash(ONE)
    assert read.tokenizer == "runs/a/tokenizer"
    assert files(tmp_path, ".*") == []


@pytest.mark.parametrize(
    ("codebook_size", "dtype"),
    [(256, torch.uint8), (257, torch.uint16), (65536, torch.uint16), (65537, torch.uint32), (2**32 + 1, torch.int64)],
)
def test_storage_is_the_smallest_type_and_keeps_the_extremes(tmp_path, codebook_size, dtype):
    assert storage_dtype(codebook_size) == dtype
    with writer(tmp_path, Codes(codebook_size)) as shards:
        shards.add(torch.tensor([[0, codebook_size - 1, -1]]), ["a"])
        shards.add(torch.tensor([[1, 2, 3]]), ["b"])
    assert load_file(tmp_path / files(tmp_path, "*.safetensors")[0])["indices"].dtype == dtype
    first, second = TokenShards(tmp_path)
    assert first["indices"].tolist() == [0, codebook_size - 1, -1]
    assert second["indices"].tolist() == [1, 2, 3]


def test_levels_of_other_sizes(tmp_path):
    with writer(tmp_path, Codes(300, 8)) as shards:
        shards.add(torch.tensor([[[299, 7], [0, -1]]]), ["a"])
        for wrong, last in (([300, 0], 299), ([0, 8], 7)):
            with pytest.raises(ValueError, match=rf"expected -1 \(left out\) or 0 \.\.\. {last}"):
                shards.add(torch.tensor([[wrong, [0, 0]]]), ["b"])
        with pytest.raises(ValueError, match="last axis of all 2 levels"):
            shards.add(torch.zeros(1, 2, 3, dtype=torch.int64), ["b"])
    read = TokenShards(tmp_path)
    assert (read.codebook_size, read.codebook_sizes, len(read)) == (300, (300, 8), 1)
    assert read[0]["indices"].tolist() == [[299, 7], [0, -1]]


def test_manifests_without_sizes_are_read(tmp_path):
    """As they were written before levels could differ."""
    with writer(tmp_path, THREE) as shards:
        fill(shards, 0, 4)
    reword(tmp_path, codebook_sizes=None)
    assert TokenShards(tmp_path).codebook_sizes == (1000, 1000, 1000)
    with writer(tmp_path, THREE) as shards:
        assert len(shards.done) == 4


def test_interrupted_run_continues_where_it_stopped(tmp_path):
    killed = writer(tmp_path)
    fill(killed, 0, 7)
    del killed  # never closed: one shard of four is on the disk, three samples are lost
    kept = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    (tmp_path / f".tokens-00000-of-00001-000001.safetensors.{2**30}.partial").write_bytes(b"half")
    with writer(tmp_path) as shards:
        assert shards.done == set(names(0, 4))
        fill(shards, 4, 10)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert torch.equal(torch.stack([sample["indices"] for sample in TokenShards(tmp_path)]), indices(0, 10))
    assert files(tmp_path, ".*") == []


@pytest.mark.parametrize("crash", ["shard", "manifest"])
def test_kill_while_writing_leaves_a_readable_directory(tmp_path, monkeypatch, crash):
    shards = writer(tmp_path)
    fill(shards, 0, 4)
    replace = saving_files.os.replace

    def die(source, target):
        if crash in str(target) or (crash == "shard" and str(target).endswith(".safetensors")):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(saving_files.os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        fill(shards, 4, 8, step=4)
    monkeypatch.undo()
    assert TokenShards(tmp_path).names == names(0, 4)
    with writer(tmp_path) as again:
        assert again.done == set(names(0, 4))
        fill(again, 4, 8)
    assert TokenShards(tmp_path).names == names(0, 8)


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_lost_shard_is_redone(tmp_path, damage):
    with writer(tmp_path) as shards:
        fill(shards, 0, 12)
    lost = tmp_path / "tokens-00000-of-00001-000001.safetensors"
    if damage == "missing":
        lost.unlink()
        with pytest.raises(ValueError, match=r"000001\.safetensors is missing: write its samples again"):
            TokenShards(tmp_path)
    else:
        content = bytearray(lost.read_bytes())
        content[-1] ^= 1
        lost.write_bytes(content)
        with pytest.raises(ValueError, match=r"000001\.safetensors is damaged"):
            TokenShards(tmp_path).verify()
    with pytest.warns(UserWarning, match=f"{damage}: its 4 samples are redone"):
        shards = writer(tmp_path)
    assert shards.done == set(names(0, 4) + names(8, 12))
    fill(shards, 4, 8)
    shards.close()
    read = TokenShards(tmp_path)
    read.verify()
    assert torch.equal(torch.stack([sample["indices"] for sample in read]), indices(0, 12))


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("codebook_hash", {"quantizer": Codes(1000, state=1.0)}),
        ("data_hash", {"data_hash": "xyz"}),
        ("codebook_size", {"quantizer": Codes(999)}),
        ("num_codebooks", {"quantizer": TWO}),
    ],
)
def test_another_codebook_or_other_data_is_refused(tmp_path, key, other):
    with writer(tmp_path) as shards:
        fill(shards, 0, 4)
    with pytest.raises(ValueError, match=rf"was filled with {key}=.*this run has {key}=.*another directory"):
        writer(tmp_path, **other)


def test_wrong_samples_are_refused(tmp_path):
    shards = writer(tmp_path)
    fill(shards, 0, 2)
    for wrong, labels, message in [
        (indices(2, 4), names(2, 3), r"indices has shape \(2, 2, 3\) and names has 1 entries"),
        (indices(2, 4).float(), names(2, 4), "indices has dtype torch.float32: expected integers"),
        (indices(2, 4) + 1000, names(2, 4), r"indices lie in 1012 \.\.\. 1023: expected -1 .* 0 \.\.\. 999"),
        (indices(2, 4) - 14, names(2, 4), r"indices lie in -2"),
        (indices(2, 4)[:, :1], names(2, 4), r"samples of shape \[1, 3\]: expected \[2, 3\]"),
        (indices(1, 3), names(1, 3), r"bild 001 ü\.png', which is written or waiting already"),
    ]:
        with pytest.raises(ValueError, match=message):
            shards.add(wrong, labels)
    shards.close()
    assert TokenShards(tmp_path).names == names(0, 2)
    with pytest.raises(ValueError, match="samples_per_shard=0: expected at least 1"):
        writer(tmp_path, samples_per_shard=0)


def test_directory_without_manifest_or_of_another_version_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no manifest-\*\.json"):
        TokenShards(tmp_path)
    with writer(tmp_path) as shards:
        fill(shards, 0, 2)
    reword(tmp_path, format_version=4)
    with pytest.raises(ValueError, match="has format_version=4: expected 1, 2 or 3"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shards": [{"file": "/etc/passwd", "samples": 1, "sha256": ""}]}, "shards.0.file='/etc/passwd': expected "),
        ({"shards": [{"file": "../x.safetensors", "samples": 1, "sha256": ""}]}, "shards.0.file='../x.safetensors'"),
        ({"shards": [{"file": "x" * 300 + ".safetensors", "samples": 1, "sha256": ""}]}, "shards.0.file='xxx"),
        ({"shards": [{"file": "x.safetensors", "samples": "1"}]}, "shards.0.samples='1': expected <class 'int'>"),
        ({"shards": None}, "shards=None: expected list"),
        ({"shape": [2, "3"]}, r"shape=\[2, '3'\]: expected list"),
        ({"shape": [-2, 3]}, r"shape=\[-2, 3\]: expected sizes of at least 0"),
        ({"shape": [2, 4]}, r"'indices' has shape \[2, 2, 3\]: expected \[2, 2, 4\], as the manifest says"),
        ({"num_codebooks": 2}, r"codebook_sizes=\[1000\]: expected num_codebooks=2 positive sizes"),
        ({"codebook_size": 999}, r"codebook_sizes=\[1000\]: .* the largest is codebook_size=999"),
        ({"codebook_hash": 3}, "codebook_hash=3: expected <class 'str'>"),
        ({"num_codebooks": 10**9, "codebook_sizes": None}, "num_codebooks=1000000000: expected 1 ... 65536"),
    ],
)  # fmt: skip
def test_a_manifest_that_cannot_be_is_refused(tmp_path, change, message):
    with writer(tmp_path) as shards:
        fill(shards, 0, 2)
    path = tmp_path / "manifest-00000-of-00001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for open_it in (TokenShards, writer) if "shape" not in change else (TokenShards,):
        with pytest.raises(ValueError, match=message):
            open_it(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "names", "message"),
    [
        ({"indices": torch.tensor([7, 1000])}, ["a", "b"], r"indices lie in .* 1000: expected -1"),
        ({"indices": torch.tensor([7, -2])}, ["a", "b"], r"indices lie in -2 \.\.\. "),
        ({"indices": torch.zeros(2)}, ["a", "b"], "'indices' holds F32: expected integers"),
        ({"codes": torch.zeros(2)}, ["a", "b"], r"has tensors \['codes'\]: expected 'indices'"),
        ({"indices": torch.tensor([7, 8])}, ["a"], "'names' is no list of 2 names"),
        ({"indices": torch.tensor([7, 8])}, None, "'names' is no list of 2 names"),
        ({"indices": torch.tensor([7])}, ["a", "b"], r"'indices' has shape \[1\]: expected \[2\]"),
        ({"indices": torch.tensor([7, 8]), "masked": torch.tensor([True])}, ["a", "b"], "'masked' is .*: expected"),
        ({"indices": torch.tensor([7, 8]), "lengths": torch.tensor([3, -1])}, ["a", "b"], "'lengths' is no list"),
        ({"indices": torch.tensor([7, 8]), "lengths": torch.tensor([3, 1])}, ["a", "b"], r"expected \[4\]"),
    ],
)  # fmt: skip
def test_a_shard_that_cannot_be_is_refused(tmp_path, tensors, names, message):
    """Also where its manifest has the right sha256: both may come from a stranger."""
    with writer(tmp_path) as shards:
        shards.add(torch.tensor([7, 8]), ["a", "b"])
    (path,) = tmp_path.glob("*.safetensors")
    save_file(tensors, path, metadata=None if names is None else {"names": json.dumps(names)})
    (manifest,) = tmp_path.glob("*.json")
    content = json.loads(manifest.read_text())
    content["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(content))
    for use in (lambda: TokenShards(tmp_path).verify(), lambda: list(TokenShards(tmp_path))):
        with pytest.raises(ValueError, match=rf"{path}: .*{message}"):
            use()


def run_as(monkeypatch: pytest.MonkeyPatch, rank: int, world_size: int) -> None:
    monkeypatch.setattr(writing.distributed, "rank", lambda: rank)
    monkeypatch.setattr(writing.distributed, "world_size", lambda: world_size)


def test_ranks_and_later_runs_of_other_size_join_in_order(tmp_path, monkeypatch):
    def on_rank(rank: int, world_size: int) -> TokenShardWriter:
        run_as(monkeypatch, rank, world_size)
        return writer(tmp_path)

    first, second, third = on_rank(0, 3), on_rank(1, 3), on_rank(2, 3)
    for batch in range(4):
        (first, second)[batch % 2].add(indices(2 * batch, 2 * batch + 2), names(2 * batch, 2 * batch + 2))
    for shards in (first, second, third):
        shards.close()
    with on_rank(0, 1) as last:
        assert last.done == set(names(0, 8))
        fill(last, 8, 11)
    read = TokenShards(tmp_path)
    assert len(files(tmp_path, "manifest-*")) == 4
    assert read.names == names(0, 11)
    assert torch.equal(torch.stack([sample["indices"] for sample in read]), indices(0, 11))


def write_on_rank(rank: int, directory: str) -> list[str]:
    time.sleep(0.3 * rank)  # without a barrier the second rank would find what the first has written meanwhile
    with writer(Path(directory), samples_per_shard=2) as shards:
        done = sorted(shards.done)
        for sample in range(4 * len(done) // 3 + rank, 6, 2):
            shards.add(indices(sample, sample + 1), names(sample, sample + 1))
    return done


def test_two_processes_fill_one_directory(tmp_path, rank_pair):
    assert rank_pair(write_on_rank, str(tmp_path)) == [[], []]
    assert torch.equal(torch.stack([sample["indices"] for sample in TokenShards(tmp_path)]), indices(0, 6))
    assert rank_pair(write_on_rank, str(tmp_path)) == [names(0, 6), names(0, 6)]


def test_worker_processes_read_shards(tmp_path):
    with writer(tmp_path) as shards:
        fill(shards, 0, 10)
    read = TokenShards(tmp_path)
    assert read[9]["indices"].tolist() == indices(9, 10)[0].tolist()
    batches = list(DataLoader(read, batch_size=5, num_workers=1))
    assert torch.equal(torch.cat([batch["indices"] for batch in batches]), indices(0, 10))


def test_the_document_runs(tmp_path, monkeypatch):
    """`docs/tokens.md`, on what `predict` leaves: a saved tokenizer and its tokens."""
    document = Path(__file__).resolve().parent.parent / "docs/tokens.md"
    sizes = {"dim": 4, "channels": 32, "num_res_blocks": 1}
    tokenizer = Tokenizer(ConvEncoder2d(**sizes), FSQ([8, 5, 5, 5], channel_dim=1), ConvDecoder2d(**sizes)).eval()
    tokenizer.save_pretrained(tmp_path / "runs/mine/tokens/tokenizer")
    with TokenShardWriter(tmp_path / "runs/mine/tokens", tokenizer.quantizer, tokenizer="tokenizer") as shards:
        shards.add(tokenizer.encode(torch.rand(6, 3, 32, 32) * 2 - 1), [f"{number}.png" for number in range(6)])
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL):
        exec(compile(block, document.name, "exec"), namespace)
    assert len(TokenShards("tokens")) == 10


# ---- the hash


def test_hash_follows_the_codebook_and_survives_saving(tmp_path):
    quantizer = Quantizer("vq", dim=4, codebook_size=8)
    before = codebook_hash(quantizer)
    torch.save(quantizer.state_dict(), tmp_path / "state.pt")
    with torch.no_grad():
        next(quantizer.parameters()).view(-1)[3] += 1e-6
    assert codebook_hash(quantizer) != before
    other = Quantizer("vq", dim=4, codebook_size=8)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert codebook_hash(other) == before


def test_hash_tells_shapes_types_and_levels_apart():
    def stored(tensor: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer("codes", tensor)
        return codebook_hash(module)

    zeros = torch.zeros(4, 2)
    hashes = [stored(zeros), stored(zeros.T), stored(zeros.half()), stored(zeros[:2]), stored(torch.zeros(()))]
    hashes += [codebook_hash(FSQ(levels)) for levels in ([8, 5], [5, 8], [4, 10])]
    assert len(set(hashes)) == len(hashes)
    assert codebook_hash(FSQ([8, 5])) == codebook_hash(FSQ([8, 5]))


# ---- sequences of differing length

LENGTHS = (5, 1, 9, 9, 3, 7, 2)


def utterance(number: int, levels: int = 2) -> torch.Tensor:
    """(length, levels); no two utterances share an index, and each has a masked one."""
    indices = 100 * number + torch.arange(LENGTHS[number] * levels).reshape(-1, levels)
    indices[0, -1] = -1
    return indices


def speak(shards: TokenShardWriter, numbers) -> None:
    for number in numbers:
        shards.add(utterance(number)[None], [f"{number}.flac"])


def check_utterances(directory: Path) -> None:
    read = TokenShards(directory)
    read.verify()
    assert read.names == [f"{number}.flac" for number in range(len(LENGTHS))]
    assert read.shape == (None, 2)
    for number, sample in enumerate(read):
        assert torch.equal(sample["indices"], utterance(number)), number


@pytest.mark.parametrize("samples_per_shard", [1, 2, 3, 100])
def test_utterances_keep_their_lengths(tmp_path, samples_per_shard):
    with writer(tmp_path, TWO, samples_per_shard=samples_per_shard) as shards:
        speak(shards, range(len(LENGTHS)))
    check_utterances(tmp_path)
    assert list(DataLoader(TokenShards(tmp_path), batch_size=None, num_workers=0))[2]["indices"].shape == (9, 2)


def test_utterances_in_batches_and_single_levels(tmp_path):
    with writer(tmp_path) as shards:
        shards.add(torch.tensor([[1, 2, 3], [4, 5, 6]]), ["a", "b"])
        shards.add(torch.tensor([[7]]), ["c"])
        shards.add(torch.zeros(1, 0, dtype=torch.int64), ["d"])
    read = TokenShards(tmp_path)
    assert [sample["indices"].tolist() for sample in read] == [[1, 2, 3], [4, 5, 6], [7], []]
    assert read.shape == (None,)


def test_utterances_of_one_length_are_written_as_before(tmp_path):
    with writer(tmp_path, TWO, samples_per_shard=2) as shards:
        speak(shards, (2, 3))
    assert json.loads((tmp_path / "manifest-00000-of-00001.json").read_text())["format_version"] == 1
    assert TokenShards(tmp_path).shape == (9, 2)
    assert set(load_file(tmp_path / "tokens-00000-of-00001-000000.safetensors")) == {"indices", "masked"}
    with writer(tmp_path, TWO, samples_per_shard=2) as shards:
        speak(shards, (0, 1, 4, 5, 6))
    assert json.loads((tmp_path / "manifest-00000-of-00001.json").read_text())["format_version"] == 2
    check_utterances(tmp_path)


def test_interrupted_utterances_are_continued(tmp_path, monkeypatch):
    shards = writer(tmp_path, TWO, samples_per_shard=2)
    speak(shards, range(5))  # two shards are on the disk, the fifth utterance is lost with the process
    assert shards.done == {"0.flac", "1.flac", "2.flac", "3.flac"}
    again = writer(tmp_path, TWO, samples_per_shard=2)
    assert again.done == shards.done
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(writing, "write_whole", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        speak(again, (4, 5))
    last = writer(tmp_path, TWO, samples_per_shard=2)
    assert last.done == shards.done
    speak(last, (4, 5, 6))
    last.close()
    check_utterances(tmp_path)


def test_utterances_of_several_ranks_are_joined(tmp_path, monkeypatch):
    for rank, numbers in enumerate([(2, 3), (0, 1, 4, 5, 6)]):  # the first rank has a fixed shape, the second has not
        run_as(monkeypatch, rank, 2)
        with writer(tmp_path, TWO) as shards:
            speak(shards, numbers)
    check_utterances(tmp_path)


def test_utterances_with_other_levels_are_refused(tmp_path):
    with writer(tmp_path, TWO) as shards:
        speak(shards, (0, 1))
        for wrong in (torch.zeros(1, 4, 3, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64)):
            with pytest.raises(ValueError, match=r"indices has shape .*: expected a last axis of all 2 levels"):
                shards.add(wrong, ["x"])


def test_a_residual_quantizer_of_one_stage_has_sequences_too(tmp_path):
    quantizer = ResidualQuantizer(partial(Quantizer, dim=4, codebook_size=8), 1)
    with writer(tmp_path, quantizer) as shards:
        for length, name in ((5, "a"), (3, "b")):
            shards.add(quantizer.encode(torch.randn(1, length, 4)), [name])
    assert TokenShards(tmp_path).shape == (None, 1)
    assert [len(sample["indices"]) for sample in TokenShards(tmp_path)] == [5, 3]


# ---- classes, and pictures in their own sizes


@pytest.mark.parametrize(("quantizer", "levels"), [(ONE, ()), (TWO, (2,))], ids=["one codebook", "two levels"])
def test_pictures_of_any_sizes_come_back_with_extent_and_class(quantizer, levels, tmp_path):
    sizes = [(2, 3), (2, 3), (2, 5), (4, 3), (2, 3), (2, 4)]
    sent = [torch.randint(-1, 1000, (1, *size, *levels)) for size in sizes]
    options = {"class_names": ["cat", "dog"], "samples_per_shard": 2, "quantizer": quantizer}
    for first, last in ((0, 3), (2, 6)):  # the second run continues: one sample was in memory
        with writer(tmp_path, **options) as shards:
            for number in range(first, last):
                if str(number) not in shards.done:
                    shards.add(sent[number], [str(number)], labels=[number % 2], extents=[(8 * number, 3)])
            if first == 0:
                shards._names, shards._indices = [], []
                shards._labels, shards._extents = [], []
    shards = TokenShards(tmp_path)
    shards.verify()
    assert shards.shape == (None, None, *levels) and shards.class_names == ("cat", "dog")
    for number, sample in enumerate(shards):
        assert torch.equal(sample["indices"], sent[number][0]) and sample["label"] == number % 2
        assert sample["extent"].tolist() == [8 * number, 3]
    (loaded,) = DataLoader(torch.utils.data.Subset(shards, [0, 1, 4]), batch_size=3)
    assert loaded["label"].tolist() == [0, 1, 0] and loaded["extent"].shape == (3, 2)


def test_ranks_whose_pictures_have_other_sizes_join(tmp_path, monkeypatch):
    sizes = [(2, 3), (4, 3), (2, 5)]  # each rank sees pictures of one size, the last rank none
    for rank in range(4):
        run_as(monkeypatch, rank, 4)
        with writer(tmp_path) as shards:
            if rank < 3:
                shards.add(torch.zeros(1, *sizes[rank], dtype=torch.int64), [str(rank)], extents=[sizes[rank]])
    shards = TokenShards(tmp_path)
    assert shards.shape == (None, None) and [tuple(sample["indices"].shape) for sample in shards] == sizes
    with writer(tmp_path) as again:
        assert again.done == {"0", "1", "2"}
    with pytest.raises(ValueError, match="extents=None: expected 1 pairs"):
        writer(tmp_path).add(indices(0, 1), ["3"])


def test_labels_need_no_newer_reader(tmp_path):
    """Directories of samples with classes and one size stay in format 1, with the tensors that it knows."""
    with writer(tmp_path, class_names=["a", "b"]) as shards:
        shards.add(indices(0, 3), names(0, 3), labels=[1, 0, 1])
    manifest = json.loads((tmp_path / "manifest-00000-of-00001.json").read_text())
    assert manifest["format_version"] == 1 and [sample["label"] for sample in TokenShards(tmp_path)] == [1, 0, 1]
    assert load_file(tmp_path / "tokens-00000-of-00001-000000.safetensors").keys() == {"indices"}
    with pytest.raises(ValueError, match=r"class_names=\['a', 'b'\] .*this run has class_names=\[\]"):
        writer(tmp_path)


@pytest.mark.parametrize("kind", [torch.tensor, numpy.array, lambda values: list(numpy.array(values))])
def test_labels_and_extents_are_taken_as_batches_have_them(kind, tmp_path):
    with writer(tmp_path, class_names=["a", "b"]) as shards:
        shards.add(indices(0, 2), names(0, 2), labels=kind([1, 0]), extents=kind([[8, 7], [6, 5]]))
    assert [(sample["label"], sample["extent"].tolist()) for sample in TokenShards(tmp_path)] == [
        (1, [8, 7]),
        (0, [6, 5]),
    ]


EXTENT = {"extents": [(8, 8)]}


@pytest.mark.parametrize(
    ("options", "calls", "message"),
    [
        ({"class_names": ["a"]}, [{}], "labels=None: expected 1 numbers from 0 to 0"),
        ({"class_names": ["a", "b"]}, [{"labels": [2]}], r"labels=\[2\]: expected 1 numbers from 0 to 1"),
        ({"class_names": ["a", "b"]}, [{"labels": [0, 1]}], r"labels=\[0, 1\]: expected 1 numbers"),
        ({"class_names": ["a", "b"]}, [{"labels": [0.5]}], r"labels=\[0.5\]: expected 1 numbers"),
        ({}, [{"labels": [0]}], r"labels=\[0\]: expected none without class_names"),
        ({}, [{"extents": [(8, -1)]}], r"extents=\[\(8, -1\)\]: expected 1 pairs of height and width"),
        ({}, [{"extents": []}], r"extents=\[\]: expected 1 pairs"),
        ({}, [{"extents": [(8.5, 8)]}], r"extents=\[\(8.5, 8\)\]: expected 1 pairs"),
        ({}, [{"extents": [8]}], r"extents=\[8\]: expected 1 pairs"),
        ({}, [EXTENT, {}], "extents=None: expected 1 pairs"),
        ({}, [{}, EXTENT], "extents: expected none, as before"),
    ],
)
def test_labels_and_extents_that_cannot_be_are_refused(options, calls, message, tmp_path):
    shards = writer(tmp_path, **options)
    for number, call in enumerate(calls[:-1]):
        shards.add(indices(number, number + 1), names(number, number + 1), **call)
    with pytest.raises(ValueError, match=message):
        shards.add(indices(9, 10), names(9, 10), **calls[-1])


@pytest.mark.parametrize(
    ("tensors", "labels", "message"),
    [
        ({"extents": torch.ones(1, 2).long()}, "[0, 1]", "'extents' is no list of 2 x 2 int64"),
        ({"extents": None}, "[0, 1]", r"expected 'indices' and 'extents', and perhaps"),
        ({"lengths": torch.ones(2).long()}, "[0, 1]", "'lengths' is no list of 2 x 2 int64"),
        ({"lengths": torch.full((2, 2), 2**62)}, "[0, 1]", r"'indices' has shape \[2, 2, 3\]: expected \[\d{30,}\]"),
        ({}, None, "'labels' is no list of 2 numbers below 2"),
        ({}, "[0, 2]", "'labels' is no list of 2 numbers below 2"),
        ({}, "[0]", "'labels' is no list of 2 numbers below 2"),
    ],
)
def test_a_shard_of_pictures_that_cannot_be_is_refused(tensors, labels, message, tmp_path):
    with writer(tmp_path, class_names=["a", "b"]) as shards:
        shards.add(indices(0, 2), ["a", "b"], labels=[0, 1], extents=[(8, 8)] * 2)
    (path,) = tmp_path.glob("*.safetensors")
    whole = {name: tensor for name, tensor in (load_file(path) | tensors).items() if tensor is not None}
    metadata = {"names": '["a", "b"]'} | ({} if labels is None else {"labels": labels})
    save_file(whole, path, metadata=metadata)
    with pytest.raises(ValueError, match=message):
        TokenShards(tmp_path)
