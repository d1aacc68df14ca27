"""Reader of Qt resource files (.rcc): a small file system packed into one file.

Written from a description of the layout. All numbers are big-endian. The file begins with the magic ``qres``, the
version, and the offsets of the tree, the data and the names, each 4 bytes. A tree entry has 14 bytes in version 1 and
22 bytes from version 2 on (8 more for the time of modification); entry 0 is the root folder.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from fetching.debian import FetchError

_ZLIB, _DIRECTORY, _ZSTD = 1, 2, 4
_HEADER = struct.Struct(">4sIIII")
_ENTRY = struct.Struct(">IHII")
_LENGTH = struct.Struct(">I")


class DamagedResourceFile(FetchError):
    """The bytes are not a readable Qt resource file."""


def read_resources(path: Path) -> Iterator[tuple[str, bytes]]:
    """Walks through the files inside a Qt resource file.

    Args:
        path: the .rcc file.

    Yields:
        Pairs (path inside the resource file with "/" between folders, content), in the order of the tree.

    Raises:
        DamagedResourceFile: the file is not a Qt resource file, ends too early, has entries in a circle, or uses zstd
            (which the standard library of Python 3.11 cannot unpack).
    """
    blob = path.read_bytes()
    try:
        yield from _walk(blob, path)
    except (struct.error, zlib.error, UnicodeDecodeError) as error:
        raise DamagedResourceFile(f"{path} is damaged or was cut short: {error}. Fetch it again.") from error


def _walk(blob: bytes, path: Path) -> Iterator[tuple[str, bytes]]:
    magic, version, tree, data, names = _HEADER.unpack_from(blob)
    if magic != b"qres":
        raise DamagedResourceFile(f"{path} is not a Qt resource file: it begins with {magic!r}, not with b'qres'.")
    entry_size = 14 if version == 1 else 22
    seen: set[int] = set()
    pending = [(0, "")]
    while pending:
        index, folder = pending.pop()
        if index in seen:
            raise DamagedResourceFile(f"{path} is damaged: tree entry {index} is reached twice.")
        seen.add(index)
        # A folder has (name, flags, number of children, first child); a file (name, flags, locale, offset of its data).
        name_offset, flags, third, fourth = _ENTRY.unpack_from(blob, tree + index * entry_size)
        name = "" if index == 0 else _name(blob, names + name_offset)
        inside = f"{folder}/{name}" if folder else name
        if flags & _DIRECTORY:
            if third * entry_size > len(blob):
                raise DamagedResourceFile(f"{path} is damaged: tree entry {index} claims {third} children.")
            pending.extend((child, inside) for child in reversed(range(fourth, fourth + third)))
        else:
            yield inside, _content(blob, data + fourth, flags, f"{inside} in {path}")


def _name(blob: bytes, offset: int) -> str:
    (length,) = struct.unpack_from(">H", blob, offset)
    start = offset + 6  # 2 bytes of length, 4 bytes of hash
    return _exactly(blob, start, 2 * length).decode("utf-16-be")


def _content(blob: bytes, offset: int, flags: int, what: str) -> bytes:
    (size,) = _LENGTH.unpack_from(blob, offset)
    content = _exactly(blob, offset + 4, size)
    if flags & _ZSTD:
        raise DamagedResourceFile(f"{what} is packed with zstd, which this reader does not know.")
    if not flags & _ZLIB:
        return content
    (unpacked_size,) = _LENGTH.unpack_from(content)
    unpacked = zlib.decompress(content[4:])
    if len(unpacked) != unpacked_size:
        raise DamagedResourceFile(f"{what} unpacks to {len(unpacked)} bytes, but {unpacked_size} were promised.")
    return unpacked


def _exactly(blob: bytes, start: int, size: int) -> bytes:
    part = blob[start : start + size]
    if len(part) != size:
        raise struct.error(f"{size} bytes expected at {start}, but only {len(part)} are left")
    return part
