"""Builds a folder of training and validation files out of Debian packages.

``<destination>/train/<package>/`` and ``<destination>/validation/<package>/`` hold the files, with ``transcripts.tsv``
beside them where the package says what is spoken. ``manifest.json`` says where each comes from,
``licences/<package>.txt`` is the package's own copyright file. A package is written aside and moved into place when it
is whole; its record in ``.packages/`` is written last and is what a later run trusts.
"""

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from fetching import photographs, sounds, tables
from fetching.debian import FetchError, PackageFile, obtain, sha256_of, unpack
from fetching.sources import Source, files_in, sources
from vqkit.saving.files import write_whole

MEDIA = {
    "photos": photographs,
    "drawings": photographs,
    "speech": sounds,
    "unheard": sounds,
    "music": sounds,
    "fashion-mnist": tables,
}
# Raise this number when the choice or the way of writing changes: packages written before are then built again.
RECIPE = 2
RECORDS = ".packages"
SPLITS = ("train", "validation")
VALIDATION_SHARE = 0.1


@dataclass
class Record:
    """What was made of one package; the done marker, and the part of the manifest that concerns it."""

    package: str
    version: str
    deb_sha256: str
    as_measured: bool
    licence: str
    recipe: str
    left_out: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # sha256 of the transcripts.tsv files, by path
    files: list[dict[str, Any]] = field(default_factory=list)


def build(
    collection: str, packages: Sequence[str], *, destination: Path, downloads: Path, say: Callable[[str], None] = print
) -> list[Record]:
    """Fetches the packages that are not there yet and writes their files and the manifest.

    Args:
        collection: a table of ``sources.toml``.
        packages: names of packages in it.
        destination: folder of the files; it must be new, empty, or made by this function.
        downloads: folder where .deb files are kept.
        say: receives one line of progress at a time.

    Returns:
        The records of all packages in the folder, those of earlier runs included, in the order of ``sources.toml``.

    Raises:
        FetchError: the destination holds something else, or at least one package could not be fetched or read; the
            others are then complete.
    """
    known = sources(collection)
    # In the order of sources.toml, whatever order was asked for: the choice among duplicates is always the same.
    wanted = [name for name in known if name in packages]
    failed: list[str] = []
    with _claimed(destination):
        records = {name: record for name in known if (record := _finished(known[name], destination)) is not None}
        for number, name in enumerate(wanted, start=1):
            heading = f"[{number}/{len(wanted)}] {name}"
            if name in records:
                say(f"{heading}: already there, {counted(records[name].files)}")
                continue
            earlier = [entry for record in records.values() for entry in record.files]
            try:
                deb = obtain(name, downloads=downloads, known_sha256=known[name].sha256, say=say)
                record = _build_package(deb, known[name], collection, earlier, destination)
            except FetchError as error:
                failed.append(name)
                say(f"{heading}: FAILED. {error}")
                continue
            records[name] = record
            left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(record.left_out.items())) or "none"
            say(f"{heading}: {counted(record.files)} (left out: {left_out})")
            if not record.as_measured:
                say(f"{heading}: {record.version} is not the file that was measured ({known[name].version})")
        ordered = [records[name] for name in known if name in records]
        write_whole(destination / "manifest.json", _json(_manifest(ordered)))
    if failed:
        raise FetchError(
            f"{len(failed)} of {len(wanted)} packages could not be fetched ({', '.join(failed)}); the reasons are "
            "above. The others are complete."
        )
    return ordered


def counted(entries: Sequence[dict[str, Any]]) -> str:
    """Says how many files these are, and how many minutes if they are recordings."""
    minutes = sum(entry.get("seconds", 0) for entry in entries) / 60
    return f"{len(entries)} files" + (f", {minutes:.1f} min" if minutes else "")


def split_of(source: Source, below: str, source_sha256: str) -> str:
    """Returns "train" or "validation" for a file.

    By its name where the package has a split of its own; by its number where it numbers its files: every tenth
    validates. Else by the hash of the file in the package. A file never changes sides when others come or go.
    """
    if source.validation:
        return SPLITS[source.validates(below)]
    number = source.number_of(PurePosixPath(below).stem)
    validates = int(source_sha256, 16) >= int(2**256 * (1 - VALIDATION_SHARE)) if number is None else number % 10 == 0
    return SPLITS[validates]


