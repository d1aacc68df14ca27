"""Command-line arguments that the benchmarks share."""

import argparse
from typing import NamedTuple


class Shape(NamedTuple):
    """N vectors of dimension D, and K codes."""

    vectors: int
    codes: int
    dim: int

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.vectors},{self.codes},{self.dim}"


def parse_shape(text: str, *, least_dim: int = 1) -> Shape:
    """N,K,D of at least 1,1,least_dim."""
    try:
        sizes = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r}: expected N,K,D such as 8192,1024,64") from None
    if min(sizes) < 1 or sizes.dim < least_dim:
        raise argparse.ArgumentTypeError(f"{text!r}: expected N and K of at least 1, and D of at least {least_dim}")
    return sizes


def parse_positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)
