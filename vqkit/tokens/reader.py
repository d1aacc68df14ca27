"""Reading token shards, sample by sample."""

import hashlib
import os
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from vqkit.tokens.codebook_hash import codebook_hash
from vqkit.tokens.manifests import IDENTITY, Shard, joined_shape, read_manifests


class TokenShards(Dataset[dict[str, Any]]):
    """A map-style data set of token shards, ordered by name whatever number of ranks and runs wrote them.

    A sample is a dict: `"indices"`, (*shape) int64, -1 where masked; `"name"`, as the writer was given it; where there
    are classes `"label"`, the number of its class; for pictures in their own sizes `"extent"`, (2,) int64, height and
    width in pixels of the part of the decoded picture that is picture, from its upper left corner. Sequences and such
    pictures come in their own size, which `pad_tokens` joins.

        >>> shards = TokenShards("runs/mine/tokens", expected=tokenizer.quantizer)
        >>> loader = torch.utils.data.DataLoader(shards, batch_size=64, shuffle=True, collate_fn=pad_tokens)

    Args:
        directory: what `TokenShardWriter` filled.
        expected: the quantizer that is going to decode the tokens, or its `codebook_hash`; None takes any tokens.

    Attributes:
        codebook_size: K, the largest where levels differ.
        num_codebooks: codebooks on the last axis; 1 if there is no such axis.
        codebook_sizes: K of each level.
        codebook_hash: equals `codebook_hash(quantizer)` of the quantizer that decodes these tokens.
        tokenizer: where that tokenizer was saved; empty if it was not said.
        class_names: by number; empty if there are no classes.
        shape: of one sample; None for an axis whose size differs.
        names: in order.

    Raises:
        ValueError: there is no manifest, its format is not known, manifests disagree, a shard is missing or not what
            its manifest says, a name appears twice, or another codebook than `expected` wrote them. Reading raises it
            too, where indices are out of range, or where a shard was written again since the data set was made.
    """

    def __init__(self, directory: str | os.PathLike[str], *, expected: nn.Module | str | None = None) -> None:
        self.directory = Path(directory)
        manifests = read_manifests(self.directory)
        if not manifests:
            raise ValueError(
                f"directory={str(directory)!r} holds no manifest-*.json: expected a folder that TokenShardWriter or "
                "`python -m trainers predict` filled"
            )
        first = next(iter(manifests.values()))
        wanted = codebook_hash(expected) if isinstance(expected, nn.Module) else expected
        if wanted not in (None, first["codebook_hash"]):
            raise ValueError(
                f"{self.directory} holds tokens of codebook_hash={first['codebook_hash']!r}, expected={wanted!r}: "
                "another codebook decodes them to something else; give the quantizer that wrote them, or write them "
                "again"
            )
        version = max(manifest["format_version"] for manifest in manifests.values())
        self._shards = [(manifest, entry) for manifest in manifests.values() for entry in manifest["shards"]]
        shape: list[int | None] | None = None
        for name, manifest in manifests.items():
            for key in IDENTITY:
                if manifest[key] != first[key]:
                    raise ValueError(
                        f"{self.directory / name} has {key}={manifest[key]!r}: expected {first[key]!r}, as in the "
                        "manifests before it; the tokens of two quantizers or data sets belong in two directories"
                    )
            try:
                shape = joined_shape(shape, manifest["shape"] if manifest["shards"] else None, version=version)
            except ValueError as error:
                raise ValueError(f"{self.directory / name} disagrees with the manifests before it: {error}") from error
        self.codebook_size: int = first["codebook_size"]
        self.num_codebooks: int = first["num_codebooks"]
        self.codebook_sizes: tuple[int, ...] = tuple(first["codebook_sizes"])
        self.codebook_hash: str = first["codebook_hash"]
        self.class_names: tuple[str, ...] = tuple(first["class_names"])
        self.tokenizer: str = first["tokenizer"]
        self.shape: tuple[int | None, ...] = tuple(shape or ())
        places: dict[str, tuple[int, int]] = {}
        self._found: list[tuple[int, int]] = []
        for number in range(len(self._shards)):
            shard = self._shard(number)
            self._found.append(_version(shard.path))
            for row, name in enumerate(shard.names):
                if name in places:
                    raise ValueError(
                        f"{shard.path} holds {name!r}, which another shard holds too: expected it only once"
                    )
                places[name] = (number, row)
        self.names = sorted(places)
        self._places = [places[name] for name in self.names]
        self._open: dict[int, Shard] = {}

    def _shard(self, number: int) -> Shard:
        manifest, entry = self._shards[number]
        path = self.directory / entry["file"]
        if not path.is_file():
            raise ValueError(f"{path} is missing: write its samples again; a new writer leaves out what is there")
        return Shard(path, manifest, entry)

    def verify(self) -> None:
        """Read every shard whole, and compare its sha256 and the range of its indices with the manifest.

        Raises:
            ValueError: a shard does not hold the bytes that were written, or an index is out of range.
        """
        for number, (_, entry) in enumerate(self._shards):
            shard = self._shard(number)
            if hashlib.sha256(shard.path.read_bytes()).hexdigest() != entry["sha256"]:
                raise ValueError(
                    f"{shard.path} is damaged: write its samples again; a new writer leaves out what is sound"
                )
            shard.read()

    def __len__(self) -> int:
        return len(self.names)

    def _place(self, index: int) -> tuple[Shard, int]:
        number, row = self._places[index]
        if number not in self._open:
            shard = self._shard(number)
            if _version(shard.path) != self._found[number]:
                raise ValueError(
                    f"{shard.path} was written again since this data set was made: its samples may be others, of "
                    "another codebook; make TokenShards again"
                )
            self._open[number] = shard
        return self._open[number], row

    def sample_shape(self, index: int) -> tuple[int, ...]:
        """The shape of a sample's indices, of which it reads none.

        Args:
            index: of the sample.
        """
        shard, row = self._place(index)
        return shard.sample_shape(row)

    def __getitem__(self, index: int) -> dict[str, Any]:
        shard, row = self._place(index)
        sample: dict[str, Any] = {"indices": shard.sample(row), "name": self.names[index]}
        if shard.labels is not None:
            sample["label"] = shard.labels[row]
        if shard.extents is not None:
            sample["extent"] = shard.extents[row]
        return sample

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # open files stay in the process that opened them


def _version(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns, which tell a file from another one of its name."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns
