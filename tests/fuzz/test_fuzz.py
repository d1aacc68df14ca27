"""Thousands of damaged files: each is refused in one line with its name, or opened; none runs code or asks for more.

`docs/security.md` says what is promised. Seeds are fixed: a finding names its seed and leaves its files in the folder.
"""

import importlib
import io
import os
import random
import subprocess
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fuzz import child
from tests.fuzz.child import MEMORY_BYTES, Case, findings
from tests.fuzz.mutations import damaged, mutated, mutated_json, mutated_safetensors
from tests.saving.test_format_1 import BACKBONES, SAVED
from vqkit import BaseQuantizer, Quantizer, ResidualQuantizer, Tokenizer, TokenShards, TokenShardWriter
from vqkit.bitstream import CODERS, NearestNeighbour, Packed, TokenCodec
from vqkit.bitstream.container import Packet, write_header
from vqkit.bitstream.varints import write_varint
from vqkit.methods.cascaded import CascadedCodebook
from vqkit.methods.vqgan_lc import FeatureCodebook
from vqkit.saving.files import named

MUTATIONS = {
    "configuration": 1000,
    "weights": 750,
    "vectors": 1250,
    "shards": 625,
    "manifests": 625,
    "indices": 500,
    "packets": 500,
    "checkpoints": 250,
    "pictures": 1250,
    "sound": 1250,
}
"""Damaged files of each kind in the slow tier, under a minute; the long tier has forty times as many, in forty."""

FACTORS = [pytest.param(1, marks=pytest.mark.slow), pytest.param(40, marks=pytest.mark.long)]


def check_range(indices: torch.Tensor, sizes: tuple[int, ...]) -> None:
    assert int(indices.min()) >= -1 and int(indices.max()) < max(sizes), indices


def open_model(kind: str, folder: Path, base: Path) -> None:
    """Load a model and use it as far as it takes what its original took."""
    module = (Tokenizer if kind in BACKBONES else BaseQuantizer).from_pretrained(folder)
    example = load_file(base / "example.safetensors")
    quantizer = module.quantizer if isinstance(module, Tokenizer) else module
    try:
        indices = module.encode(example["x"])
        module.decode(indices)
    except ValueError:  # another layout, as its message says; it is about a tensor and not about a file
        return
    except RuntimeError as error:
        if "allocate" not in str(
            error
        ):  # a dilation, say, leaves no trace in the weights: use has the limits of a process
            raise
        return
    check_range(indices, quantizer.codebook_sizes)


