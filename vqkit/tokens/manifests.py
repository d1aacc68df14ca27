"""Manifests and shards of a directory, as writer and reader open and check them."""

import json
import math
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from vqkit.indices import check_indices
from vqkit.saving.annotations import fits
from vqkit.saving.files import named, read_json

FORMAT_VERSION = 1
RAGGED_VERSION = 2
"""Of directories whose samples differ in length; all else is as in version 1."""
GRID_VERSION = 3
"""Of directories of pictures in their own sizes, with the extent of each."""
IDENTITY = ("codebook_size", "num_codebooks", "codebook_hash", "data_hash", "class_names")
"""What the runs that fill a directory have in common."""

_ENTRIES = {
    "codebook_size": int,
    "num_codebooks": int,
    "codebook_sizes": list[int],
    "codebook_hash": str,
    "data_hash": str,
    "class_names": list[str],
    "tokenizer": str,
    "shape": list[int | None] | None,
    "shards": list[dict],
}
_SHARD_ENTRIES = {"file": str, "samples": int, "sha256": str}


def read_manifests(directory: Path) -> dict[str, dict[str, Any]]:
    """All manifests of a directory by file name, in order.

    Raises:
        ValueError: one is damaged, has another format version, or names a file that is not in the directory.
    """
    manifests = {}
    for path in sorted(directory.glob("manifest-*-of-*.json")):
        manifest = read_json(path)
        with named(path):
            _check_manifest(manifest)
        manifests[path.name] = manifest
    return manifests


def _check_manifest(manifest: dict[str, Any]) -> None:
    version = manifest.get("format_version")
    if version not in (FORMAT_VERSION, RAGGED_VERSION, GRID_VERSION):
        raise ValueError(
            f"has format_version={version!r}: expected {FORMAT_VERSION}, {RAGGED_VERSION} or {GRID_VERSION}; write the "
            "tokens again, or read them with the version of vqkit that wrote them"
        )
    manifest.setdefault("class_names", [])  # those without classes, and all that were written before there were any
    if fits(manifest.get("num_codebooks"), int) and not 1 <= manifest["num_codebooks"] <= 2**16:
        raise ValueError(f"has num_codebooks={manifest['num_codebooks']}: expected 1 ... {2**16}")
    if "codebook_sizes" not in manifest and fits(manifest.get("num_codebooks"), int):
        # Manifests that were written before levels could differ do not list the sizes.
        manifest["codebook_sizes"] = [manifest.get("codebook_size")] * manifest["num_codebooks"]
    _check_entries(manifest, _ENTRIES, "")
    sizes = manifest["codebook_sizes"]
    if (len(sizes), max(sizes, default=0)) != (manifest["num_codebooks"], manifest["codebook_size"]) or min(sizes) < 1:
        raise ValueError(
            f"has codebook_sizes={sizes}: expected num_codebooks={manifest['num_codebooks']} positive sizes, of which "
            f"the largest is codebook_size={manifest['codebook_size']}"
        )
    if any(size is not None and size < 0 for size in manifest["shape"] or ()):
        raise ValueError(f"has shape={manifest['shape']}: expected sizes of at least 0")
    for number, shard in enumerate(manifest["shards"]):
        _check_entries(shard, _SHARD_ENTRIES, f"shards.{number}.")
        if not re.fullmatch(r"[\w.-]{1,99}\.safetensors", shard["file"], re.ASCII):
            raise ValueError(
                f"has shards.{number}.file={shard['file']!r}: expected the name of a .safetensors file beside it"
            )


def _check_entries(record: dict[str, Any], entries: dict[str, Any], where: str) -> None:
    for key, kind in entries.items():
        if key not in record or not fits(record[key], kind):
            found = repr(record[key]) if key in record else "none"
            raise ValueError(f"has {where}{key}={found}: expected {kind}")


def joined_shape(
    first: Sequence[int | None] | None, second: Sequence[int | None] | None, *, version: int
) -> list[int | None] | None:
    """The shape of samples of two shapes, with None for an axis whose size differs; one may be unknown (None).

    Args:
        first: one shape.
        second: the other one.
        version: of the directory's format: the first axis may differ, in `GRID_VERSION` the first two.

    Raises:
        ValueError: more than that differs.
    """
    if first is None or second is None:
        known = second if first is None else first
        return None if known is None else list(known)
    if list(first) == list(second):
        return list(first)
    free = 2 if version == GRID_VERSION else 1
    if len(first) != len(second) or not first or list(first[free:]) != list(second[free:]):
        what = "height and width" if version == GRID_VERSION else "length"
        raise ValueError(f"samples of shapes {list(first)} and {list(second)} differ in more than their {what}")
    return [a if a == b else None for a, b in zip(first, second, strict=True)]


