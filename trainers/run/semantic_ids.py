"""`python -m trainers ids`: a table of semantic IDs; `python -m trainers kmeans`: a tokenizer without a training."""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers.run.folders import find_run
from trainers.vectors.data import VectorTable
from trainers.vectors.files import load_pyarrow
from trainers.vectors.ids import IDTable, joined, tuples_of, with_own_last_codes, with_suffixes
from trainers.vectors.kmeans import PLAIN, kmeans_tokenizer
from vqkit.clustering import balanced_kmeans
from vqkit.saving.pretrained import CONFIG_NAME, check_replaceable
from vqkit.tokenizers.vectors import VectorTokenizer
from vqkit.tokens.codebook_hash import codebook_hash
from vqkit.tokens.semantic_ids import Collisions, collisions

UNIQUE = ("suffix", "last_level", "no")
"""What tells items of one tuple apart."""


def semantic_ids(arguments: Sequence[str]) -> list[str]:
    """Write the IDs of items.

    Args:
        arguments: words of the command, without `ids`.

    Returns:
        Lines for a person: collisions, and what was written.

    Raises:
        FileNotFoundError: there are no such items or no such tokenizer.
        ValueError: they do not fit, items are given twice, or IDs cannot be made unique so.
        ImportError: pyarrow is not installed.
    """
    parser = argparse.ArgumentParser(prog="python -m trainers ids", description="Write the semantic IDs of items.")
    parser.add_argument("tokenizer", type=Path, help="run folder, its name in runs, or a saved tokenizer")
    _add_items(parser)
    parser.add_argument("--to", type=Path, required=True, help="Parquet file to write")
    parser.add_argument(
        "--unique",
        choices=UNIQUE,
        default="suffix",
        help="suffix: a number behind the tuple; last_level: another last code; no: items may share an ID "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--known", type=Path, nargs="+", help="all IDs that were written before: they stay, their items are left out"
    )
    asked = parser.parse_args(arguments)
    load_pyarrow()
    tokenizer = load_tokenizer(asked.tokenizer)
    table = VectorTable(asked.items, column=asked.column, id_column=asked.id_column)
    if (table.channels, table.steps) != (tokenizer.channels, None):
        raise ValueError(
            f"{asked.items} holds items of {table.channels} dimensions{'' if table.steps is None else ' in series'}, "
            f"and {asked.tokenizer} is for vectors of {tokenizer.channels}"
        )
    items = table.ids(range(len(table)))
    if len(set(items)) < len(items):
        twice = Counter(items).most_common(1)[0][0]
        raise ValueError(f"{asked.items}: the item {twice!r} is there more than once, expected each once")
    own = codebook_hash(tokenizer.quantizer)
    known = None if asked.known is None else joined([IDTable.read(path) for path in asked.known])
    plain = tuples_of(tokenizer, table)
    if known is not None:
        names = ", ".join(map(str, asked.known))
        if known.codebook not in ("", own):
            raise ValueError(
                f"{names} was written with another codebook than that of {asked.tokenizer}: equal tuples would "
                "not mean the same; give the tokenizer that wrote it, or write all IDs anew"
            )
        if table.files[0].ids is None:
            _check_rows(items, plain, known, f"{asked.items} and {names}")
        there = set(known.items)
        new = [number for number, item in enumerate(items) if item not in there]
        if not new:
            return [f"all {len(items)} items are in {names} already; nothing is written"]
        table.keep(new)
        items, plain = [items[number] for number in new], plain[new]
    suffixes = None
    if asked.unique == "suffix":
        suffixes = with_suffixes(plain, known)
    made = with_own_last_codes(tokenizer, table, known) if asked.unique == "last_level" else plain
    IDTable(items, made, suffixes, own).write(asked.to)
    lines = [f"{len(items)} items, {tokenizer.quantizer.bits_per_token:g} bits: {in_words(collisions(plain))}"]
    if suffixes is not None:
        lines.append(f"suffixes up to {int(suffixes.max())} make every ID unique")
    elif asked.unique == "last_level":
        lines.append(f"{int((made != plain).any(1).sum())} items have another last code: every ID is unique")
    return [*lines, f"written: {asked.to}"]


def residual_kmeans(arguments: Sequence[str]) -> list[str]:
    """Fit codebooks to items without an encoder, and save them as a tokenizer.

    Args:
        arguments: words of the command, without `kmeans`.

    Returns:
        Lines for a person: collisions, and how to go on.

    Raises:
        FileNotFoundError: there are no such items.
        ValueError: there are too few of them, or the target holds something else.
    """
    parser = argparse.ArgumentParser(
        prog="python -m trainers kmeans", description="Residual k-means of items, as a tokenizer: IDs without training."
    )
    _add_items(parser)
    parser.add_argument("--to", type=Path, required=True, help="folder to write; a tokenizer that is there is replaced")
    parser.add_argument("--codes", type=int, nargs="+", default=[256] * 3, help="of each level (default: 256 256 256)")
    parser.add_argument("--balanced", action="store_true", help="clusters of equally many items")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    check_replaceable(asked.to)
    table = VectorTable(asked.items, column=asked.column, id_column=asked.id_column)
    if table.steps is not None:
        raise ValueError(f"{asked.items} holds series: expected vectors (N, D)")
    cluster = balanced_kmeans if asked.balanced else PLAIN
    tokenizer = kmeans_tokenizer(table.batch(range(len(table))), asked.codes, cluster=cluster, seed=asked.seed)
    tokenizer.save_pretrained(asked.to)
    return [
        f"{len(table)} items of {table.channels} dimensions: {in_words(collisions(tuples_of(tokenizer, table)))}",
        f"saved; python -m trainers ids {asked.to} {asked.items} --to ids.parquet",
    ]


def load_tokenizer(asked: Path) -> VectorTokenizer:
    """That of a run folder, or in a folder of its own.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is another kind of tokenizer, or damaged.
    """
    found = find_run(asked)
    own = found if (found / CONFIG_NAME).is_file() else found / "tokenizer"
    if not (own / CONFIG_NAME).is_file():
        raise FileNotFoundError(
            f"{asked} is neither a run with a tokenizer nor a saved tokenizer: {own} does not exist"
        )
    return VectorTokenizer.from_pretrained(own)


def in_words(found: Collisions) -> str:
    """What collides, for a person."""
    prefixes = ", ".join(map(str, found.prefixes))
    return (
        f"{found.unique:.2%} have an ID of their own, {found.colliding} collide, {found.largest_group} at most in one; "
        f"different prefixes by level: {prefixes}"
    )


def _check_rows(items: Sequence[Any], semantic_ids: Tensor, known: IDTable, names: str) -> None:
    """Refuse items that are named by their rows, if these were rows of something else."""
    places = {item: number for number, item in enumerate(known.items)}
    pairs = torch.tensor([(number, places[item]) for number, item in enumerate(items) if item in places])
    if not len(pairs):
        return
    first = max(1, semantic_ids.shape[1] - 1)  # the last code may have been given up for another
    alike = (semantic_ids[pairs[:, 0], :first] == known.semantic_ids[pairs[:, 1], :first]).all(1)
    if 2 * int(alike.sum()) < len(alike):
        raise ValueError(
            f"{names}: items are named by their rows, and {int((~alike).sum())} of {len(alike)} rows hold other "
            "vectors than there; name items by --id-column"
        )


def _add_items(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("items", type=Path, help="vectors: a Parquet, npy or safetensors file, or a folder of them")
    parser.add_argument("--column", help="of the vectors (Parquet), or their tensor (safetensors)")
    parser.add_argument("--id-column", help="of the items' ids; by default rows are numbered")
