"""What writer and reader of token shards share: the manifests of a directory, and what they say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

FORMAT_VERSION = 1
RAGGED_VERSION = 2
"""Of directories whose samples differ in length; all else is as in version 1."""
IDENTITY = ("codebook_size", "num_codebooks", "codebook_hash", "data_hash")
"""What the runs that fill a directory have in common."""


def read_manifests(directory: Path) -> dict[str, dict[str, Any]]:
    """All manifests of a directory by file name, in order.

    Raises:
        ValueError: one has another format version.
    """
    manifests = {}
    for path in sorted(directory.glob("manifest-*-of-*.json")):
        manifests[path.name] = json.loads(path.read_text(encoding="utf-8"))
        version = manifests[path.name].get("format_version")
        if version not in (FORMAT_VERSION, RAGGED_VERSION):
            raise ValueError(
                f"{path} has format_version={version!r}: expected {FORMAT_VERSION} or {RAGGED_VERSION}; write the "
                "tokens again, or read them with the version of vqkit that wrote them"
            )
    return manifests


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


def shard_names(path: Path) -> list[str]:
    """The samples' names in a shard, in the order of its rows."""
    with safe_open(path, framework="pt") as shard:
        return json.loads(shard.metadata()["names"])
