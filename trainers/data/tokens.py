"""Token shards: what `predict` writes, and what a generator's data loader reads.

A directory holds shards, `tokens-<rank>-of-<ranks>-<number>.safetensors`, and for every rank a manifest,
`manifest-<rank>-of-<ranks>.json`. A shard has the tensor `indices` (samples, *shape), unsigned and as small as the
codebook allows; if any index was -1, also `masked` (samples, *shape), bool, where `indices` is 0; and the samples'
names in its metadata. Sequences that differ in length, such as utterances, are one after another on the first axis,
`indices` (sum of lengths, ...), with `lengths` (samples,) int64. Every file appears whole or not at all, and a manifest
lists a shard only after it is on the disk.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from trainers.data.sampler import ranks

FORMAT_VERSION = 1
RAGGED_VERSION = 2  # of directories whose samples differ in length; all else is as in version 1
IDENTITY = ("codebook_size", "num_codebooks", "codebook_hash", "data_hash")  # what the runs that fill a directory share


def codebook_hash(quantizer: nn.Module) -> str:
    """A hash of a quantizer's state: with another one, indices may mean something else.

    A baked copy has another hash, although it decodes alike; and settings that leave no trace in the state, such as
    `normalize`, are not in it: keep the run's configuration beside the tokens.

    Returns:
        The sha256, in hexadecimal, over name, dtype, shape and bytes of every tensor of the state, ordered by name.
    """
    tensors = {name: value for name, value in quantizer.state_dict().items() if isinstance(value, Tensor)}
    digest = hashlib.sha256(type(quantizer).__name__.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def storage_dtype(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds the indices 0 .. codebook_size - 1."""
    for dtype, bits in ((torch.uint8, 8), (torch.uint16, 16), (torch.uint32, 32)):
        if codebook_size <= 2**bits:
            return dtype
    return torch.int64


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is there whole or not at all, whatever happens meanwhile."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_manifests(directory: Path) -> dict[str, dict[str, Any]]:
    """All manifests of a directory by file name, in order.

    Raises:
        ValueError: If one has another format version.
    """
    manifests = {}
    for path in sorted(directory.glob("manifest-*-of-*.json")):
        manifests[path.name] = json.loads(path.read_text(encoding="utf-8"))
        version = manifests[path.name].get("format_version")
        if version not in (FORMAT_VERSION, RAGGED_VERSION):
            raise ValueError(
                f"{path} has format_version {version!r}; this reader knows {FORMAT_VERSION} and {RAGGED_VERSION}. "
                "Write the tokens again, or read them with the version of the code that wrote them."
            )
    return manifests


def joined_shape(first: Sequence[int | None] | None, second: Sequence[int | None] | None) -> list[int | None] | None:
    """The shape of samples of two shapes, with None for a first axis whose length differs; one may be unknown (None).

    Raises:
        ValueError: If more than the first axis differs.
    """
    if first is None or second is None:
        known = second if first is None else first
        return None if known is None else list(known)
    if list(first) == list(second):
        return list(first)
    if len(first) != len(second) or not first or list(first[1:]) != list(second[1:]):
        raise ValueError(f"{list(first)} and {list(second)} differ in more than their length.")
    return [None, *first[1:]]


def shard_names(path: Path) -> list[str]:
    """The samples' names in a shard."""
    with safe_open(path, framework="pt") as shard:
        return json.loads(shard.metadata()["names"])


