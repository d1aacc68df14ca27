"""Tables and prose of the documents, in Markdown."""

import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from functools import partial
from typing import Any


def table_lines(heads: Sequence[str], rows: Iterable[Sequence[str]], *, words: Container[int] = (0,)) -> list[str]:
    """The lines of a table: columns of words, by their numbers, begin on the left, the others end on the right."""
    line = "|" + "".join("---|" if column in words else "---:|" for column in range(len(heads)))
    return [_line(heads), line, *map(_line, rows)]


def formatted(row: Mapping[str, Any], forms: Iterable[str]) -> list[str]:
    """The cells of a row of figures, each by its form, such as "{psnr:.2f} dB"."""
    return [form.format_map(row) for form in forms]


def captioned(lines: Iterable[str], *caption: str) -> str:
    """Lines, and below them how they came about."""
    return "\n".join([*lines, "", wrapped(caption)])


def wrapped(lines: Iterable[str]) -> str:
    """Lines of prose, each wrapped on its own."""
    wrap = partial(textwrap.fill, width=120, break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrap(line, subsequent_indent="  " * line.startswith(("- ", "  "))) for line in lines)


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
