"""Files of a folder: telling them apart, dividing them, and keeping some decoded in memory.

What pictures and recordings have in common. Knows neither Lightning nor a file format.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import numpy

from vqkit.media.files import EDGE_BYTES, Found
from vqkit.tokens.names import escaped, unescaped

NAMED = 5  # skipped files that a summary names


class UsableFile(Protocol):
    """A file that can be used: `name`, its path relative to the root, and `content`, a hash of its bytes."""

    @property
    def name(self) -> str:
        """Path relative to the root, with forward slashes, as `vqkit.tokens.names.escaped` writes it."""

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
        skipped: Why each unusable file with a known suffix, and what could not be looked into, is left out, by its
            escaped path.
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


def inspected(root: Path, found: Found, inspect: Callable[[Path], File | str]) -> Folder[File]:
    """Looks at files in a few threads.

    Args:
        root: Their folder.
        found: The files.
        inspect: Returns the usable file, or in words why it cannot be used.
    """
    folder: Folder[File] = Folder(root, [], dict(found.skipped), found.other_files)
    for path, result in zip(found.files, in_threads(inspect, found.files), strict=True):
        if isinstance(result, str):
            folder.skipped[escaped(str(path))] = result
        else:
            folder.files.append(result)
    folder.files.sort(key=lambda file: file.name)
    return folder


def content_hash(file: BinaryIO) -> str:
    """Hash of a file's size, first and last 64 KiB: reads little of a large file, and identical files agree."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for start in (0, max(0, size - EDGE_BYTES)):
        file.seek(start)
        digest.update(file.read(EDGE_BYTES))
    return digest.hexdigest()[:16]


def named(skipped: dict[str, str]) -> str:
    """The first few skipped files with their reasons, in words."""
    first = [f"{path} ({reason})" for path, reason in list(skipped.items())[:NAMED]]
    return "; ".join(first) + ("; ..." if len(skipped) > NAMED else "")


def split(
    files: list[File], units: Sequence[str], fraction: float, root: Path, *, noun: str
) -> tuple[list[File], list[File]]:
    """Divides files into training and validation.

    Args:
        files: The files.
        units: A hash for each file, 16 hexadecimal digits; files of which it is equal are on one side.
        fraction: Share that validates.
        root: Their folder, for the message.
        noun: What one file is called, for the message.

    Raises:
        ValueError: With fewer than two different files.
    """
    found = sorted(set(units))
    if len(found) < 2:
        raise ValueError(
            f"{root} holds {len(found)} different usable {noun}(s); a split into training and validation needs at "
            f"least two. Add {noun}s, or give a folder of their own for validation as validation_root."
        )
    chosen = {unit for unit in found if int(unit, 16) < fraction * 2**64}
    if not chosen:
        chosen = {found[0]}
    elif len(chosen) == len(found):
        chosen.remove(found[-1])
    sides: tuple[list[File], list[File]] = ([], [])
    for file, unit in zip(files, units, strict=True):
        sides[unit in chosen].append(file)
    return sides


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

    def path(self, file: File) -> Path:
        """Where a file lies."""
        return self.root / unescaped(file.name)

    def shown(self, file: File) -> str:
        """The whole path, escaped, which names a file in messages."""
        return escaped(str(self.path(file)))

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
                failed[self.shown(file)] = result
            else:
                self._decoded[file.name] = result
        self.files = [file for file in self.files if self.shown(file) not in failed]
        return max(0, budget), failed

    def _attempt(self, file: File) -> numpy.ndarray | str:
        try:
            return self.decode(file)
        except ValueError as error:
            return str(error)

    def kept(self, file: File) -> numpy.ndarray | None:
        """What is in memory of a file, if it is."""
        return self._decoded.get(file.name)
