"""Manifests and shards of a directory, as writer and reader open and check them."""

import json
import re
from collections.abc import Sequence
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
IDENTITY = ("codebook_size", "num_codebooks", "codebook_hash", "data_hash")
"""What the runs that fill a directory have in common."""

_ENTRIES = {
    "codebook_size": int,
    "num_codebooks": int,
    "codebook_sizes": list[int],
    "codebook_hash": str,
    "data_hash": str,
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
    if version not in (FORMAT_VERSION, RAGGED_VERSION):
        raise ValueError(
            f"has format_version={version!r}: expected {FORMAT_VERSION} or {RAGGED_VERSION}; write the "
            "tokens again, or read them with the version of vqkit that wrote them"
        )
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


def joined_shape(first: Sequence[int | None] | None, second: Sequence[int | None] | None) -> list[int | None] | None:
    """The shape of samples of two shapes, with None for a first axis whose length differs; one may be unknown (None).

    Raises:
        ValueError: more than the first axis differs.
    """
    if first is None or second is None:
        known = second if first is None else first
        return None if known is None else list(known)
    if list(first) == list(second):
        return list(first)
    if len(first) != len(second) or not first or list(first[1:]) != list(second[1:]):
        raise ValueError(f"samples of shapes {list(first)} and {list(second)} differ in more than their length")
    return [None, *first[1:]]


class Shard:
    """A shard that is open for reading.

    Args:
        path: of the file.
        manifest: that lists it, checked.
        entry: of the manifest's list of shards.

    Attributes:
        names: of the samples, in the order of its rows.

    Raises:
        ValueError: the file is damaged, or not what the manifest says.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], entry: dict[str, Any]) -> None:
        self.path = path
        self._sizes = manifest["codebook_sizes"]
        with named(path):
            self._file = safe_open(path, framework="pt")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118
            found = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
            if "indices" not in found or not found.keys() <= {"indices", "lengths", "masked"}:
                raise ValueError(f"has tensors {sorted(found)}: expected 'indices', and perhaps 'lengths' and 'masked'")
            dtype, shape = found["indices"]
            if not re.fullmatch(r"[IU]\d+", dtype):
                raise ValueError(f"'indices' holds {dtype}: expected integers")
            self._masked = "masked" in found
            if self._masked and found["masked"] != ("BOOL", shape):
                raise ValueError(f"'masked' is {found['masked']}: expected {('BOOL', shape)}, the shape of 'indices'")
            self.names = json.loads((self._file.metadata() or {}).get("names", "null"))
            if not fits(self.names, list[str]) or len(self.names) != entry["samples"]:
                raise ValueError(f"metadata 'names' is no list of {entry['samples']} names, as the manifest says")
            ends = range(1, len(self.names) + 1)
            if "lengths" in found:
                lengths = self._file.get_tensor("lengths")
                if lengths.dtype != torch.int64 or lengths.shape != (len(ends),) or (lengths < 0).any():
                    raise ValueError(f"'lengths' is no list of {len(ends)} int64 of at least 0")
                ends = lengths.cumsum(0).tolist()
            self._ends = ends if "lengths" in found else None
            wanted = [ends[-1] if ends else 0, *(manifest["shape"] or ())[self._ends is not None :]]
            if len(shape) != len(wanted) or any(
                size not in (None, own) for own, size in zip(shape, wanted, strict=True)
            ):
                raise ValueError(f"'indices' has shape {shape}: expected {wanted}, as the manifest says")

    def sample(self, row: int) -> Tensor:
        """The indices of a sample, (*shape) int64, -1 where masked."""
        if self._ends is None:
            return self.read(row)
        return self.read(slice(self._ends[row - 1] if row else 0, self._ends[row]))

    def read(self, rows: int | slice = slice(None)) -> Tensor:
        """The indices of some rows, or of all, (..., *shape) int64, -1 where masked.

        Raises:
            ValueError: some are out of the range that the manifest gives.
        """
        with named(self.path):
            indices = self._file.get_slice("indices")[rows].to(torch.int64)
            check_indices(indices, self._sizes, level_axis=len(self._sizes) > 1)
            return indices.masked_fill(self._file.get_slice("masked")[rows], -1) if self._masked else indices
