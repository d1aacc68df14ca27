"""Indices of a quantizer as a file, and back."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vqkit.bitstream.coder import Coder, Context
from vqkit.bitstream.coders import CODERS, little_endian
from vqkit.bitstream.container import (
    FINGERPRINT_BYTES,
    MOST_AXES,
    Extent,
    Header,
    Level,
    Packet,
    Place,
    Plane,
    inspect,
    write_header,
)
from vqkit.bitstream.fingerprint import fingerprint, quantizer_of
from vqkit.bitstream.order import code_order
from vqkit.indices import check_indices
from vqkit.runtime import check_plain

PACKET_CELLS = 2**16
"""About how many indices a packet holds at most: what a damaged byte costs."""

Concealment = Callable[[Tensor, Tensor, int], Tensor]
"""From a grid of indices, int64, which of them are missing, bool of the same shape, and the number of its level to the
grid with others in their place; see `vqkit.bitstream.concealment`."""

_BY_NUMBER = {coder.number: coder for coder in CODERS.values()}


@dataclass(frozen=True)
class Packed:
    """A file of indices, and what it takes.

    Attributes:
        content: the file.
        header: what it says of itself; of its `packets` each has the number of its coder.
        coders: name of each coder that was taken -> bytes of its packets.
        cells: how many indices it holds, -1 included.
        nominal_bits: sum of log2(K) over the indices.
        zero_order_bits: sum over the levels of their empirical entropy times their indices.
    """

    content: bytes
    header: Header
    coders: dict[str, int]
    cells: int
    nominal_bits: float
    zero_order_bits: float

    @property
    def header_bytes(self) -> int:
        """Bytes in front of the packets."""
        return self.header.start

    @property
    def payload_bytes(self) -> int:
        """Bytes of the packets."""
        return len(self.content) - self.header.start

    @property
    def coded_bits(self) -> int:
        """Bits of the whole file."""
        return 8 * len(self.content)


@dataclass(frozen=True)
class Missing:
    """Rows of a grid that a damaged file does not give.

    Attributes:
        place: which.
        reason: in words.
    """

    place: Place
    reason: str

    def __str__(self) -> str:
        place = self.place
        return f"level {place.level}, sample {place.sample}, rows {place.start} to {place.stop - 1}: {self.reason}"


@dataclass(frozen=True)
class Unpacked:
    """What a file held.

    Attributes:
        indices: as `encode` returned them, int64 on the CPU; -1 where they are missing and were not concealed.
        extent: of the original.
        missing: nothing, unless the file is damaged and `partial=True` was given.
    """

    indices: Tensor
    extent: Extent | None
    missing: tuple[Missing, ...]


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Where tensors are made, whatever `torch.set_default_device` says."""
    with torch.device("cpu"):
        yield


