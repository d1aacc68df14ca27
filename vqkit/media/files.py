"""Files of a folder: finding them, and opening none that would have to be waited for."""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from vqkit.tokens.names import escaped

EDGE_BYTES = 65536
NOT_PLAIN = "not a plain file, but a pipe, a socket, a device or a folder"


@dataclass
class Found:
    """What a walk through a folder came across.

    Attributes:
        files: Plain files with a known suffix.
        skipped: Why others are left out, by their escaped path.
        other_files: Number of files whose suffix is not known.
    """

    files: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    other_files: int = 0


def found_under(root: Path, suffixes: Collection[str]) -> Found:
    """Walks through a folder of any nesting.

    Hidden files and folders are left out. Links are followed, those to folders once. Whatever cannot be looked into is
    named: folders that may not be read, broken links, and what has a known suffix and is no plain file.

    Args:
        root: The folder.
        suffixes: Suffixes that count, in lower case with their dot.
    """
    found = Found()
    visited: set[str] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back would never end
            continue
        visited.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            found.skipped[escaped(str(folder))] = f"a folder that cannot be read: {error.strerror or error}"
            continue
        folders = [
            Path(entry) for entry in entries if not entry.name.startswith(".") and _sorted_out(entry, suffixes, found)
        ]
        waiting += reversed(folders)
    return found


def _sorted_out(entry: os.DirEntry[str], suffixes: Collection[str], found: Found) -> bool:
    """Notes an entry of a folder in `found`; True for a folder, which is still to be looked into."""
    path = Path(entry)
    known = path.suffix.lower() in suffixes
    try:
        if entry.is_dir():
            return True
        if known and stat.S_ISREG(entry.stat().st_mode):
            found.files.append(path)
        elif known:
            found.skipped[escaped(str(path))] = NOT_PLAIN
        else:
            if entry.is_symlink():
                entry.stat()  # which raises for a link that leads nowhere, perhaps to a folder
            found.other_files += 1
    except OSError as error:
        kind = "a link that leads nowhere" if entry.is_symlink() else "cannot be looked at"
        found.skipped[escaped(str(path))] = f"{kind}: {error.strerror or error}"
    return False


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """Opens a plain file to read. Anything else is not waited for, as a pipe would be.

    Raises:
        ValueError: If it is not a plain file; the message is the reason.
        OSError: If it cannot be opened.
    """
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(NOT_PLAIN)
        yield file
