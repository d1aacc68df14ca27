"""What files of indices take and hold, in lines for people."""

import math
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from vqkit.bitstream.codec import Packed
from vqkit.bitstream.coders import CODERS
from vqkit.bitstream.container import Extent, Header, Picture, Sound, inspect

FIGURES = f"{'nominal':>9}{'zero-order':>12}{'coded':>9}{'header':>10}{'file':>12}"
"""Titles above `Rate.row`."""


@dataclass(frozen=True)
class Rate:
    """What a file of indices takes, or several do.

    Attributes:
        nominal: bits, log2 K for each index of K codes.
        zero_order: bits, for each index the entropy of the codes of its level in this very file.
        header: bytes in front of the packets.
        size: bytes of the whole file.
        amount: pixels, or milliseconds of sound.
        coders: names of those that are in it.
    """

    nominal: float
    zero_order: float
    header: int
    size: int
    amount: float
    coders: str

    @classmethod
    def of(cls, packed: Packed, extent: Extent) -> Self:
        """Of one file."""
        return cls(
            packed.nominal_bits,
            packed.zero_order_bits,
            packed.header_bytes,
            len(packed.content),
            amount(extent),
            ", ".join(packed.coders),
        )

    def summary(self, unit: str) -> str:
        """In words."""
        rates = (value / self.amount for value in (8 * self.size, self.nominal, self.zero_order))
        coded, nominal, zero_order = (f"{rate:.4f}" for rate in rates)
        return f"{self.size:,} bytes, {coded} {unit} (nominal {nominal}, zero-order {zero_order})"

    def row(self) -> str:
        """Below `FIGURES`: bits/pixel or kbit/s, headers included in what is coded, then bytes."""
        bits = (self.nominal, self.zero_order, 8 * self.size)
        nominal, zero_order, coded = (value / self.amount for value in bits)
        return f"{nominal:9.4f}{zero_order:12.4f}{coded:9.4f}{self.header:8,} B{self.size:10,} B  {self.coders}"


def total(rates: Sequence[Rate]) -> Rate:
    """Of all files together."""
    return Rate(
        sum(rate.nominal for rate in rates),
        sum(rate.zero_order for rate in rates),
        sum(rate.header for rate in rates),
        sum(rate.size for rate in rates),
        sum(rate.amount for rate in rates),
        "",
    )


def amount(extent: Extent) -> float:
    """Pixels, or milliseconds: what bits are divided by for the rate in `unit`."""
    if isinstance(extent, Picture):
        return extent.height * extent.width
    return 1000 * extent.samples / extent.sample_rate if extent.sample_rate else 0.0


def unit(extent: Extent) -> str:
    """Of the rates of such files."""
    return "bits/pixel" if isinstance(extent, Picture) else "kbit/s"


def nominal_bits(header: Header) -> float:
    """log2 K for each index of K codes."""
    return header.samples * sum(math.prod(level.shape) * math.log2(level.size) for level in header.levels)


def damages(data: bytes, header: Header) -> list[int]:
    """Numbers of the packets that are not whole."""
    starts = header.offsets()
    return [
        number
        for number, packet in enumerate(header.packets)
        if len(part := data[starts[number] : starts[number + 1]]) < packet.length or zlib.crc32(part) != packet.checksum
    ]


def is_whole(data: bytes, header: Header) -> bool:
    """Whether every packet is there as it was written, and nothing else."""
    return not damages(data, header) and len(data) == header.offsets()[-1]


def description(data: bytes) -> tuple[list[str], bool]:
    """What a file holds, in lines, and whether it is whole.

    Raises:
        ValueError: it is no such file, or its header is damaged.
    """
    header = inspect(data, most_cells=sys.maxsize)  # of which none is read
    names = {coder.number: name for name, coder in CODERS.items()}
    extent, bits = header.extent, nominal_bits(header)
    if isinstance(extent, Picture):
        lines = [f"original    {extent.width} x {extent.height} pixels"]
    elif isinstance(extent, Sound):
        lines = [f"original    {amount(extent) / 1000:.3f} s at {extent.sample_rate} Hz"]
    else:
        lines = ["original    unknown"]
    lines.append(f"tokenizer   {header.fingerprint.hex()}")
    for number, level in enumerate(header.levels):
        grid = " x ".join(map(str, level.shape)) or "1"
        lines.append(f"level {number:<5} {grid} indices of {level.size:,} codes" + ", some left out" * level.masked)
    coders = ", ".join(dict.fromkeys(names.get(packet.coder, str(packet.coder)) for packet in header.packets))
    lines.append(
        f"bytes       {len(data):,}, of which {header.start:,} header; packets: {len(header.packets)}, "
        f"by {coders or 'no coder'}"
    )
    broken, rest = damages(data, header), len(data) - header.offsets()[-1]
    if extent is not None and (whole := amount(extent)) and not broken and not rest:
        lines.append(f"rate        {8 * len(data) / whole:.4f} {unit(extent)}, nominal {bits / whole:.4f}")
    if broken:
        shown = ", ".join(map(str, broken[:8])) + ", ..." * (len(broken) > 8)
        lines.append(f"DAMAGED     {len(broken)} of {len(header.packets)} packets ({shown}): decode with --partial")
    elif rest:
        lines.append(f"DAMAGED     {rest} bytes follow its last packet")
    return lines, not broken and not rest
