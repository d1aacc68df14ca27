"""Lists of files, with a side of the split for each where the list says so."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqkit.tokens.names import escaped, unescaped

SIDES = ("train", "validation")
COLUMNS = "path, and if wanted split"


@dataclass(frozen=True)
class ListedFile:
    """One line of a manifest.

    Attributes:
        path: The file.
        side: "train" or "validation", or None where the manifest does not divide.
    """

    path: Path
    side: str | None


def read_manifest(manifest: Path) -> list[ListedFile]:
    """Reads a list of files; relative paths are relative to the list's own folder.

    `.txt` has a path a line (empty lines and those that begin with # are left out); `.csv` and `.tsv` have a header
    with the column `path` and, if wanted, `split`; `.jsonl` has an object a line with these keys. Other columns and
    keys are left out. A path may be written as `vqkit.tokens.names.escaped` does.

    Args:
        manifest: The list.

    Raises:
        ValueError: With the list and the line, if the format is not known, a path is missing, listed twice or not
            there, or a split is not one of "train" and "validation" or is given for some files only.
    """
    readers = {".txt": _plain, ".csv": _table, ".tsv": _table, ".jsonl": _objects}
    if manifest.suffix.lower() not in readers:
        raise ValueError(f"manifest={str(manifest)!r} must end in one of {', '.join(readers)}.")
    listed: list[ListedFile] = []
    lines: dict[Path, int] = {}
    for line, path, side in readers[manifest.suffix.lower()](manifest):
        where = escaped(f"{manifest}:{line}")
        if not path:
            raise ValueError(f"{where} has no path. Give {COLUMNS}.")
        if side is not None and side not in SIDES:
            raise ValueError(f"{where} has split={side!r}; it must be one of {', '.join(SIDES)}.")
        file = manifest.parent / path
        if not file.is_file():
            file = manifest.parent / unescaped(path)
        if file in lines:
            raise ValueError(
                f"{where} lists {escaped(path)} a second time, after line {lines[file]}. Remove one of them."
            )
        if not file.is_file():
            raise ValueError(
                f"{where} lists {escaped(path)}, but {escaped(str(file))} is not a file. Paths are relative to "
                "the manifest."
            )
        if listed and (side is None) != (listed[0].side is None):
            raise ValueError(f"{where} differs from the lines before: give every file a split, or none.")
        lines[file] = line
        listed.append(ListedFile(file, side))
    if not listed:
        raise ValueError(f"{manifest} lists no file. Give {COLUMNS}.")
    return listed


def _plain(manifest: Path) -> Iterator[tuple[int, str, str | None]]:
    for number, line in enumerate(_text(manifest).split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip(), None


def _table(manifest: Path) -> Iterator[tuple[int, str, str | None]]:
    delimiter = "\t" if manifest.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(_text(manifest), newline=""), delimiter=delimiter)
    if "path" not in (rows.fieldnames or []):
        raise ValueError(f"{manifest}:1 must be a header with the column path, got {rows.fieldnames}.")
    has_side = "split" in (rows.fieldnames or [])
    for row in rows:
        yield rows.line_num, (row["path"] or "").strip(), (row["split"] or "").strip() if has_side else None


def _objects(manifest: Path) -> Iterator[tuple[int, str, str | None]]:
    for number, line in enumerate(_text(manifest).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest}:{number} is not JSON: {error}.") from error
        if not isinstance(row, dict) or not isinstance(row.get("path"), str):
            raise ValueError(f'{manifest}:{number} must be an object with a text "path", got {line.strip()[:80]}.')
        side = row.get("split")
        yield number, row["path"].strip(), None if side is None else str(side)


def _text(manifest: Path) -> str:
    try:
        return manifest.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{manifest} is not text in UTF-8: {error}.") from error
