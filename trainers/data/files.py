"""Files of a folder: finding them, telling them apart, dividing them, and keeping some decoded in memory.

What pictures and recordings have in common. Knows neither Lightning nor a file format.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy

EDGE_BYTES = 65536
NAMED = 5  # skipped files that a summary names


class UsableFile(Protocol):
    """A file that can be used: `name`, its path relative to the root, and `content`, a hash of its bytes."""

    @property
    def name(self) -> str:
        """Path relative to the root, with forward slashes."""

    @property
    def content(self) -> str:
        """16 hexadecimal digits of a hash of the bytes, equal for identical files."""


File = TypeVar("File", bound=UsableFile)


@dataclass
class Folder(Generic[File]):
    """What a folder holds.

    Attributes:
        root: The folder.
        files: The usable files, ordered by name.
        skipped: Why each unusable file with a known suffix is left out, by its path.
        other_files: Number of files whose suffix is not known.
    """

    root: Path
    files: list[File]
    skipped: dict[str, str] = field(default_factory=dict)
    other_files: int = 0


def in_threads(function: Callable[..., Any], items: Sequence[Any]) -> list[Any]:
    """Applies a function to every item, in order, in a few threads (decoders work without the interpreter lock)."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def found_under(root: Path, suffixes: Collection[str]) -> tuple[list[Path], int]:
    """Walks through a folder of any nesting.

    Hidden files and folders are left out; links to folders are followed once.

    Args:
        root: The folder.
        suffixes: Suffixes that count, in lower case with their dot.

    Returns:
        The files with such a suffix, and the number of the others.
    """
    candidates: list[Path] = []
    other_files = 0
    visited: set[str] = set()
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        real = os.path.realpath(directory)
        if real in visited:  # a link that leads back would never end
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if Path(name).suffix.lower() in suffixes:
                candidates.append(Path(directory, name))
            else:
                other_files += 1
    return candidates, other_files


def inspected(
    root: Path, candidates: Sequence[Path], inspect: Callable[[Path], File | str], *, other_files: int = 0
) -> Folder[File]:
    """Looks at files in a few threads.

    Args:
        root: Their folder.
        candidates: The files.
        inspect: Returns the usable file, or in words why it cannot be used.
        other_files: Number of files that are no candidates.
    """
    folder: Folder[File] = Folder(root, [], other_files=other_files)
    for path, result in zip(candidates, in_threads(inspect, candidates), strict=True):
        if isinstance(result, str):
            folder.skipped[str(path)] = result
        else:
            folder.files.append(result)
    folder.files.sort(key=lambda file: file.name)
    return folder


def content_hash(path: Path) -> str:
    """Hash of a file's size, first and last 64 KiB: reads little of a large file, and identical files agree."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(EDGE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()[:16]


def named(skipped: dict[str, str]) -> str:
    """The first few skipped files with their reasons, in words."""
    first = [f"{path} ({reason})" for path, reason in list(skipped.items())[:NAMED]]
    return "; ".join(first) + ("; ..." if len(skipped) > NAMED else "")


def split(files: list[File], fraction: float, root: Path, *, noun: str) -> tuple[list[File], list[File]]:
    """Divides files into training and validation by a hash of each one's content.

    Args:
        files: The files.
        fraction: Share that validates.
        root: Their folder, for the message.
        noun: What one file is called, for the message.

    Raises:
        ValueError: With fewer than two different files.
    """
    contents = sorted({file.content for file in files})
    if len(contents) < 2:
        raise ValueError(
            f"{root} holds {len(contents)} different usable {noun}(s); a split into training and validation needs at "
            f"least two. Add {noun}s, or give a folder of their own for validation as validation_root."
        )
    chosen = {content for content in contents if int(content, 16) < fraction * 2**64}
    if not chosen:
        chosen = {contents[0]}
    elif len(chosen) == len(contents):
        chosen.remove(contents[-1])
    training = [file for file in files if file.content not in chosen]
    return training, [file for file in files if file.content in chosen]


class FileStore(ABC, Generic[File]):
    """Decoded files of one folder, as far as a memory budget reaches; the rest is read from the file every time.

    Args:
        root: The folder.
        files: Its usable files.
    """

    def __init__(self, root: Path, files: list[File]) -> None:
        self.root = root
        self.files = files
        self._decoded: dict[str, numpy.ndarray] = {}

    @abstractmethod
    def size(self, file: File) -> int:
        """Bytes of a file when it is decoded."""

    @abstractmethod
    def decode(self, file: File) -> numpy.ndarray:
        """What the store keeps of a file; ValueError with the reason if it cannot be decoded."""

    def path(self, file: File) -> str:
        """The whole path, which names a file in messages."""
        return str(self.root / file.name)

    def preload(self, budget: int) -> tuple[int, dict[str, str]]:
        """Decodes files until `budget` bytes are used, and drops those that cannot be decoded.

        Returns:
            The bytes that are left, and the reason for every dropped file by its path.
        """
        chosen = []
        for file in self.files:
            budget -= self.size(file)
            if budget < 0:
                break
            chosen.append(file)
        failed: dict[str, str] = {}
        for file, result in zip(chosen, in_threads(self._attempt, chosen), strict=True):
            if isinstance(result, str):
                failed[self.path(file)] = result
            else:
                self._decoded[file.name] = result
        self.files = [file for file in self.files if self.path(file) not in failed]
        return max(0, budget), failed

    def _attempt(self, file: File) -> numpy.ndarray | str:
        try:
            return self.decode(file)
        except ValueError as error:
            return str(error)

    def kept(self, file: File) -> numpy.ndarray | None:
        """What is in memory of a file, if it is."""
        return self._decoded.get(file.name)
