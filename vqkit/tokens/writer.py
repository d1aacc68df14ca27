"""Writing token shards."""

import hashlib
import json
import operator
import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors.torch import save
from torch import Tensor

from vqkit import distributed
from vqkit.indices import check_indices
from vqkit.saving.files import write_whole
from vqkit.tokens.codebook_hash import codebook_hash
from vqkit.tokens.manifests import (
    FORMAT_VERSION,
    GRID_VERSION,
    IDENTITY,
    RAGGED_VERSION,
    Shard,
    joined_shape,
    read_manifests,
)

if TYPE_CHECKING:
    from vqkit.quantizers.base import BaseQuantizer


class TokenShardWriter:
    """Writes indices and names as shards, and continues a directory that an interrupted run has left.

    Use it as a context manager or call `close`. Each rank has its own writer on the same directory; creating it is
    collective. What was in memory when a run was killed, less than one shard, has to be added again.

        >>> with TokenShardWriter("tokens", quantizer) as writer:
        ...     writer.add(quantizer.encode(latents), names)

    Args:
        directory: made if missing.
        quantizer: what the indices come from; its codebook sizes and its state are noted.
        data_hash: identifies the data, so that tokens of other data are not mixed in.
        class_names: classes of the samples by number; empty if they have none.
        tokenizer: where the tokenizer is saved, for the reader's use; a relative path is one from the directory.
        weights: what else a manifest shall say of the tokenizer's weights, such as checkpoint and step; JSON values.
        samples_per_shard: samples in a full shard, at least 1.

    Attributes:
        done: names whose tokens are on the disk, written by any rank or earlier run.

    Raises:
        ValueError: the directory was filled with another codebook or from other data, or `samples_per_shard` is below
            1.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        quantizer: "BaseQuantizer",
        *,
        data_hash: str = "",
        class_names: Sequence[str] = (),
        tokenizer: str = "",
        weights: Mapping[str, Any] | None = None,
        samples_per_shard: int = 4096,
    ) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard={samples_per_shard}: expected at least 1")
        quantizer.check_has_codes(type(self).__name__)
        self.directory = Path(directory)
        self.samples_per_shard = samples_per_shard
        self._codebook_sizes = quantizer.codebook_sizes
        self._level_axis = quantizer.level_axis
        self._own = f"{distributed.rank():05d}-of-{distributed.world_size():05d}"
        self._manifest: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "codebook_size": quantizer.codebook_size,
            "num_codebooks": quantizer.num_codebooks,
            "codebook_sizes": list(quantizer.codebook_sizes),
            "codebook_hash": codebook_hash(quantizer),
            "data_hash": data_hash,
            "class_names": list(class_names),
            "tokenizer": tokenizer,
            "weights": dict(weights or {}),
            "shape": None,
            "shards": [],
        }
        self._indices: list[Tensor] = []
        self._names: list[str] = []
        self._labels: list[int] = []
        self._extents: list[list[int]] = []
        self.done: set[str] = set()
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, manifest in read_manifests(self.directory).items():
            self._resume(name, manifest)
        self._known = set(self.done)  # done, or waiting for a full shard
        if distributed.is_distributed():
            torch.distributed.barrier()  # all ranks have read the same directory before one of them adds to it

    @property
    def _manifest_name(self) -> str:
        return f"manifest-{self._own}.json"

    def _resume(self, name: str, manifest: dict[str, Any]) -> None:
        """Take over what a manifest lists, save for shards that are lost."""
        for key in IDENTITY:
            if manifest[key] != self._manifest[key]:
                raise ValueError(
                    f"{self.directory} was filled with {key}={manifest[key]!r} ({name}), this run has "
                    f"{key}={self._manifest[key]!r}: expected one quantizer and one data set; write to another "
                    "directory, or delete this one"
                )
        sound = [shard for shard in manifest["shards"] if self._is_sound(shard)]
        lost = len(sound) < len(manifest["shards"])
        manifest["shards"] = sound
        for shard in sound:
            self.done.update(Shard(self.directory / shard["file"], manifest, shard).names)
        if manifest["format_version"] == GRID_VERSION:
            self._manifest["format_version"] = GRID_VERSION
        version = self._manifest["format_version"]
        self._manifest["shape"] = joined_shape(self._manifest["shape"], manifest["shape"], version=version)
        if name == self._manifest_name:
            self._manifest["shards"] = sound
        if lost and distributed.rank() == 0:
            write_whole(self.directory / name, json.dumps(manifest, indent=1).encode())

    def _is_sound(self, shard: dict[str, Any]) -> bool:
        path = self.directory / shard["file"]
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]:
            return True
        state = "damaged" if path.is_file() else "missing"
        warnings.warn(f"{path} is {state}: its {shard['samples']} samples are redone")
        return False

    def add(
        self,
        indices: Tensor,
        names: Sequence[str],
        *,
        labels: Sequence[int] | Tensor | None = None,
        extents: Sequence[Sequence[int]] | Tensor | None = None,
    ) -> None:
        """Add samples; writes a shard whenever one is full.

        Args:
            indices: (B, *shape) integers as `encode` returns them, -1 where masked; the same shape in every call, save
                for sequences, (B, length) or (B, length, levels), whose length may differ, and for pictures with
                `extents`, (B, height, width) or (B, height, width, levels).
            names: B names, each only once in a directory.
            labels: B numbers of classes where there are `class_names`, else None.
            extents: B pairs, height and width in pixels of the part of the decoded picture that is picture, from its
                upper left corner; in every call or in none.

        Raises:
            ValueError: shape, range, names, labels or extents are not so.
        """
        indices = indices.detach().cpu()
        if indices.ndim == 0 or len(indices) != len(names):
            raise ValueError(
                f"indices has shape {tuple(indices.shape)} and names has {len(names)} entries: expected (B, ...) and B"
            )
        if len(indices) == 0:
            return
        levels = len(self._codebook_sizes)
        if self._level_axis and indices.shape[-1] != levels:
            raise ValueError(f"indices has shape {tuple(indices.shape)}: expected a last axis of all {levels} levels")
        check_indices(indices, self._codebook_sizes, level_axis=self._level_axis)
        classes, pairs = self._checked_labels(len(names), labels), self._checked_extents(len(names), extents)
        shape = self._shape_with(list(indices.shape[1:]), grids=pairs is not None)
        unsound = [name for name in names if re.search("[\ud800-\udfff]", name)]
        if unsound:
            raise ValueError(
                f"names has {unsound[0]!r}, a file's name that is not UTF-8: expected text; store "
                "`vqkit.tokens.names.escaped(name)`"
            )
        fresh = set(names) - self._known
        if len(fresh) < len(names):
            repeated = sorted(self._known.intersection(names)) or sorted(names)
            raise ValueError(
                f"names has {repeated[0]!r}, which is written or waiting already: expected each name once; leave out "
                "those in `done`"
            )
        self._manifest["shape"] = shape
        if pairs is not None:
            self._manifest["format_version"] = GRID_VERSION
        self._known |= fresh
        self._indices.extend(indices.to(torch.int64))
        self._names.extend(names)
        self._labels.extend(classes or ())
        self._extents.extend(pairs or ())
        while len(self._names) >= self.samples_per_shard:
            self._write_shard(self.samples_per_shard)

    def _checked_labels(self, samples: int, labels: Sequence[int] | Tensor | None) -> list[int] | None:
        classes = len(self._manifest["class_names"])
        if labels is None and not classes:
            return None
        numbers = None if labels is None else whole_numbers(labels)
        if numbers is None or len(numbers) != samples or not all(0 <= number < classes for number in numbers):
            expected = f"{samples} numbers from 0 to {classes - 1}" if classes else "none without class_names"
            raise ValueError(f"labels={labels}: expected {expected}")
        return numbers

    def _checked_extents(
        self, samples: int, extents: Sequence[Sequence[int]] | Tensor | None
    ) -> list[list[int]] | None:
        grids = self._manifest["format_version"] == GRID_VERSION
        if self._manifest["shape"] is not None and grids != (extents is not None):
            raise ValueError(
                f"extents={extents}: expected {samples} pairs" if grids else "extents: expected none, as before"
            )
        if extents is None:
            return None
        pairs = [pair for pair in map(whole_numbers, extents) if pair is not None and len(pair) == 2 and min(pair) >= 0]
        if not len(pairs) == len(extents) == samples:
            raise ValueError(f"extents={extents}: expected {samples} pairs of height and width in pixels")
        return pairs

    def _shape_with(self, shape: list[int], *, grids: bool) -> list[int | None] | None:
        known = self._manifest["shape"]
        may_differ = len(shape) == 1 + grids + self._level_axis
        if known in (None, shape) or (may_differ and len(known) == len(shape)):
            return joined_shape(known, shape, version=GRID_VERSION if grids else RAGGED_VERSION)
        raise ValueError(
            f"indices has samples of shape {shape}: expected {known}, as before; give all samples one size (only "
            "sequences may differ, in their length, and pictures with extents)"
        )

    def _write_shard(self, samples: int) -> None:
        waiting, self._indices = self._indices[:samples], self._indices[samples:]
        names, self._names = self._names[:samples], self._names[samples:]
        labels, self._labels = self._labels[:samples], self._labels[samples:]
        extents, self._extents = self._extents[:samples], self._extents[samples:]
        free = 2 if extents else 1  # axes that may differ
        lengths = [list(sample.shape[:free]) for sample in waiting]
        ragged = any(length != lengths[0] for length in lengths)
        indices = torch.cat([sample.flatten(0, free - 1) for sample in waiting]) if ragged else torch.stack(waiting)
        tensors = {"indices": indices.clamp(min=0).to(storage_dtype(self._manifest["codebook_size"]))}
        if ragged:
            tensors["lengths"] = torch.tensor(lengths).squeeze(-1)
        if extents:
            tensors["extents"] = torch.tensor(extents)
        if bool((indices < 0).any()):
            tensors["masked"] = indices < 0
        metadata = {"names": json.dumps(names, ensure_ascii=False)}
        content = save(tensors, metadata=metadata | ({"labels": json.dumps(labels)} if labels else {}))
        used = {shard["file"] for shard in self._manifest["shards"]}
        number = next(n for n in range(len(used) + 1) if f"tokens-{self._own}-{n:06d}.safetensors" not in used)
        file = f"tokens-{self._own}-{number:06d}.safetensors"
        write_whole(self.directory / file, content)
        entry = {"file": file, "samples": samples, "sha256": hashlib.sha256(content).hexdigest()}
        self._manifest["shards"].append(entry)
        self._write_manifest()
        self.done.update(names)

    def _write_manifest(self) -> None:
        if None in (self._manifest["shape"] or []) and self._manifest["format_version"] != GRID_VERSION:
            self._manifest["format_version"] = RAGGED_VERSION
        write_whole(self.directory / self._manifest_name, json.dumps(self._manifest, indent=1).encode())

    def close(self) -> None:
        """Write what is left, and the manifest even if this rank had no sample."""
        if self._names:
            self._write_shard(len(self._names))
        else:
            self._write_manifest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def whole_numbers(values: Iterable[Any]) -> list[int] | None:
    """Integers of Python, numpy or torch as those of Python; None where some are no integers."""
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        return None


def storage_dtype(codebook_size: int) -> torch.dtype:
    """The smallest integer type that holds the indices 0 .. codebook_size - 1."""
    for dtype, bits in ((torch.uint8, 8), (torch.uint16, 16), (torch.uint32, 32)):
        if codebook_size <= 2**bits:
            return dtype
    return torch.int64
