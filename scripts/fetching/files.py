"""Files that are either whole or not there, and their hashes."""

import hashlib
import os
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that it is either whole or not there, also when the run is killed meanwhile.

    `vqkit.saving.files.write_whole` for a downloader, which runs before torch is installed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