class TokenCodec:
    """Packs the indices of one quantizer into files, and reads these files.

        >>> codec = TokenCodec.of(tokenizer)
        >>> packed = codec.pack(tokenizer.encode(images), extent=Picture(height, width))
        >>> codec.unpack(packed.content).indices

    A codec knows its quantizer as it was when the codec was made: after more training, make another.

    Args:
        sizes: K of each level, coarse first, 1 ... 2^63 each.
        fingerprint: 16 bytes of the quantizer that gives the indices; files with other ones are refused.
        orders: of each level the rank of each code, where neighbours are alike, (K,) int64, or None.

    Raises:
        ValueError: a size, the fingerprint or an order is not so.
    """

    def __init__(
        self, sizes: Sequence[int], *, fingerprint: bytes, orders: Sequence[Tensor | None] | None = None
    ) -> None:
        if not sizes or not all(isinstance(size, int) and 1 <= size <= 2**63 for size in sizes):
            raise ValueError(f"sizes={list(sizes)}: expected the codes of each level, 1 ... 2^63")
        if len(fingerprint) != FINGERPRINT_BYTES:
            raise ValueError(f"fingerprint has {len(fingerprint)} bytes: expected {FINGERPRINT_BYTES}")
        if orders is not None and len(orders) != len(sizes):
            raise ValueError(f"orders has {len(orders)} entries: expected one for each of {len(sizes)} sizes")
        for level, (size, order) in enumerate(zip(sizes, orders or (), strict=False)):
            if order is not None and not _is_permutation(order, size):
                raise ValueError(f"orders has no ranks at level {level}: expected each of 0 ... {size - 1} once, int64")
        self.sizes = tuple(sizes)
        self.fingerprint = fingerprint
        self.orders = tuple(orders) if orders is not None else (None,) * len(sizes)

    @staticmethod
    def of(module: nn.Module) -> "TokenCodec":
        """The codec of a tokenizer or of a quantizer, for indices as its `encode` returns them.

        Raises:
            ValueError: it has no codes.
        """
        return _QuantizerCodec(module)

    def order(self, level: int) -> Tensor | None:
        """The rank of each code of a level, where it is known."""
        return self.orders[level]

    def split(self, indices: Tensor) -> list[Tensor]:
        """Indices (B, *S), or (B, *S, levels) where there are several sizes, to the grid (B, *S) of each level."""
        return list(indices.unbind(-1)) if len(self.sizes) > 1 else [indices]

    def join(self, grids: Sequence[Tensor]) -> Tensor:
        """What `split` was given, of all levels or of the first ones."""
        return torch.stack(list(grids), -1) if len(self.sizes) > 1 else grids[0]

    @_on_the_cpu()
    def pack(
        self,
        indices: Tensor,
        *,
        extent: Extent | None = None,
        coder: str = "auto",
        packet_cells: int = PACKET_CELLS,
    ) -> Packed:
        """Indices as a file.

        Args:
            indices: as `encode` returns them, -1 included; levels may be the first ones alone.
            extent: of the original, which the file keeps.
            coder: name of one of `CODERS`, or "auto": of each packet the one that is shortest.
            packet_cells: about how many indices a packet holds at most. Small packets lose less where a file is
                damaged, and cost more.

        Raises:
            ValueError: `indices` are none of this quantizer, or the coder is not known or does not take them.
        """
        check_plain("indices", indices)
        if not indices.ndim:
            raise ValueError("indices has no axes: expected (B, ...)")
        grids = self.split(indices)
        if not 1 <= len(grids) <= len(self.sizes):
            raise ValueError(f"indices has {len(grids)} levels: expected 1 ... {len(self.sizes)}")
        for grid, size in zip(grids, self.sizes, strict=False):
            check_indices(grid, [size], level_axis=False)
            if not 1 <= grid.ndim <= 1 + MOST_AXES:
                raise ValueError(
                    f"indices has shape {tuple(indices.shape)}: expected (B, ...), {MOST_AXES} axes at most"
                )
        if not isinstance(packet_cells, int) or not 1 <= packet_cells < 2**63:
            raise ValueError(f"packet_cells={packet_cells}: expected a whole number, at least 1")
        coders = _coders_named(coder)
        vectors = grids[0].ndim < 2
        samples = [(grid.reshape(1, -1) if vectors else grid).to("cpu", torch.int64) for grid in grids]
        pairs = list(zip(self.sizes, samples, strict=False))
        levels = tuple(Level(size, tuple(grid.shape[1:]), bool((grid < 0).any())) for size, grid in pairs)
        batch = None if vectors else len(samples[0])
        header = Header(self.fingerprint, extent, batch, levels, packet_cells)
        known = _Planes(header, self.order)
        for level, grid in enumerate(samples):
            known.give(level, grid)
        chosen, reads = [], any(one.reads_context for one in coders)
        for place in header.places():
            chosen.append(_shortest(coders, known.rows(place), known.context(place, read=reads)))
            known.count(known.rows(place))
        packets = [Packet(taken.number, len(data), zlib.crc32(data)) for taken, data in chosen]
        payload = b"".join(data for _, data in chosen)
        header = replace(header, packets=tuple(packets), checksum=known.checksum)
        head = write_header(header)
        by_name: dict[str, int] = {}
        for taken, data in chosen:
            by_name[taken.name] = by_name.get(taken.name, 0) + len(data)
        return Packed(
            content=head + payload,
            header=replace(header, start=len(head)),
            coders=by_name,
            cells=sum(grid.numel() for grid in samples),
            nominal_bits=sum(grid.numel() * math.log2(size) for size, grid in pairs),
            zero_order_bits=sum(_entropy_bits(grid) for grid in samples),
        )

    @_on_the_cpu()
    def unpack(
        self,
        data: bytes,
        *,
        partial: bool = False,
        conceal: Concealment | None = None,
        most_cells: int | None = None,
    ) -> Unpacked:
        """The indices of a file.

        Args:
            data: the file.
            partial: whether a file whose packets are damaged or cut off gives what is left, instead of being refused.
                Its header has to be whole.
            conceal: what takes the place of missing indices; None leaves them -1. Others are never changed.
            most_cells: see `inspect`.

        Raises:
            ValueError: it is no such file, another quantizer's, damaged, or asks for too much; the message says where.
                Or `conceal` gave what is no index.
        """
        if conceal is not None and not partial:
            raise ValueError("conceal has nothing to do where damaged files are refused: give partial=True too")
        header = inspect(data, most_cells=most_cells)
        if header.fingerprint != self.fingerprint:
            raise ValueError(
                f"was written by another tokenizer, {header.fingerprint.hex()}: expected {self.fingerprint.hex()}; "
                "decode it with the one that wrote it"
            )
        sizes = tuple(level.size for level in header.levels)
        if not sizes or sizes != self.sizes[: len(sizes)]:
            raise ValueError(f"has levels of {list(sizes)} codes: expected {list(self.sizes)}, or the first of them")
        end = header.offsets()[-1]
        if len(data) != end and (len(data) > end or not partial):
            raise ValueError(f"has {len(data)} bytes: expected {end}; it is cut off, or was added to")
        known, missing = _Planes(header, self.order), []
        for place, packet, start in zip(header.places(), header.packets, header.offsets(), strict=False):
            try:
                values = _decoded(known, place, packet, data[start : start + packet.length])
                known.rows(place).copy_(values)
                known.count(values)
            except ValueError as error:
                known.lose(place)
                missing.append(Missing(place, str(error)))
                if not partial:
                    raise ValueError(f"is damaged: {missing[0]}") from error
        if not missing and known.checksum != header.checksum:
            raise ValueError("gives other indices than were written: read it with the vqkit that wrote it")
        grids = [self._grid(known, number, conceal) for number in range(len(header.levels))]
        if header.batch is None:
            grids = [grid[0] for grid in grids]
        return Unpacked(self._joined(grids), header.extent, tuple(missing))

    def _joined(self, grids: Sequence[Tensor]) -> Tensor:
        shapes = [tuple(grid.shape) for grid in grids]
        try:
            indices = self.join(grids)
            again = [tuple(grid.shape) for grid in self.split(indices)]
            # Nothing but -1, as under a mask or in place of damage, does not say which grids a mixture needs.
            if again == shapes or (not bool((indices >= 0).any()) and set(again) == set(shapes)):
                return indices
        except (IndexError, RuntimeError, ValueError):  # what other shapes lead torch and quantizers to
            pass
        raise ValueError(f"has levels of shapes {shapes}, which this quantizer does not have")

    def _grid(self, known: "_Planes", number: int, conceal: Concealment | None) -> Tensor:
        values, lost = known.take(number)
        if conceal is not None and bool(lost.any()):
            for sample in lost.flatten(1).any(1).nonzero().flatten().tolist():
                filled = conceal(values[sample], lost[sample], number)
                if filled.shape != lost.shape[1:]:
                    raise ValueError(f"conceal gave {tuple(filled.shape)}: expected {tuple(lost.shape[1:])}, the grid")
                check_indices(filled, [self.sizes[number]], level_axis=False, name="conceal's indices")
                values[sample] = torch.where(lost[sample], filled, values[sample])
        return values


