"""Coders: the indices of a packet as bytes, and back. Integer arithmetic only, so that every machine finds the same."""

import lzma
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vqkit.bitstream.coder import Coder, Context
from vqkit.bitstream.mixing import ContextMixing
from vqkit.bitstream.ranges import RangeDecoder, RangeEncoder
from vqkit.bitstream.varints import read_varint, write_varint


class FixedWidth(Coder):
    """Each index in the bits that the largest one takes, the lowest bit first, without gaps."""

    number, name, reads_context = 0, "fixed width", False

    def encode(self, values: Tensor, context: Context) -> bytes:
        """ceil(log2 K) bits an index, filled up to a byte; see `Coder`."""
        places = torch.arange(_width(context.size))
        bits = (values.reshape(-1, 1) >> places & 1).to(torch.uint8).reshape(-1)
        bits = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).reshape(-1, 8)
        return _bytes((bits << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8))

    def decode(self, data: bytes, shape: tuple[int, ...], context: Context) -> Tensor:
        """See `Coder`."""
        width, count = _width(context.size), math.prod(shape)
        if len(data) != (width * count + 7) // 8:
            raise ValueError(f"has {len(data)} bytes: expected {(width * count + 7) // 8}, {width} bits an index")
        bits = _tensor(data).unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
        bits = bits.reshape(-1)
        if bits[width * count :].any():
            raise ValueError("has bits behind its last index")
        return (bits[: width * count].reshape(-1, width).long() << torch.arange(width)).sum(-1).reshape(shape)


