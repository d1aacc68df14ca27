"""The packages of ``sources.toml``, and the files inside them that count."""

import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fetching.debian import FetchError
from fetching.qt_resources import read_resources

_TABLE = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class Source:
    """One package of ``sources.toml``.

    Attributes:
        package: name of the Debian package.
        version: version that was measured; another one is allowed.
        sha256: hash of the .deb file that was measured.
        licence: licence of the files, in short.
        include: shell patterns of paths below ``base``, at least one of which must match.
        exclude: shell patterns of paths that are left out all the same.
        base: folder of the files inside the package; empty for all of it.
        validation: shell patterns of the paths that validate, where the package has a split of its own; else empty.
        number: regular expression whose group is the number in a file's stem; empty where there is none.
        transcripts: file inside the package with a text a line; empty where there is none.
        transcript_line: regular expression of its lines, with the groups ``name`` and ``text``.
        no_text: characters of it that are no part of the text.
    """

    package: str
    version: str
    sha256: str
    licence: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    base: str = ""
    validation: tuple[str, ...] = ()
    number: str = ""
    transcripts: str = ""
    transcript_line: str = ""
    no_text: str = ""

    def wants(self, below: str) -> bool:
        """Tells whether the patterns choose the path below ``base``."""
        return any(fnmatchcase(below, pattern) for pattern in self.include) and not any(
            fnmatchcase(below, pattern) for pattern in self.exclude
        )

    def validates(self, below: str) -> bool:
        """Tells whether the package's own split has the path below ``base`` among those that validate."""
        return any(fnmatchcase(below, pattern) for pattern in self.validation)

    def number_of(self, stem: str) -> int | None:
        """Returns the number in the stem of a file's name, or None if this package does not number."""
        found = re.search(self.number, stem) if self.number else None
        return None if found is None else int(found[1])

    def texts(self, folder: Path) -> dict[str, str]:
        """Returns what is said in the recordings of the unpacked package, by the stem of their names.

        Raises:
            FetchError: a line of the file of texts is not what it was when ``sources.toml`` was written.
        """
        texts: dict[str, str] = {}
        if not self.transcripts:
            return texts
        lines = (folder / self.transcripts).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            found = re.search(self.transcript_line, line)
            if found is None:
                raise FetchError(
                    f"{self.transcripts}:{number} of {self.package} is not of the known form: {line!r}. Take version "
                    f"{self.version}."
                )
            texts[found["name"]] = found["text"].translate({ord(mark): None for mark in self.no_text})
        return texts


def sources(collection: str) -> dict[str, Source]:
    """Returns the packages of a table of ``sources.toml`` by name, in the order in which they are fetched."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))[collection]
    found = {}
    for package, entry in table.items():
        whole = table.get(entry.pop("like", None), {}) | entry
        frozen = {key: tuple(value) if isinstance(value, list) else value for key, value in whole.items()}
        found[package] = Source(package, **frozen)
    return found


def files_in(folder: Path, wants: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Walks through the wanted files of a folder, those inside .rcc archives included; links are skipped.

    Yields:
        Pairs (path below the folder, content), in the order of the paths.

    Raises:
        DamagedResourceFile: an .rcc archive cannot be read.
    """
    for path in sorted(folder.rglob("*")):
        below = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".rcc":
            members = ((f"{below}/{member}", content) for member, content in read_resources(path))
            yield from (pair for pair in members if wants(pair[0]))
        elif wants(below):
            yield below, path.read_bytes()