def model(seed: int, folder: Path, *, file: str, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    rng = random.Random(seed)
    base = rng.choice(SAVED)
    for name in ("config.json", "model.safetensors"):
        content = (base / name).read_bytes()
        (folder / name).write_bytes(mutate(content, rng) if name == file else content)
    open_model(base.name, folder, base)


def vectors(seed: int, folder: Path) -> None:
    rng = random.Random(seed)
    path = folder / "vectors.safetensors"
    save_file({"vectors": torch.randn(16, 4)}, path)
    path.write_bytes(mutated_safetensors(path.read_bytes(), rng))
    for codebook in (
        partial(FeatureCodebook, base_path=str(path), base_dim=4),
        partial(CascadedCodebook, base_path=str(path)),
    ):
        codebook(16, 4)


def write_tokens(folder: Path, rng: random.Random) -> Callable[[], TokenShardWriter]:
    """Two shards of sequences, or of pictures with classes; ragged, with two levels, masked, or not. Reopens them."""
    stage = partial(Quantizer, dim=2, codebook_size=rng.choice([8, 300]))
    quantizer = ResidualQuantizer(stage, 2) if rng.random() < 0.5 else stage()
    levels = (2,) if quantizer.level_axis else ()
    pictures = rng.random() < 0.5
    reopen = partial(TokenShardWriter, folder, quantizer, samples_per_shard=2, class_names=["a"] * pictures)
    with reopen() as shards:
        for number in range(4):
            length = number + 1 if rng.random() < 0.3 else 3
            indices = torch.randint(-1, 8, (1, length, *(2,) * pictures, *levels))
            facts = {"labels": [0], "extents": [(8 * length, 16)]} if pictures else {}
            shards.add(indices, [f"{number}.png"], **facts)
    return reopen


def tokens(seed: int, folder: Path, *, pattern: str, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    rng = random.Random(seed)
    reopen = write_tokens(folder, rng)
    path = rng.choice(sorted(folder.glob(pattern)))
    path.write_bytes(mutate(path.read_bytes(), rng))
    try:
        shards = TokenShards(folder)
        for sample in shards:
            check_range(sample["indices"], shards.codebook_sizes) if sample["indices"].numel() else None
        shards.verify()
    finally:
        reopen().close()


def indices(seed: int, folder: Path, *, reworded: bool) -> None:
    """A file of indices with damage; `reworded`, under checksums that are right, as somebody with intent writes it."""
    rng = random.Random(seed)
    sizes = rng.choice([[16], [1, 300], [2**20, 2, 1000], [2**36], [2**63]])
    shape = rng.choice([(1, 40), (2, 5, 6), (1, 3, 4, 5), (7,)])
    codec = TokenCodec(sizes, fingerprint=bytes(16))
    grids = [torch.randint(-(rng.random() < 0.2), min(size, 2**62), shape) for size in sizes]
    made = codec.pack(codec.join(grids), coder=rng.choice(["auto", *CODERS]), packet_cells=rng.choice([8, 2**16]))
    path = folder / "indices.vqk"
    path.write_bytes(with_checksums(made, rng) if reworded else damaged(made.content, rng))
    with named(path):
        for partial_too in (False, True):
            conceal = NearestNeighbour() if partial_too else None
            found = codec.unpack(path.read_bytes(), partial=partial_too, conceal=conceal).indices
            for grid, size in zip(codec.split(found), sizes, strict=False):
                check_range(grid, (size,)) if grid.numel() else None


def with_checksums(made: Packed, rng: random.Random) -> bytes:
    """A file whose packets, or whose header, are others, under checksums that fit them."""
    header, content = made.header, made.content
    if rng.random() < 0.5 and header.packets:
        number = rng.randrange(len(header.packets))
        start, stop = header.offsets()[number : number + 2]
        other = damaged(content[start:stop], rng)
        packets = list(header.packets)
        coder = packets[number].coder if rng.random() < 0.7 else rng.randrange(8)
        packets[number] = Packet(coder, len(other), zlib.crc32(other))
        content = content[:start] + other + content[stop:]
        return write_header(replace(header, packets=tuple(packets))) + content[header.start :]
    body = content[20 : header.start - 4]
    size = len(write_varint(len(body) - 1))
    body = damaged(body[size:], rng)
    head = content[:20] + write_varint(len(body)) + body
    return head + zlib.crc32(head).to_bytes(4, "little") + content[header.start :]


def checkpoint(seed: int, folder: Path, *, original: bytes) -> None:
    from trainers.core.checkpoints import read_checkpoint

    rng = random.Random(seed)
    path = folder / "last.ckpt"
    if rng.random() < 0.5:
        path.write_bytes(damaged(original, rng))
    else:
        values = [None, 0, -1, "x", [], {}, torch.tensor([torch.nan]), torch.zeros(1).expand(10**12), Path("x")]
        torch.save(mutated(torch.load(io.BytesIO(original)), rng, values), path)
    read_checkpoint(path)


def picture(seed: int, folder: Path) -> None:
    from PIL import Image

    from trainers.image.files import ImageFile, inspect
    from vqkit.media.pictures import MAX_PIXELS, read

    rng = random.Random(seed)
    pixels = numpy.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=numpy.uint8)
    suffix = rng.choice(["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga", "ico", "jp2", "avif"])
    path = folder / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(damaged(path.read_bytes(), rng))
    white = rng.choice([None, 4095.0])
    found = inspect(path, folder, 1, white, MAX_PIXELS)
    if isinstance(found, ImageFile):
        try:
            assert read(path, shorter_side=16, white=white).shape[2] == 3
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error  # its reasons come without the name
    else:
        assert "\n" not in found


def recording(seed: int, folder: Path) -> None:
    import soundfile

    from trainers.audio.files import AudioFile, inspect, read

    rng = random.Random(seed)
    suffix = rng.choice(["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "voc"])
    path = folder / f"a.{suffix}"
    samples = 0.1 * numpy.random.default_rng(seed).standard_normal((2000, 1))
    soundfile.write(path, samples, 16000, subtype=rng.choice(["PCM_16", "FLOAT"]) if suffix in ("wav", "au") else None)
    path.write_bytes(damaged(path.read_bytes(), rng))
    found = inspect(path, root=folder, channels=1, min_seconds=0)
    if isinstance(found, AudioFile):
        try:
            read(path, found)
        except ValueError as error:
            if "allocate" in str(error):  # its header promises gigabytes, and the limit left it out
                return
            raise ValueError(f"{path}: {error}") from error
    else:
        assert "\n" not in found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint of a run of one step."""
    from tests.trainers.tiny import Images, make_image_task, make_trainer

    trainer = make_trainer(max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Lightning says about small runs
        trainer.fit(make_image_task(initialization_samples=64), datamodule=Images(4))
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer.save_checkpoint(path)
    return path.read_bytes()


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_files(kind: str, factor: int, tmp_path: Path, original: bytes) -> None:
    from trainers.audio import files as sound_files  # noqa: F401  # with all that they load, before anything is watched
    from trainers.core import checkpoints  # noqa: F401
    from trainers.image import files  # noqa: F401

    case: Case = {
        "configuration": partial(model, file="config.json", mutate=mutated_json),
        "weights": partial(model, file="model.safetensors", mutate=mutated_safetensors),
        "vectors": vectors,
        "shards": partial(tokens, pattern="*.safetensors", mutate=mutated_safetensors),
        "manifests": partial(tokens, pattern="*.json", mutate=mutated_json),
        "indices": partial(indices, reworded=False),
        "packets": partial(indices, reworded=True),
        "checkpoints": partial(checkpoint, original=original),
        "pictures": picture,
        "sound": recording,
    }[kind]
    found = findings(case, range(factor * MUTATIONS[kind]), tmp_path, crashes_are_others=kind in ("pictures", "sound"))
    assert not found, "\n".join(found[:20])


def trip(seed: int, folder: Path) -> None:
    """What the cases above must never do, one for each seed."""
    if seed == 1:
        raise KeyError(f"{folder}")
    if seed == 2:
        raise ValueError("no name")
    if seed == 3:
        raise ValueError(f"{folder}\nin two lines")
    if seed == 4:
        bytearray(2 * MEMORY_BYTES)
    if seed == 5:
        Path("/etc/hostname").exists() and Path("/etc/hostname").read_bytes()
    if seed == 6:
        subprocess.run(["true"])
    if seed == 7:
        os.abort()
    if seed == 8:
        while True:
            pass
    if seed == 9:
        raise ValueError(f"{folder}: as it should be")
    if seed == 10:
        importlib.import_module("this")


def test_the_fuzzer_finds_what_it_looks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "SECONDS", 0.5)
    found = findings(trip, range(12), tmp_path)
    expected = [
        (1, "KeyError"),
        (2, "no name of a file"),
        (3, "several lines"),
        (4, "MemoryError"),
        (5, "open /etc/hostname"),
        (6, "subprocess.Popen"),
        (7, "ended by SIGABRT"),
        (8, "ended by SIGPROF"),
        (10, "import this"),
    ]
    assert [int(line.split()[0]) for line in found] == [seed for seed, _ in expected]
    for line, (_, words) in zip(found, expected, strict=True):
        assert words in line
