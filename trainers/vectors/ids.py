"""Tables of semantic IDs: made by a tokenizer, made unique, written as Parquet, and continued with new items."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from trainers.vectors.data import VectorTable
from trainers.vectors.files import load_pyarrow
from vqkit.quantizers.residual import ResidualQuantizer
from vqkit.saving.files import write_whole
from vqkit.tokenizers.vectors import VectorTokenizer
from vqkit.tokens.semantic_ids import Suffixes, unique_last_level

ITEM, LEVEL, SUFFIX = "item_id", "level_", "suffix"
"""Names of the columns; levels are numbered from 1, coarse first."""
CODEBOOK = "vqkit_codebook"
"""Entry of the file's metadata."""
_CHUNK = 2**14


@dataclass(frozen=True)
class IDTable:
    """Items and their IDs.

    Attributes:
        items: M ids of items, numbers or text.
        semantic_ids: (M, levels) int64.
        suffixes: (M,) int64, the number of an item among those of its tuple; None where there are none.
        codebook: hash of the quantizer that chose them (`vqkit.tokens.codebook_hash`); "" where it is not known.
    """

    items: Sequence[Any]
    semantic_ids: Tensor
    suffixes: Tensor | None = None
    codebook: str = ""

    def write(self, path: Path) -> None:
        """Write a Parquet file, whole or not at all.

        Raises:
            ImportError: pyarrow is not installed.
        """
        pyarrow, parquet = load_pyarrow()
        columns: dict[str, Any] = {ITEM: list(self.items)}
        for number, level in enumerate(self.semantic_ids.unbind(1), start=1):
            columns[f"{LEVEL}{number}"] = level.to(torch.int32).numpy()
        if self.suffixes is not None:
            columns[SUFFIX] = self.suffixes.to(torch.int32).numpy()
        content = BytesIO()
        parquet.write_table(pyarrow.table(columns, metadata={CODEBOOK: self.codebook}), content)
        write_whole(path, content.getbuffer())

    @classmethod
    def read(cls, path: Path) -> "IDTable":
        """Read what `write` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, or has other columns.
        """
        pyarrow, parquet = load_pyarrow()
        try:
            table = parquet.read_table(path)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{path} is no readable Parquet file: {error}") from error
        levels = [name for name in table.column_names if name.startswith(LEVEL)]
        if ITEM not in table.column_names or levels != [f"{LEVEL}{n}" for n in range(1, len(levels) + 1)] or not levels:
            raise ValueError(
                f"{path} has the columns {', '.join(table.column_names)}: expected {ITEM}, {LEVEL}1, {LEVEL}2 and so "
                f"on, and {SUFFIX} where there are suffixes, as python -m trainers ids writes them"
            )
        found = [torch.from_numpy(table.column(name).to_numpy().astype(numpy.int64)) for name in levels]
        has_suffix = SUFFIX in table.column_names
        suffixes = torch.from_numpy(table.column(SUFFIX).to_numpy().astype(numpy.int64)) if has_suffix else None
        codebook = (table.schema.metadata or {}).get(CODEBOOK.encode(), b"").decode()
        return cls(table.column(ITEM).to_pylist(), torch.stack(found, dim=1), suffixes, codebook)


def joined(tables: Sequence[IDTable]) -> IDTable:
    """The IDs of several tables, as of a catalogue and of what came later.

    Args:
        tables: at least one.

    Raises:
        ValueError: they are of several codebooks, differ in their levels, or some have suffixes and some none.
    """
    kinds = {(table.codebook, table.semantic_ids.shape[1], table.suffixes is None) for table in tables}
    if len(kinds) > 1:
        words = sorted(
            f"{levels} levels {'without' if bare else 'with'} suffixes of codebook {codebook[:8] or 'unknown'}"
            for codebook, levels, bare in kinds
        )
        raise ValueError(f"the tables of known IDs differ ({'; '.join(words)}): give those of one catalogue")
    items = [item for table in tables for item in table.items]
    suffixes = [table.suffixes for table in tables if table.suffixes is not None]
    tuples = torch.cat([table.semantic_ids for table in tables])
    return IDTable(items, tuples, torch.cat(suffixes) if suffixes else None, tables[0].codebook)


@torch.no_grad()
def encoded(tokenizer: VectorTokenizer, vectors: Tensor) -> Tensor:
    """The tuples (B, levels) of vectors (B, D); of one level too."""
    return tokenizer.encode(vectors).view(len(vectors), -1)


def tuples_of(tokenizer: VectorTokenizer, table: VectorTable) -> Tensor:
    """The tuples (M, levels) of all items of a table."""
    return torch.cat([encoded(tokenizer, batch) for batch in _batches(table)])


def with_suffixes(semantic_ids: Tensor, known: IDTable | None = None) -> Tensor:
    """Suffixes (M,) of tuples, which go on behind those of a table.

    Raises:
        ValueError: the table has other levels, or no suffixes.
    """
    if known is None:
        return Suffixes().add(semantic_ids)
    if known.suffixes is None:
        raise ValueError("the known IDs have no suffixes to go on from: make all of them with suffixes, or none")
    return Suffixes.of(known.semantic_ids, known.suffixes).add(semantic_ids)


@torch.no_grad()
def with_own_last_codes(tokenizer: VectorTokenizer, table: VectorTable, known: IDTable | None = None) -> Tensor:
    """Tuples (M, levels) of which each is that of one item, and of none of a table; see `unique_last_level`.

    Raises:
        ValueError: the quantizer is not residual, a prefix has more items than the last level has codes, or the table
            has suffixes.
    """
    if known is not None and known.suffixes is not None:
        raise ValueError("the known IDs have suffixes, so that their tuples are no IDs: go on with suffixes")
    quantizer = tokenizer.quantizer
    if not isinstance(quantizer, ResidualQuantizer):
        raise ValueError(
            f"the quantizer is a {type(quantizer).__name__}: expected a ResidualQuantizer, whose last level can choose "
            "among what the others leave over; tell items apart by suffixes instead"
        )
    latents = torch.cat([tokenizer.latents(batch) for batch in _batches(table)])
    return unique_last_level(quantizer, latents, None if known is None else known.semantic_ids)


def _batches(table: VectorTable) -> Iterator[Tensor]:
    for start in range(0, len(table), _CHUNK):
        yield table.batch(range(start, min(start + _CHUNK, len(table))))