class _QuantizerCodec(TokenCodec):
    """The codec of a quantizer, which knows how its indices are made of levels."""

    def __init__(self, module: nn.Module) -> None:
        self.quantizer = quantizer_of(module)
        self.quantizer.check_has_codes("TokenCodec")
        super().__init__(self.quantizer.grid_sizes, fingerprint=fingerprint(module))
        self._found: dict[int, Tensor | None] = {}

    def order(self, level: int) -> Tensor | None:
        """That of the stored codes, found when it is first asked for."""
        if level not in self._found:
            table = self.quantizer.level_tables()[level]
            self._found[level] = None if table is None else code_order(table)
        return self._found[level]

    def split(self, indices: Tensor) -> list[Tensor]:
        return self.quantizer.to_grids(indices)

    def join(self, grids: Sequence[Tensor]) -> Tensor:
        return self.quantizer.from_grids(grids)


class _Planes:
    """The planes of all levels of a file, each (B, *shape), and which of their cells are known."""

    def __init__(self, header: Header, order: Callable[[int], Tensor | None]) -> None:
        self.header, self.order = header, order
        self.planes = [level.planes for level in header.levels]
        self.checksum = 0
        """CRC-32 of the values of all packets that were noted or taken."""
        shapes = [(header.samples, *level.shape) for level in header.levels]
        self._values = [
            [torch.zeros(shape, dtype=torch.int64) for _ in planes]
            for shape, planes in zip(shapes, self.planes, strict=True)
        ]
        self._lost = [torch.zeros(shape, dtype=torch.bool) for shape in shapes]
        self._damaged: set[tuple[int, int, int]] = set()

    def give(self, level: int, indices: Tensor) -> None:
        """Set all planes of a level, from its indices (B, *shape)."""
        self._values[level] = [_plane_of(indices, plane) for plane in self.planes[level]]

    def rows(self, place: Place) -> Tensor:
        """The values of a packet, to be read or written."""
        return self._values[place.level][place.plane][place.sample, place.start : place.stop]

    def count(self, values: Tensor) -> None:
        """Add the values of a packet to the checksum."""
        self.checksum = zlib.crc32(little_endian(values, 4), self.checksum)

    def lose(self, place: Place) -> None:
        """Note that a packet is missing."""
        self._lost[place.level][place.sample, place.start : place.stop] = True
        self._damaged.add((place.level, place.sample, place.plane))

    def context(self, place: Place, *, read: bool) -> Context:
        """What is known before a packet is read; without what takes time to find unless a coder shall `read` it."""
        coarser = [
            (self._values[level][plane][place.sample], self.planes[level][plane].size)
            for level, plane in self._before(place)
        ]
        level, plane = self.header.levels[place.level], self.planes[place.level][place.plane]
        order = self.order(place.level) if read and plane == Plane(level.size, 0) else None
        return Context(plane.size, tuple(coarser), place.start, level.shape, order)

    def whole_before(self, place: Place) -> bool:
        """Whether nothing of that context is missing."""
        return not any((level, place.sample, plane) in self._damaged for level, plane in self._before(place))

    def take(self, number: int) -> tuple[Tensor, Tensor]:
        """The indices of a level, -1 where masked or missing, and which are missing, both (B, *shape).

        Raises:
            ValueError: the groups of bits make an index that the level does not have.
        """
        level, lost = self.header.levels[number], self._lost[number]
        values, hidden = torch.zeros(lost.shape, dtype=torch.int64), lost
        for plane, grid in zip(self.planes[number], self._values[number], strict=True):
            if plane.shift is None:
                hidden = hidden | (grid == 1)
            else:
                values = values | grid << plane.shift
        if bool((values > level.size - 1).any()):
            raise ValueError(f"has indices beyond its {level.size} codes at level {number}: it is damaged")
        return values.masked_fill(hidden, -1), lost

    def _before(self, place: Place) -> list[tuple[int, int]]:
        """Level and plane of all that comes before a packet's plane."""
        levels = [(level, plane) for level in range(place.level) for plane in range(len(self.planes[level]))]
        return levels + [(place.level, plane) for plane in range(place.plane)]


