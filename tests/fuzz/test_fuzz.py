"""Thousands of damaged files: each is refused in one line with its name, or opened; none runs code or asks for more.

`docs/security.md` says what is promised. Seeds are fixed: a finding names its seed and leaves its files in the folder.
"""

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fuzz.child import Case, findings
from tests.fuzz.mutations import damaged, mutated, mutated_json, mutated_safetensors
from vqkit import BaseQuantizer, Quantizer, ResidualQuantizer, Tokenizer, TokenShards, TokenShardWriter
from vqkit.methods.cascaded import CascadedCodebook
from vqkit.methods.vqgan_lc import FeatureCodebook

MUTATIONS = {
    "configuration": 2000,
    "weights": 2000,
    "vectors": 2000,
    "shards": 2000,
    "manifests": 2000,
    "checkpoints": 1000,
    "pictures": 2000,
    "sound": 2000,
}
"""Damaged files of each kind in the slow tier, which takes three minutes; the long one has twenty times as many."""

FACTORS = [pytest.param(1, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.matrix)]

SAVED = sorted(path for path in (Path(__file__).parents[1] / "saving/format_1").iterdir() if path.is_dir())
BACKBONES = {"image", "audio", "cross_scale"}


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


def write_tokens(folder: Path, rng: random.Random) -> BaseQuantizer:
    """A directory of two shards: of one shape or ragged, with one level or two, with masked indices or none."""
    stage = partial(Quantizer, dim=2, codebook_size=rng.choice([8, 300]))
    quantizer = ResidualQuantizer(stage, 2) if rng.random() < 0.5 else stage()
    levels = (2,) if quantizer.level_axis else ()
    with TokenShardWriter(folder, quantizer, samples_per_shard=2) as shards:
        for number in range(4):
            length = number + 1 if rng.random() < 0.3 else 3
            indices = torch.randint(-1, 8, (1, length, *levels))
            shards.add(indices, [f"{number}.png"])
    return quantizer


def tokens(seed: int, folder: Path, *, pattern: str, mutate: Callable[[bytes, random.Random], bytes]) -> None:
    rng = random.Random(seed)
    quantizer = write_tokens(folder, rng)
    path = rng.choice(sorted(folder.glob(pattern)))
    path.write_bytes(mutate(path.read_bytes(), rng))
    try:
        shards = TokenShards(folder)
        for sample in shards:
            check_range(sample["indices"], shards.codebook_sizes) if sample["indices"].numel() else None
        shards.verify()
    finally:
        TokenShardWriter(folder, quantizer, samples_per_shard=2).close()


def checkpoints(seed: int, folder: Path, *, original: Path) -> None:
    from trainers.core.checkpoints import read_checkpoint

    rng = random.Random(seed)
    path = folder / "last.ckpt"
    if rng.random() < 0.5:
        path.write_bytes(damaged(original.read_bytes(), rng))
    else:
        values = [None, 0, -1, "x", [], {}, torch.tensor([torch.nan]), torch.zeros(1).expand(10**12), Path("x")]
        torch.save(mutated(torch.load(original), rng, values), path)
    read_checkpoint(path)


def pictures(seed: int, folder: Path) -> None:
    from PIL import Image

    from trainers.image.pictures import Picture, inspect, read

    rng = random.Random(seed)
    pixels = numpy.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=numpy.uint8)
    suffix = rng.choice(["png", "jpg", "gif", "bmp", "tif", "webp", "ppm", "tga", "ico", "jp2", "avif"])
    path = folder / f"a.{suffix}"
    Image.fromarray(pixels).save(path)
    path.write_bytes(damaged(path.read_bytes(), rng))
    found = inspect(path, folder, 1)
    if isinstance(found, Picture):
        try:
            assert read(path, shorter_side=16).shape[2] == 3
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error  # its reasons come without the name
    else:
        assert "\n" not in found


def sound(seed: int, folder: Path) -> None:
    import soundfile

    from trainers.audio.recordings import Recording, inspect, read

    rng = random.Random(seed)
    suffix = rng.choice(["wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "voc"])
    path = folder / f"a.{suffix}"
    samples = 0.1 * numpy.random.default_rng(seed).standard_normal((2000, 1))
    soundfile.write(path, samples, 16000, subtype=rng.choice(["PCM_16", "FLOAT"]) if suffix in ("wav", "au") else None)
    path.write_bytes(damaged(path.read_bytes(), rng))
    found = inspect(path, root=folder, channels=1, min_seconds=0)
    if isinstance(found, Recording):
        try:
            read(path, found)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    else:
        assert "\n" not in found


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run of one step."""
    trainers = pytest.importorskip("tests.trainers.tiny")
    from trainers.core.task import TokenizerTask

    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    return path


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("kind", MUTATIONS)
def test_damaged_files(kind: str, factor: int, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    cases: dict[str, Case] = {
        "configuration": partial(model, file="config.json", mutate=mutated_json),
        "weights": partial(model, file="model.safetensors", mutate=mutated_safetensors),
        "vectors": vectors,
        "shards": partial(tokens, pattern="*.safetensors", mutate=mutated_safetensors),
        "manifests": partial(tokens, pattern="*.json", mutate=mutated_json),
        "pictures": pictures,
        "sound": sound,
    }
    case = cases[kind]
    found = findings(case, range(factor * MUTATIONS[kind]), tmp_path, crashes_are_others=kind in ("pictures", "sound"))
    assert not found, "\n".join(found[:20])
