"""A range coder in integers of any size: symbols of given widths of a total, last in, first out.

Source: asymmetric numeral systems, Duda 2013 (https://arxiv.org/abs/1311.2540), sec. 3, the range variant.
"""

from collections.abc import Sequence

_PRECISION = 16
"""Bits of the state below a total: a symbol costs 2^-16 bits more than its entropy, and a packet 24 bits more."""


class RangeEncoder:
    """What symbols are pushed to. What is pushed last is read first.

    Args:
        total: a multiple of every total that is pushed.
    """

    def __init__(self, total: int) -> None:
        self.low = self.state = total << _PRECISION
        self.tail = bytearray()

    def push(self, starts: Sequence[int], widths: Sequence[int], total: int) -> None:
        """Push symbols, so that they are read in this order.

        Args:
            starts: of each symbol, the widths of all that come before it in the alphabet.
            widths: of each symbol, at least 1.
            total: of the widths of the alphabet.
        """
        state, tail, most = self.state, self.tail, self.low // total << 8
        for start, width in zip(reversed(starts), reversed(widths), strict=True):
            bound = width * most
            while state >= bound:
                tail.append(state & 255)
                state >>= 8
            quotient, rest = divmod(state, width)
            state = quotient * total + start + rest
        self.state = state

    def finish(self) -> bytes:
        """All that was pushed."""
        return self.state.to_bytes(_state_bytes(self.low), "little") + bytes(reversed(self.tail))


class RangeDecoder:
    """What symbols are read from, in bounded time and memory whatever the bytes are.

    Args:
        data: what `RangeEncoder.finish` gave.
        total: as the encoder had it.
    """

    def __init__(self, data: bytes, total: int) -> None:
        self.low = total << _PRECISION
        size = _state_bytes(self.low)
        self.state = int.from_bytes(data[:size], "little")
        self.rest = iter(data[size:])
        self.complete = len(data) >= size and self.low <= self.state < self.low << 8

    def pop(self, count: int, symbols: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> list[int]:
        """Read symbols.

        Args:
            count: how many.
            symbols: which symbol holds each place of 0 ... total - 1.
            starts: of each symbol.
            widths: of each symbol.
        """
        state, low, rest, total = self.state, self.low, self.rest, len(symbols)
        found = []
        for _ in range(count):
            quotient, place = divmod(state, total)
            symbol = symbols[place]
            found.append(symbol)
            state = widths[symbol] * quotient + place - starts[symbol]
            while state < low:
                state = state << 8 | next(rest, 0)
                if not state:
                    self.complete = False
                    return found + [0] * (count - len(found))
        self.state = state
        return found

    def pop_uniform(self, count: int, total: int) -> list[int]:
        """Read symbols of `total` that all have width 1."""
        state, low, rest = self.state, self.low, self.rest
        found = []
        for _ in range(count):
            state, symbol = divmod(state, total)
            found.append(symbol)
            while state < low:
                state = state << 8 | next(rest, 0)
                if not state:
                    self.complete = False
                    return found + [0] * (count - len(found))
        self.state = state
        return found

    def check_end(self) -> None:
        """Refuse bytes that no encoder made of these symbols.

        Raises:
            ValueError: the state is not that of the start, or bytes are left.
        """
        if not self.complete or self.state != self.low or next(self.rest, None) is not None:
            raise ValueError("its bytes do not end where its indices do")


def _state_bytes(low: int) -> int:
    return ((low << 8) - 1).bit_length() + 7 >> 3
