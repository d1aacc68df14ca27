"""Whole numbers in as few bytes as they need (LEB128): seven bits a byte, the lowest first; all but the last have the
highest bit set.
"""


def write_varint(number: int) -> bytes:
    """A number of 0 ... 2^63 - 1 as one to nine bytes."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def read_varint(data: bytes, first: int) -> tuple[int, int]:
    """The number that begins at byte `first`, and the place behind it.

    Raises:
        ValueError: the data end within it, or it is written longer than needed or than nine bytes.
    """
    number = 0
    for place, byte in enumerate(data[first : first + 9]):
        number |= (byte & 127) << 7 * place
        if byte < 128:
            if place and not byte:
                break
            return number, first + place + 1
    raise ValueError(f"has no number at byte {first}: it is cut off or damaged there")