def _decoded(known: _Planes, place: Place, packet: Packet, data: bytes) -> Tensor:
    """The values of a packet, checked."""
    if len(data) < packet.length:
        raise ValueError(f"the file ends after {len(data)} of its {packet.length} bytes")
    if zlib.crc32(data) != packet.checksum:
        raise ValueError("its checksum is not that of its bytes")
    coder = _BY_NUMBER.get(packet.coder)
    if coder is None:
        raise ValueError(
            f"its coder has number {packet.coder}, which this vqkit does not know: read it with a newer one"
        )
    if coder.reads_context and not known.whole_before(place):
        raise ValueError("it was coded in the context of something that is missing")
    context = known.context(place, read=coder.reads_context)
    values = coder.decode(data, (place.stop - place.start, *context.whole[1:]), context)
    check_indices(values, [context.size], level_axis=False)
    return values


def _coders_named(name: str) -> list[Coder]:
    if name == "auto":
        return list(CODERS.values())
    if name not in CODERS:
        raise ValueError(f"coder={name!r}: expected 'auto' or one of {', '.join(map(repr, CODERS))}")
    return [CODERS[name]]


def _shortest(coders: Sequence[Coder], values: Tensor, context: Context) -> tuple[Coder, bytes]:
    """The coder that needs the fewest bytes, and these."""
    made = [(coder, data) for coder in coders if (data := coder.encode(values, context)) is not None]
    if not made:
        raise ValueError(
            f"coder={coders[0].name!r} does not take indices of shape {tuple(values.shape)} with {context.size} codes: "
            "give coder='auto'"
        )
    return min(made, key=lambda pair: len(pair[1]))


def _is_permutation(order: Tensor, size: int) -> bool:
    if order.dtype != torch.int64 or order.shape != (size,):
        return False
    return torch.equal(order.sort()[0], torch.arange(size, device=order.device))


def _plane_of(values: Tensor, plane: Plane) -> Tensor:
    """What is coded of indices."""
    if plane.shift is None:
        return (values < 0).long()
    return (values.clamp(min=0) >> plane.shift) % plane.size


def _entropy_bits(indices: Tensor) -> float:
    """Empirical entropy times the number of indices."""
    counts = indices.reshape(-1).unique(return_counts=True)[1].double()
    return float((counts * (indices.numel() / counts).log2()).sum())
