"""The file around the packets: a header that says what they hold, and packets that are checked one by one."""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from vqkit.bitstream.coder import LARGEST_SIZE
from vqkit.bitstream.varints import read_varint, write_varint

MAGIC = b"VQK"
VERSION = 1
FINGERPRINT_BYTES = 16
FINGERPRINT = slice(len(MAGIC) + 1, len(MAGIC) + 1 + FINGERPRINT_BYTES)
"""Its place in a file."""

FREE_CELLS = 2**22
"""Indices that a file may hold whatever its size; beyond these, eight for each of its bytes."""

_GROUP_BITS = 16
"""Most bits of a group, of an index that is coded in several."""
MOST_AXES, _MASKED, _AS_BEFORE = 15, 16, 32
"""Of the byte that begins a level: its number of axes, whether some indices are -1, and whether size, shape and number
of axes are those of the level before it."""


@dataclass(frozen=True)
class Picture:
    """Size of the original picture; it is the upper left part of what is decoded.

    Attributes:
        height: in pixels.
        width: in pixels.
    """

    height: int
    width: int


@dataclass(frozen=True)
class Sound:
    """Length of the original sound; it is the first part of what is decoded.

    Attributes:
        samples: of each channel, at `sample_rate`.
        sample_rate: in Hz.
    """

    samples: int
    sample_rate: int


Extent = Picture | Sound
_EXTENTS: tuple[type[Extent], ...] = (Picture, Sound)
"""By their number in the file, less 1; 0 is none."""


