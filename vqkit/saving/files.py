"""Files that are written whole or not at all; errors of reading name the file."""

import errno
import glob
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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


class NotWritten(OSError):
    """A file could not be written; what stood in its place before is as it was."""

    def __str__(self) -> str:
        fix = _FIXES.get(self.errno or 0, "see to it that it can be written there")
        return f"{self.filename} was not written ({self.strerror}): {fix}; what was there before is as it was"


_FIXES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or write to another disk"),
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or write to another disk",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "write to a folder that is yours to write to"),
}


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Context for writing a file whole or not at all: it has a temporary name until all of it is on the disk.

    The temporary file lies in the folder of `path`, because a move between file systems can be interrupted. If the
    process is killed, the temporary file stays; the next write to `path` deletes it.

    Args:
        path: of the file; one that is there is replaced. Its folder is made.

    Yields:
        where to write.

    Raises:
        NotWritten: the system refuses; the message names the file, the reason and what to do.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
            if not _runs(leftover.suffixes[-2][1:]):
                leftover.unlink(missing_ok=True)
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename not in (None, partial, str(partial), *map(str, path.parents)):
            raise  # a file that is read meanwhile
        raise NotWritten(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _runs(process: str) -> bool:
    try:
        if os.name == "posix":  # elsewhere asking would end it
            os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole, or not at all.

    Args:
        path: of the file; one that is there is replaced. Its folder is made.
        content: all of it.

    Raises:
        NotWritten: see `whole`.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes | memoryview]) -> None:
    """Write files that belong together: none is moved into place, the last first, before all are on the disk.

    Args:
        contents: path -> all of the file, as in `write_whole`.

    Raises:
        NotWritten: see `whole`.
    """
    with ExitStack() as stack:
        for path, content in contents.items():
            with stack.enter_context(whole(path)).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record whole, for people to read; its folder is made."""
    write_whole(path, (json.dumps(record, indent=2) + "\n").encode())
