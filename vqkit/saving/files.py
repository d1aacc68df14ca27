"""Files that are written whole or not at all; errors of reading name the file."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Context for reading a file of a stranger: whatever its content trips over ends as one line with its name.

    Args:
        path: of the file.

    Raises:
        ValueError: the content is not what its reader expects. Errors of the system that name a file, and missing
            packages, pass as they are.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # readers of other libraries raise whatever a damaged file leads them to
        if isinstance(error, OSError) and error.filename is not None:
            raise
        message = " ".join(str(error).split())
        if not isinstance(error, ValueError):
            message = f"is damaged or of another kind ({type(error).__name__}: {message})"
        raise ValueError(f"{path}: {message}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A record in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not JSON, or not an object.
    """
    with named(path):
        try:
            record = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON ({error}): the file is damaged") from error
        if not isinstance(record, dict):
            raise ValueError(f"holds a {type(record).__name__}: expected a JSON object")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, and move it into place once it is on the disk.

    Args:
        path: of the file; one that is there is replaced. Its folder must exist.
        content: all of it.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole, for people to read; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
