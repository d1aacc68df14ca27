"""Names of files as text that can be shown and stored."""

import os
import re

_ESCAPED = re.compile(r"[\\\x00-\x1f\x7f-\x9f\udc80-\udcff]+")


def escaped(path: str) -> str:
    r"""A path as text in UTF-8, on one line; unequal paths stay unequal.

    Bytes that are not UTF-8, control characters and backslashes become `\x` and two hexadecimal digits a byte. Other
    paths stay as they are.

    Args:
        path: as Python's functions for files return it.

    Examples:
        >>> escaped(os.fsdecode(b"caf\xe9.jpg"))
        'caf\\xe9.jpg'
    """
    return _ESCAPED.sub(lambda found: "".join(f"\\x{byte:02x}" for byte in os.fsencode(found[0])), path)


def unescaped(name: str) -> str:
    """The path of which `escaped` made a name."""
    written = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), os.fsencode(name))
    return os.fsdecode(written)