@dataclass(frozen=True)
class Level:
    """A level of the indices.

    Attributes:
        size: K, codes to choose from.
        shape: of one sample's grid.
        masked: whether some of the indices are -1; which, is coded before them.
    """

    size: int
    shape: tuple[int, ...]
    masked: bool = False

    @property
    def planes(self) -> tuple["Plane", ...]:
        """What is coded one after another: the mask, and groups of bits of the indices, the highest first."""
        mask = (Plane(2, None),) if self.masked else ()
        if self.size <= LARGEST_SIZE:
            return (*mask, Plane(self.size, 0))
        bits = (self.size - 1).bit_length()
        groups = -(-bits // _GROUP_BITS)
        shifts = [bits * number // groups for number in range(groups + 1)]
        pairs = list(pairwise(shifts))[::-1]
        sizes = [((self.size - 1) >> low) + 1 if high == bits else 2 ** (high - low) for low, high in pairs]
        return (*mask, *(Plane(size, low) for size, (low, _) in zip(sizes, pairs, strict=True)))


@dataclass(frozen=True)
class Plane:
    """A grid of numbers that coders take.

    Attributes:
        size: they are in 0 ... size - 1.
        shift: the lowest of their bits in the index; None for the mask, 1 where the index is -1.
    """

    size: int
    shift: int | None


@dataclass(frozen=True)
class Place:
    """What a packet holds.

    Attributes:
        level: its number.
        sample: its number.
        plane: its number, of the level's.
        start: first row of the grid.
        stop: behind its last row.
    """

    level: int
    sample: int
    plane: int
    start: int
    stop: int


@dataclass(frozen=True)
class Packet:
    """A packet's entry in the header.

    Attributes:
        coder: its number.
        length: in bytes.
        checksum: CRC-32 of these bytes.
    """

    coder: int
    length: int
    checksum: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself.

    Attributes:
        fingerprint: of the quantizer that made the indices, 16 bytes.
        extent: of the original; None where the writer did not say.
        batch: how many samples; None for indices of single vectors, (B,) or (B, levels), whose B is in the shapes.
        levels: coarse first.
        packet_cells: about how many indices a packet holds at most.
        checksum: CRC-32 of what all packets hold, as 32-bit numbers, so that a coder which reads them in another way is
            found.
        packets: in their order in the file, which is that of `places`.
        start: byte at which the first packet begins: the bytes of the header.
    """

    fingerprint: bytes
    extent: Extent | None
    batch: int | None
    levels: tuple[Level, ...]
    packet_cells: int
    checksum: int = 0
    packets: tuple[Packet, ...] = ()
    start: int = 0

    @property
    def samples(self) -> int:
        """How many grids each level has."""
        return 1 if self.batch is None else self.batch

    def places(self) -> Iterator[Place]:
        """What each packet holds: level by level, coarse first, of each the samples, of each of these the planes.

        Nothing is written of planes of one code, or without cells.
        """
        for number, level in enumerate(self.levels):
            planes = [plane for plane, one in enumerate(level.planes) if one.size > 1]
            if not planes or not math.prod(level.shape):
                continue
            rows = max(1, self.packet_cells // math.prod(level.shape[1:]))
            for sample in range(self.samples):
                for plane in planes:
                    for start in range(0, level.shape[0], rows):
                        yield Place(number, sample, plane, start, min(start + rows, level.shape[0]))

    def offsets(self) -> list[int]:
        """First byte of each packet, and the byte behind the last."""
        return list(accumulate((packet.length for packet in self.packets), initial=self.start))


def write_header(header: Header) -> bytes:
    """The bytes in front of the packets.

    Raises:
        ValueError: the extent is not in whole numbers of at least 0.
    """
    extent = header.extent
    for name, value in vars(extent).items() if extent is not None else ():
        if not isinstance(value, int) or not 0 <= value < 2**63:
            raise ValueError(f"extent has {name}={value}: expected a whole number, at least 0")
    kind = 0 if extent is None else 1 + _EXTENTS.index(type(extent))
    fields = [kind, *vars(extent).values()] if extent is not None else [kind]
    fields += [0 if header.batch is None else 1 + header.batch, header.packet_cells, len(header.levels)]
    parts = [struct.pack("<I", header.checksum), *map(write_varint, fields)]
    before: Level | None = None
    for level in header.levels:
        same = before is not None and (before.size, before.shape) == (level.size, level.shape)
        parts.append(bytes([_MASKED * level.masked | (_AS_BEFORE if same else len(level.shape))]))
        if not same:
            parts += map(write_varint, (level.size - 1, *level.shape))
        before = level
    for packet in header.packets:
        parts += struct.pack("<BI", packet.coder, packet.checksum), write_varint(packet.length)
    body = b"".join(parts)
    front = MAGIC + bytes([VERSION]) + header.fingerprint + write_varint(len(body)) + body
    return front + struct.pack("<I", zlib.crc32(front))


def inspect(data: bytes, *, most_cells: int | None = None) -> Header:
    """Read the header of a file; no model is needed, and packets are not looked at.

    Args:
        data: the file.
        most_cells: indices that it may hold, masks and groups of bits counted too; None: 2^22, and eight for each byte.

    Raises:
        ValueError: it is no such file, of another version, cut off or damaged, or asks for more indices.
    """
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"begins with {data[:4]!r}: expected {MAGIC!r}, a file of indices that vqkit wrote")
    if len(data) > len(MAGIC) and data[len(MAGIC)] != VERSION:
        raise ValueError(f"has format version {data[len(MAGIC)]}: expected {VERSION}; read it with a newer vqkit")
    size, first = read_varint(data, FINGERPRINT.stop)
    end = first + size
    if len(data) < end + 4 or zlib.crc32(data[:end]) != struct.unpack("<I", data[end : end + 4])[0]:
        raise ValueError(f"has a header that is cut off or damaged: its checksum is not that of its {end} bytes")
    header = _read_body(data[:end], first)
    cells = sum(math.prod(max(1, axis) for axis in level.shape) * len(level.planes) for level in header.levels)
    cells *= max(1, header.samples)  # axes of 0 count too: a shape has to fit into 64 bits, and a loop has to end
    most = FREE_CELLS + 8 * len(data) if most_cells is None else most_cells
    if cells > most:
        raise ValueError(
            f"asks for {cells} indices in {len(data)} bytes: expected at most {most}; where you trust the file, give "
            f"most_cells={cells}"
        )
    return header


def _read_body(data: bytes, first: int) -> Header:
    def number() -> int:
        nonlocal first
        found, first = read_varint(data, first)
        return found

    def byte() -> int:
        nonlocal first
        first += 1
        if first > len(data):
            raise ValueError("has a header that ends too early")
        return data[first - 1]

    def checksum() -> int:
        return int.from_bytes(bytes(byte() for _ in range(4)), "little")

    of_all = checksum()
    kind = number()
    if kind > len(_EXTENTS):
        raise ValueError(f"has an extent of kind {kind}: expected 0 ... {len(_EXTENTS)}")
    extent = _EXTENTS[kind - 1](number(), number()) if kind else None
    batch = number()
    packet_cells = number()
    levels: list[Level] = []
    for _ in range(number()):
        flags = byte()
        again = bool(flags & _AS_BEFORE)
        if flags & ~(MOST_AXES | _MASKED | _AS_BEFORE) or again == bool(flags & MOST_AXES) or again > len(levels):
            raise ValueError(f"has a level {len(levels)} of kind {flags}, which is not known")
        if again:
            level_size, shape = levels[-1].size, levels[-1].shape
        else:
            level_size, shape = number() + 1, tuple(number() for _ in range(flags & MOST_AXES))
        levels.append(Level(level_size, shape, bool(flags & _MASKED)))
    header = Header(data[FINGERPRINT], extent, batch - 1 if batch else None, tuple(levels), packet_cells)
    packets = []
    for _ in header.places():
        coder, check = byte(), checksum()
        packets.append(Packet(coder, number(), check))
    if first != len(data):
        raise ValueError(f"has {len(data) - first} bytes too many in its header")
    return replace(header, checksum=of_all, packets=tuple(packets), start=len(data) + 4)