class TokenShardWriter:
    """Writes tokens and names as shards, and continues a directory that an interrupted run has left.

    Use it as a context manager or call `close`. Each rank has its own writer on the same directory; creating it is
    collective. What was in memory when a run was killed, less than one shard, is predicted again.

    Args:
        directory: Made if missing.
        codebook_size: K, indices are 0 .. K - 1, or -1 where masked; where levels differ, the largest.
        codebook_hash: `codebook_hash(quantizer)`.
        num_codebooks: Codebooks (levels) on the last axis of the indices; 1 if there is no such axis.
        codebook_sizes: K of each level; None means `codebook_size` for all.
        data_hash: Identifies the data that is predicted, so that a run on other data is not mixed in.
        tokenizer: Where the tokenizer is saved, for the reader's use.
        samples_per_shard: Samples in a full shard.

    Attributes:
        done: Names whose tokens are on the disk, written by any rank or earlier run.

    Raises:
        ValueError: If the directory was filled with another codebook or from other data, or an argument is out of
            range.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        codebook_size: int,
        codebook_hash: str,
        num_codebooks: int = 1,
        codebook_sizes: Sequence[int] | None = None,
        data_hash: str = "",
        tokenizer: str = "",
        samples_per_shard: int = 4096,
    ) -> None:
        for name, value in (
            ("codebook_size", codebook_size),
            ("num_codebooks", num_codebooks),
            ("samples_per_shard", samples_per_shard),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        sizes = [codebook_size] * num_codebooks if codebook_sizes is None else list(codebook_sizes)
        if len(sizes) != num_codebooks or max(sizes) != codebook_size or min(sizes) < 1:
            raise ValueError(
                f"codebook_sizes must be num_codebooks={num_codebooks} sizes with codebook_size={codebook_size} the "
                f"largest, got {sizes}."
            )
        self.directory = Path(directory)
        self.codebook_size = codebook_size
        self.codebook_sizes = tuple(sizes)
        self.samples_per_shard = samples_per_shard
        rank, world_size = ranks()
        self._own = f"{rank:05d}-of-{world_size:05d}"
        self._manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "codebook_size": codebook_size,
            "num_codebooks": num_codebooks,
            "codebook_sizes": sizes,
            "codebook_hash": codebook_hash,
            "data_hash": data_hash,
            "tokenizer": tokenizer,
            "shape": None,
            "shards": [],
        }
        self._indices: list[Tensor] = []
        self._names: list[str] = []
        self.done: set[str] = set()
        self._known: set[str] = set()  # done, or waiting for a full shard
        self.directory.mkdir(parents=True, exist_ok=True)
        manifests = read_manifests(self.directory)
        for name, manifest in manifests.items():
            self._check_identity(name, manifest)
            sound = [shard for shard in manifest["shards"] if self._is_sound(shard)]
            changed = sound != manifest["shards"]
            manifest["shards"] = sound
            for shard in sound:
                self.done.update(shard_names(self.directory / shard["file"]))
            self._manifest["shape"] = joined_shape(self._manifest["shape"], manifest["shape"])
            if name == self._manifest_name:
                self._manifest["shards"] = sound
            if changed and rank == 0:
                write_whole(self.directory / name, json.dumps(manifest, indent=1).encode())
        self._known |= self.done
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()  # all ranks have read the same directory before one of them adds to it

    @property
    def _manifest_name(self) -> str:
        return f"manifest-{self._own}.json"

    def _check_identity(self, name: str, manifest: dict[str, Any]) -> None:
        for key in IDENTITY:
            if manifest[key] != self._manifest[key]:
                raise ValueError(
                    f"{self.directory} was filled with {key}={manifest[key]!r} ({name}), this run has "
                    f"{key}={self._manifest[key]!r}: their tokens must not be mixed. Write to another directory, or "
                    "delete this one."
                )

    def _is_sound(self, shard: dict[str, Any]) -> bool:
        path = self.directory / shard["file"]
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]:
            return True
        state = "damaged" if path.is_file() else "missing"
        warnings.warn(f"{path} is {state}: its {shard['samples']} samples are redone.")
        return False

    def add(self, indices: Tensor, names: Sequence[str]) -> None:
        """Adds samples; writes a shard whenever one is full.

        Args:
            indices: (B, *shape) integers in -1 .. codebook_size - 1; the same shape in every call, save for sequences,
                (B, length) or (B, length, num_codebooks), whose length may differ.
            names: B names, each only once in a directory.

        Raises:
            ValueError: If shape, range or names are not so.
        """
        indices = indices.detach().cpu()
        if indices.is_floating_point() or indices.ndim == 0 or len(indices) != len(names):
            raise ValueError(
                f"indices must be integers (B, ...) with one name each, got {indices.dtype} {tuple(indices.shape)} and "
                f"{len(names)} names."
            )
        if len(indices) == 0:
            return
        self._check_range(indices)
        shape = self._shape_with(list(indices.shape[1:]))
        fresh = set(names) - self._known
        if len(fresh) < len(names):
            repeated = sorted(self._known.intersection(names)) or sorted(names)
            raise ValueError(
                f"Names must be unique, and those in `done` left out; {repeated[0]!r} is written or waiting already."
            )
        self._manifest["shape"] = shape
        self._known |= fresh
        self._indices.extend(indices.to(torch.int64))
        self._names.extend(names)
        while len(self._names) >= self.samples_per_shard:
            self._write_shard(self.samples_per_shard)

    def _shape_with(self, shape: list[int]) -> list[int | None] | None:
        known = self._manifest["shape"]
        is_sequence = len(shape) == 1 or (len(shape) == 2 and shape[1] == len(self.codebook_sizes))
        if known in (None, shape) or (is_sequence and len(known) == len(shape) and known[1:] == shape[1:]):
            return joined_shape(known, shape)
        raise ValueError(
            f"samples of shape {shape} do not fit a directory of shape {known}. Give all samples one size, such as by "
            "a fixed resolution; only sequences may differ, in their length."
        )

    def _check_range(self, indices: Tensor) -> None:
        if indices.numel() == 0:
            return
        uneven = len(set(self.codebook_sizes)) > 1
        if uneven and indices.shape[-1] != len(self.codebook_sizes):
            raise ValueError(
                f"indices must have a last axis of {len(self.codebook_sizes)} levels, got {tuple(indices.shape)}."
            )
        levels = indices.unbind(-1) if uneven else [indices]
        for level, size in zip(levels, self.codebook_sizes, strict=False):
            low, high = int(level.min()), int(level.max())
            if low < -1 or high >= size:
                raise ValueError(f"indices must lie in -1 .. {size - 1}, got {low} .. {high}.")

    def _write_shard(self, samples: int) -> None:
        waiting, self._indices = self._indices[:samples], self._indices[samples:]
        names, self._names = self._names[:samples], self._names[samples:]
        lengths = [sample.shape[:1].numel() for sample in waiting]
        ragged = len(set(lengths)) > 1
        indices = torch.cat(waiting) if ragged else torch.stack(waiting)
        tensors = {"indices": indices.clamp(min=0).to(storage_dtype(self.codebook_size))}
        if ragged:
            tensors["lengths"] = torch.tensor(lengths)
        if bool((indices < 0).any()):
            tensors["masked"] = indices < 0
        content = save(tensors, metadata={"names": json.dumps(names, ensure_ascii=False)})
        used = {shard["file"] for shard in self._manifest["shards"]}
        number = next(n for n in range(len(used) + 1) if f"tokens-{self._own}-{n:06d}.safetensors" not in used)
        file = f"tokens-{self._own}-{number:06d}.safetensors"
        write_whole(self.directory / file, content)
        entry = {"file": file, "samples": samples, "sha256": hashlib.sha256(content).hexdigest()}
        self._manifest["shards"].append(entry)
        self._write_manifest()
        self.done.update(names)

    def _write_manifest(self) -> None:
        if None in (self._manifest["shape"] or []):
            self._manifest["format_version"] = RAGGED_VERSION
        write_whole(self.directory / self._manifest_name, json.dumps(self._manifest, indent=1).encode())

    def close(self) -> None:
        """Writes what is left, and the manifest even if this rank had no sample."""
        if self._names:
            self._write_shard(len(self._names))
        else:
            self._write_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _OpenShard:
    """A shard that is being read, sample by sample."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, framework="pt")
        keys = self._file.keys()
        self._masked = "masked" in keys
        self._ends = self._file.get_tensor("lengths").cumsum(0).tolist() if "lengths" in keys else None

    def sample(self, row: int) -> Tensor:
        """The indices of a sample, int64, -1 where masked."""
        place: int | slice = row
        if self._ends is not None:
            place = slice(self._ends[row - 1] if row else 0, self._ends[row])
        indices = self._file.get_slice("indices")[place].to(torch.int64)
        return indices.masked_fill(self._file.get_slice("masked")[place], -1) if self._masked else indices