class Shard:
    """A shard that is open for reading.

    Args:
        path: of the file.
        manifest: that lists it, checked.
        entry: of the manifest's list of shards.

    Attributes:
        names: of the samples, in the order of its rows.
        labels: numbers of their classes; None where there are no classes.
        extents: (samples, 2) int64, height and width in pixels; None but in `GRID_VERSION`.

    Raises:
        ValueError: the file is damaged, or not what the manifest says.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], entry: dict[str, Any]) -> None:
        self.path = path
        self._sizes = manifest["codebook_sizes"]
        self._mapped: dict[str, Tensor] = {}
        with named(path):
            self._file = safe_open(path, framework="pt")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
            grids = manifest["format_version"] == GRID_VERSION
            needed = {"indices", "extents"} if grids else {"indices"}
            if not needed <= found.keys() <= needed | {"lengths", "masked"}:
                wanted = " and ".join(map(repr, sorted(needed, reverse=True)))
                raise ValueError(f"has tensors {sorted(found)}: expected {wanted}, and perhaps 'lengths' and 'masked'")
            dtype, shape = found["indices"]
            if not re.fullmatch(r"[IU]\d+", dtype):
                raise ValueError(f"'indices' holds {dtype}: expected integers")
            self._masked = "masked" in found
            if self._masked and found["masked"] != ("BOOL", shape):
                raise ValueError(f"'masked' is {found['masked']}: expected {('BOOL', shape)}, the shape of 'indices'")
            metadata = self._file.metadata() or {}
            self.names = json.loads(metadata.get("names", "null"))
            if not fits(self.names, list[str]) or len(self.names) != entry["samples"]:
                raise ValueError(f"metadata 'names' is no list of {entry['samples']} names, as the manifest says")
            self.labels = self._read_labels(metadata, len(manifest["class_names"]))
            self.extents = self._counts("extents", (len(self.names), 2)) if grids else None
            ends = list(range(1, len(self.names) + 1))
            free = 0
            if "lengths" in found:
                free = 1 + grids
                lengths = self._counts("lengths", (len(ends), 2) if grids else (len(ends),)).reshape(-1, free)
                self._lengths = lengths.tolist()
                ends = list(accumulate(map(math.prod, self._lengths)))
            self._ends = ends if "lengths" in found else None
            sizes = [ends[-1] if ends else 0, *(manifest["shape"] or ())[free:]]
            if len(shape) != len(sizes) or any(size not in (None, own) for own, size in zip(shape, sizes, strict=True)):
                raise ValueError(f"'indices' has shape {shape}: expected {sizes}, as the manifest says")
            self._shape = tuple(shape)

    def _read_labels(self, metadata: dict[str, str], classes: int) -> list[int] | None:
        """The numbers of the samples' classes, checked."""
        if not classes:
            return None
        labels = json.loads(metadata.get("labels", "null"))
        if not fits(labels, list[int]) or len(labels) != len(self.names) or not all(0 <= n < classes for n in labels):
            raise ValueError(
                f"metadata 'labels' is no list of {len(self.names)} numbers below {classes}, the manifest's classes"
            )
        return labels

    def _counts(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor of sizes, checked."""
        counts = self._file.get_tensor(name)
        if counts.dtype != torch.int64 or counts.shape != shape or (counts < 0).any():
            raise ValueError(f"{name!r} is no list of {' x '.join(map(str, shape))} int64 of at least 0")
        return counts

    def sample_shape(self, row: int) -> tuple[int, ...]:
        """The shape of a sample's indices."""
        return self._shape[1:] if self._ends is None else (*self._lengths[row], *self._shape[1:])

    def sample(self, row: int) -> Tensor:
        """The indices of a sample, (*shape) int64, -1 where masked."""
        if self._ends is None:
            return self.read(row)
        indices = self.read(slice(self._ends[row - 1] if row else 0, self._ends[row]))
        return indices.reshape(*self._lengths[row], *indices.shape[1:])

    def read(self, rows: int | slice = slice(None)) -> Tensor:
        """The indices of some rows, or of all, (..., *shape) int64, -1 where masked.

        Raises:
            ValueError: some are out of the range that the manifest gives.
        """
        with named(self.path):
            indices = self._tensor("indices")[rows].to(torch.int64)
            check_indices(indices, self._sizes, level_axis=len(self._sizes) > 1)
            return indices.masked_fill(self._tensor("masked")[rows], -1) if self._masked else indices

    def _tensor(self, name: str) -> Tensor:
        """A tensor of the file, which stays there until some of it is read (memory-mapped)."""
        if name not in self._mapped:
            self._mapped[name] = self._file.get_tensor(name)
        return self._mapped[name]