@contextmanager
def _claimed(destination: Path) -> Iterator[None]:
    """Keeps a folder for this run, and clears away what a killed one left."""
    if destination.exists() and not destination.is_dir():
        raise FetchError(f"--destination {destination} is a file; name a folder.")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / RECORDS).is_dir():
        raise FetchError(
            f"--destination {destination} holds files that this command did not write, and it would delete some. "
            "Name a new or an empty folder."
        )
    (destination / RECORDS).mkdir(parents=True, exist_ok=True)
    with (destination / RECORDS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"Another run is writing to {destination}; wait for it or name another folder.") from None
        for leftover in destination.glob(".partial-*"):
            shutil.rmtree(leftover)
        yield


def _recipe(source: Source) -> str:
    rules = {key: value for key, value in asdict(source).items() if key not in ("version", "sha256", "licence")}
    return hashlib.sha256(repr((RECIPE, rules)).encode()).hexdigest()[:16]


def _finished(source: Source, destination: Path) -> Record | None:
    marker = destination / RECORDS / f"{source.package}.json"
    if not marker.is_file():
        return None
    try:
        record = Record(**json.loads(marker.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return None  # written by an older form of this command
    hashes = {entry["file"]: entry["sha256"] for entry in record.files} | record.texts
    whole = record.recipe == _recipe(source) and all(
        (destination / file).is_file() and sha256_of(destination / file) == sha256 for file, sha256 in hashes.items()
    )
    return record if whole else None


def _build_package(
    deb: PackageFile, source: Source, collection: str, earlier: Sequence[dict[str, Any]], destination: Path
) -> Record:
    as_measured = deb.sha256 == source.sha256
    record = Record(source.package, deb.version, deb.sha256, as_measured, source.licence, _recipe(source))
    marker = destination / RECORDS / f"{source.package}.json"
    marker.unlink(missing_ok=True)
    for split in SPLITS:  # what an interrupted run left: no record vouches for it
        shutil.rmtree(destination / split / source.package, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=destination) as partial:
        staged, unpacked = Path(partial), Path(partial) / "unpacked"
        unpack(deb, unpacked)
        _stage(unpacked, source, collection, earlier, record, staged)
        for split in SPLITS:
            if (staged / split).is_dir():
                (destination / split).mkdir(exist_ok=True)
                (staged / split).rename(destination / split / source.package)
        notice = unpacked / "usr/share/doc" / source.package / "copyright"
        if notice.is_file():
            write_whole(destination / "licences" / f"{source.package}.txt", notice.read_bytes())
    write_whole(marker, _json(asdict(record)))
    return record


def _stage(
    unpacked: Path,
    source: Source,
    collection: str,
    earlier: Sequence[dict[str, Any]],
    record: Record,
    staged: Path,
) -> None:
    medium = MEDIA[collection]
    texts = source.texts(unpacked)
    tables = {split: "" for split in SPLITS}
    left_out: Counter[str] = Counter()
    found = files_in(
        unpacked / source.base, lambda below: below.lower().endswith(medium.SUFFIXES) and source.wants(below)
    )
    for below, source_sha256, name, encoded, facts in medium.choose(found, earlier, left_out):
        split = split_of(source, below, source_sha256)
        if (staged / split / name).exists():
            raise FetchError(f"{source.package} has two files that would be named {name}; take {source.version}.")
        write_whole(staged / split / name, encoded)
        entry = {
            "file": f"{split}/{source.package}/{name}",
            "package": source.package,
            "inside": (PurePosixPath(source.base) / below).as_posix(),
            "licence": source.licence,
            "split": split,
            "source_sha256": source_sha256,
            "sha256": hashlib.sha256(encoded).hexdigest(),
        }
        record.files.append(entry | facts)
        if (text := texts.get(PurePosixPath(below).stem)) is not None:
            tables[split] += f"{name}\t{text}\n"
    record.left_out = dict(left_out)
    for split, rows in tables.items():
        if rows:
            table = f"name\ttext\n{rows}".encode()
            write_whole(staged / split / "transcripts.tsv", table)
            record.texts[f"{split}/{source.package}/transcripts.tsv"] = hashlib.sha256(table).hexdigest()


def _manifest(records: Sequence[Record]) -> dict[str, Any]:
    files = sorted((entry for record in records for entry in record.files), key=lambda entry: entry["file"])
    packages = [{key: value for key, value in asdict(record).items() if key != "files"} for record in records]
    totals = {split: counted([entry for entry in files if entry["split"] == split]) for split in SPLITS}
    return {"totals": totals, "packages": packages, "files": files}


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