class TokenShards(Dataset[dict[str, Any]]):
    """Reads token shards: a map-style data set, ordered by name whatever number of ranks and runs wrote it.

    A sample is a dict: `"indices"`, (*shape) int64, -1 where masked; `"name"`, the file name that was predicted.
    Sequences come in their own length: join them with a collate function that pads or packs.

    Args:
        directory: What `TokenShardWriter` filled.

    Attributes:
        codebook_size: K, the largest where levels differ.
        num_codebooks: Codebooks on the last axis; 1 if there is no such axis.
        codebook_sizes: K of each level.
        codebook_hash: Equals `codebook_hash(quantizer)` of the quantizer that can decode these tokens.
        tokenizer: Where that tokenizer was saved; empty if it was not said.
        shape: Shape of one sample; None for a first axis whose length differs.
        names: The names, in order.

    Raises:
        ValueError: If there is no manifest, its format is not known, manifests disagree, a shard is missing, or a name
            appears twice.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        manifests = read_manifests(self.directory)
        if not manifests:
            raise ValueError(f"There is no manifest-*.json in {self.directory}. Give the folder that `predict` wrote.")
        first = next(iter(manifests.values()))
        self._shards = [shard for manifest in manifests.values() for shard in manifest["shards"]]
        for name, manifest in manifests.items():
            for key in IDENTITY:
                if manifest[key] != first[key]:
                    raise ValueError(f"{name} in {self.directory} has {key}={manifest[key]!r}, others {first[key]!r}.")
        shape: list[int | None] | None = None
        try:
            for manifest in manifests.values():
                shape = joined_shape(shape, manifest["shape"] if manifest["shards"] else None)
        except ValueError as error:
            raise ValueError(f"The manifests in {self.directory} have samples of different shapes: {error}") from error
        self.codebook_size: int = first["codebook_size"]
        self.num_codebooks: int = first["num_codebooks"]
        # Manifests that were written before levels could differ do not list the sizes.
        sizes = first.get("codebook_sizes", [self.codebook_size] * self.num_codebooks)
        self.codebook_sizes: tuple[int, ...] = tuple(sizes)
        self.codebook_hash: str = first["codebook_hash"]
        self.tokenizer: str = first["tokenizer"]
        self.shape: tuple[int | None, ...] = tuple(shape or ())
        places: dict[str, tuple[int, int]] = {}
        for number, shard in enumerate(self._shards):
            path = self.directory / shard["file"]
            if not path.is_file():
                raise ValueError(f"{path} is missing. Run predict again: it redoes what is not there.")
            for row, name in enumerate(shard_names(path)):
                if name in places:
                    raise ValueError(f"{name!r} is in {self.directory} twice, in {shard['file']} the second time.")
                places[name] = (number, row)
        self.names = sorted(places)
        self._places = [places[name] for name in self.names]
        self._open: dict[int, Any] = {}

    def verify(self) -> None:
        """Reads every shard whole; raises ValueError naming the first whose bytes are not those that were written."""
        for shard in self._shards:
            if hashlib.sha256((self.directory / shard["file"]).read_bytes()).hexdigest() != shard["sha256"]:
                raise ValueError(f"{self.directory / shard['file']} is damaged. Run predict again, it redoes it.")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        number, row = self._places[index]
        if number not in self._open:
            self._open[number] = _OpenShard(self.directory / self._shards[number]["file"])
        return {"indices": self._open[number].sample(row), "name": self.names[index]}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files stay in the process that opened them