class MixedRadix(Coder):
    """The indices as the digits of one number to the base K: log2(K) bits each, also where K is no power of two."""

    number, name, reads_context = 1, "mixed radix", False

    def encode(self, values: Tensor, context: Context) -> bytes:
        """At most 64 bits more than log2(K) an index; see `Coder`."""
        digits, large = _digits_of_number(context.size)
        rows = values.reshape(-1)
        whole = len(rows) // digits * digits
        numbers = (rows[:whole].reshape(-1, digits) * context.size ** torch.arange(digits)).sum(-1)
        encoder = RangeEncoder(large)
        for symbols, total in ((rows[whole:], context.size), (numbers, large)):  # the last one is read first
            encoder.push(symbols.tolist(), [1] * len(symbols), total)
        return encoder.finish()

    def decode(self, data: bytes, shape: tuple[int, ...], context: Context) -> Tensor:
        """See `Coder`."""
        digits, large = _digits_of_number(context.size)
        count = math.prod(shape)
        if count * (context.size.bit_length() - 1) > 8 * len(data):
            raise ValueError(f"has {len(data)} bytes, too few for {count} indices of {context.size} codes")
        decoder = RangeDecoder(data, large)
        numbers = torch.tensor(decoder.pop_uniform(count // digits, large), dtype=torch.int64)
        rest = torch.tensor(decoder.pop_uniform(count % digits, context.size), dtype=torch.int64)
        decoder.check_end()
        rows = numbers.unsqueeze(-1) // context.size ** torch.arange(digits) % context.size
        return torch.cat([rows.reshape(-1), rest]).reshape(shape)


class Lzma(Coder):
    """LZMA of the indices in one, two or four bytes each: finds what repeats."""

    number, name, reads_context = 2, "lzma", False

    def encode(self, values: Tensor, context: Context) -> bytes:
        """See `Coder`."""
        width = _byte_width(context.size)
        return lzma.compress(little_endian(values, width), lzma.FORMAT_RAW, filters=_filters(width))

    def decode(self, data: bytes, shape: tuple[int, ...], context: Context) -> Tensor:
        """See `Coder`."""
        width, count = _byte_width(context.size), math.prod(shape)
        decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(width))
        try:
            found = decompressor.decompress(data, max_length=width * count + 1)
        except lzma.LZMAError as error:
            raise ValueError(f"its LZMA data are damaged ({error})") from error
        if len(found) != width * count or not decompressor.eof or decompressor.unused_data:
            raise ValueError(f"its LZMA data are not those of {count} indices")
        parts = _tensor(found).reshape(-1, width).long()
        return (parts << 8 * torch.arange(width)).sum(-1).reshape(shape)


class Counts(Coder):
    """How often each code occurs in the packet, and then each index in the bits that its share takes.

    The counts are written as they are: codes that occur, as gaps, and their counts, both in exponential Golomb codes
    of the order that is shortest.
    """

    number, name, reads_context = 3, "counts", False

    def encode(self, values: Tensor, context: Context) -> bytes:
        """See `Coder`."""
        codes, places, counts = values.reshape(-1).unique(return_inverse=True, return_counts=True)
        gaps = torch.diff(codes, prepend=codes.new_tensor([-1])) - 1
        table = _golomb(gaps.tolist()) + _golomb((counts - 1).tolist())
        size = (len(table) + 7) // 8
        head = write_varint(len(codes)) + write_varint(size) + int(table.ljust(8 * size, "0"), 2).to_bytes(size)
        if len(codes) == 1:
            return head
        starts = counts.cumsum(0) - counts
        encoder = RangeEncoder(values.numel())
        encoder.push(starts[places].tolist(), counts[places].tolist(), values.numel())
        return head + encoder.finish()

    def decode(self, data: bytes, shape: tuple[int, ...], context: Context) -> Tensor:
        """See `Coder`."""
        count = math.prod(shape)
        used, first = read_varint(data, 0)
        size, first = read_varint(data, first)
        table = data[first : first + size]
        if len(table) < size or not 1 <= used <= min(count, context.size, 8 * size):
            raise ValueError(f"its table lists {used} codes in {size} bytes")
        bits = iter(f"{int.from_bytes(table):0{8 * size}b}")
        gaps = torch.tensor(_read_golomb(bits, used, context.size))
        counts = torch.tensor(_read_golomb(bits, used, count)) + 1
        codes = (gaps + 1).cumsum(0) - 1
        rest = "".join(bits)
        if int(counts.sum()) != count or int(codes[-1]) >= context.size or "1" in rest or len(rest) > 7:
            raise ValueError(f"its table is not that of {count} indices of {context.size} codes")
        if used == 1:
            if len(data) > first + size:
                raise ValueError("has bytes behind its table")
            return codes.expand(count).reshape(shape).clone()
        starts = counts.cumsum(0) - counts
        symbols = torch.arange(used).repeat_interleave(counts).tolist()
        decoder = RangeDecoder(data[first + size :], count)
        found = decoder.pop(count, symbols, starts.tolist(), counts.tolist())
        decoder.check_end()
        return codes[torch.tensor(found)].reshape(shape)


CODERS: dict[str, Coder] = {
    coder.name: coder for coder in (FixedWidth(), MixedRadix(), Lzma(), Counts(), ContextMixing())
}
"""By name; of two that write as many bytes, the first is taken."""

_GOLOMB_BITS = 5
"""Of an order of exponential Golomb codes."""


def _width(size: int) -> int:
    return (size - 1).bit_length()


def _byte_width(size: int) -> int:
    return 1 if size <= 2**8 else 2 if size <= 2**16 else 4


def _digits_of_number(size: int) -> tuple[int, int]:
    """How many digits to the base `size` are one symbol of at most 24 bits, and how many such symbols there are."""
    digits = 1
    while size ** (digits + 1) <= 2**24:
        digits += 1
    return digits, size**digits


def _filters(width: int) -> list[dict[str, int]]:
    places = width.bit_length() - 1
    dictionary = 2**20  # what a reader takes, whatever a file says
    return [
        {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}
        | {"lc": 3 - places, "lp": places, "pb": places}
    ]


def little_endian(values: Tensor, width: int) -> bytes:
    """Numbers in row-major order, in `width` bytes each."""
    return _bytes((values.reshape(-1, 1) >> 8 * torch.arange(width) & 255).to(torch.uint8).reshape(-1))


def _bytes(values: Tensor) -> bytes:
    return bytes(values.tolist())


def _tensor(data: bytes) -> Tensor:
    """Bytes as (n,) uint8."""
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)


def _golomb(values: list[int]) -> str:
    """Numbers of at least 0 as bits, in exponential Golomb codes of the order that makes them shortest."""
    shifted = (torch.tensor(values).unsqueeze(-1) >> torch.arange(2**_GOLOMB_BITS)) + 1
    lengths = torch.frexp(shifted.double()).exponent.sum(0)  # bits of each number, exact below 2^53
    order = int((2 * lengths + len(values) * torch.arange(2**_GOLOMB_BITS)).argmin())
    parts = [f"{order:0{_GOLOMB_BITS}b}"]
    for value in values:
        written = f"{value + (1 << order):b}"
        parts.append("0" * (len(written) - order - 1) + written)
    return "".join(parts)


def _read_golomb(bits: Iterator[str], count: int, most: int) -> list[int]:
    """As many numbers of at most `most`."""
    order = _read_bits(bits, _GOLOMB_BITS)
    values = []
    for _ in range(count):
        zeros = 0
        while next(bits, "1") == "0":
            zeros += 1
        value = (1 << zeros + order | _read_bits(bits, zeros + order)) - (1 << order) if zeros < 32 else most + 1
        if value > most:
            raise ValueError(f"its table has the number {value}: expected at most {most}")
        values.append(value)
    return values


def _read_bits(bits: Iterator[str], count: int) -> int:
    return int("0" + "".join(next(bits, "0") for _ in range(count)), 2)
