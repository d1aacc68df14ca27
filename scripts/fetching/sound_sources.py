"""The packages that hold recordings, and what is said in them."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fetching.debian import FetchError
from fetching.sounds import SUFFIXES

_TABLE = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class SoundSource:
    """One package of ``sources.toml``.

    Attributes:
        package: name of the Debian package.
        version: version that was measured; another one is allowed.
        sha256: hash of the .deb file that was measured.
        licence: licence of the recordings, in short.
        base: folder of the recordings inside the package.
        include: shell patterns of paths below ``base``, at least one of which must match.
        exclude: shell patterns of paths that are left out all the same.
        number: regular expression whose group is the number in a recording's stem; empty where there is none.
        transcripts: file inside the package with a text a line; empty where there is none.
        transcript_line: regular expression of its lines, with the groups ``name`` and ``text``.
        no_text: characters of it that are no part of the text.
    """

    package: str
    version: str
    sha256: str
    licence: str
    base: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    number: str = ""
    transcripts: str = ""
    transcript_line: str = ""
    no_text: str = ""

    def wants(self, below: str) -> bool:
        """Tells whether the path below ``base`` names a recording that counts."""
        return (
            below.lower().endswith(SUFFIXES)
            and any(fnmatchcase(below, pattern) for pattern in self.include)
            and not any(fnmatchcase(below, pattern) for pattern in self.exclude)
        )

    def number_of(self, stem: str) -> int | None:
        """Returns the number in the stem of a recording's name, or None if this package does not number."""
        found = re.search(self.number, stem) if self.number else None
        return None if found is None else int(found[1])


def sound_sources(collection: str) -> dict[str, SoundSource]:
    """Returns the packages of a collection ("speech" or "music") by name, in the order in which they are fetched."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))[collection]
    return {
        package: SoundSource(
            package=package,
            **{key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()},
        )
        for package, entry in table.items()
    }


def recordings_in(folder: Path, source: SoundSource) -> Iterator[tuple[str, bytes]]:
    """Walks through the wanted recordings of an unpacked package; links are skipped.

    Args:
        folder: where the package was unpacked.
        source: the package.

    Yields:
        Pairs (path below the source's base, content of the file), in the order of the paths.
    """
    base = folder / source.base
    for path in sorted(base.rglob("*")):
        below = path.relative_to(base).as_posix()
        if path.is_file() and not path.is_symlink() and source.wants(below):
            yield below, path.read_bytes()


def transcripts_in(folder: Path, source: SoundSource) -> dict[str, str]:
    """Returns what is said in the recordings of an unpacked package, by the stem of their names.

    Raises:
        FetchError: a line of the file of texts is not what it was when ``sources.toml`` was written.
    """
    if not source.transcripts:
        return {}
    texts = {}
    lines = (folder / source.transcripts).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        found = re.search(source.transcript_line, line)
        if found is None:
            raise FetchError(
                f"{source.transcripts}:{number} of {source.package} is not of the known form: {line!r}. Take version "
                f"{source.version}."
            )
        texts[found["name"]] = found["text"].translate({ord(mark): None for mark in source.no_text})
    return texts
