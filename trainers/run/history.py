"""What W&B's files hold: the history of a run, in a binary file that W&B itself has no reader for."""

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

STEP = "trainer/global_step"
"""Optimizer steps: the axis of everything that is logged."""

BLOCK, FILE_HEADER, PIECE_HEADER = 32_768, 7, 7


def history(file: Path) -> Iterator[dict[str, float]]:
    """The numbers of each history record of a W&B file; damaged records are left out with a warning."""
    return _read(file, "history", _figures)


def records(file: Path) -> Iterator[Any]:
    """All records of a W&B file, `wandb_internal_pb2.Record`; damaged ones are left out with a warning."""
    return _read(file, None, lambda record: record)


def _figures(record: Any) -> dict[str, float]:
    items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
    row = {name: value for name, value in items.items() if isinstance(value, int | float)}
    return {**row, STEP: int(row[STEP])} if STEP in row else row


def _read(file: Path, kind: str | None, make: Callable[[Any], Any]) -> Iterator[Any]:
    """What is made of each record of a kind; None is all kinds."""
    errors: list[Exception] = []
    try:
        content = file.read_bytes()
    except OSError as error:
        content, errors = b"", [error]
    for data in _contents(content):
        try:
            record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # protobuf makes it when it is imported
            record.ParseFromString(data)
            if kind not in (None, record.WhichOneof("record_type")):
                continue
            made = make(record)
        except Exception as error:  # protobuf and JSON raise errors of many kinds
            errors.append(error)
        else:
            yield made
    if errors:
        unread = "its records" if not content else f"{len(errors)} of its records"
        warnings.warn(f"{file}: {unread} cannot be read, and are left out: {errors[0]}", stacklevel=2)


def _contents(content: bytes) -> Iterator[bytes]:
    """The contents of a LevelDB log, the format of W&B's files: blocks of 32 KiB behind a header of 7 bytes.

    A piece of a record has a header too: checksum (4 bytes), length (2), and whether it is a whole record (1) or its
    first (2), middle (3) or last (4) piece. The end of a file that was cut off is left out.
    """
    position, pieces = FILE_HEADER, b""
    while position + PIECE_HEADER <= len(content):
        left = BLOCK - position % BLOCK
        if left < PIECE_HEADER:
            position += left
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        position += PIECE_HEADER
        if kind not in (1, 2, 3, 4) or position + length > len(content):
            return
        pieces += content[position : position + length]
        position += length
        if kind in (1, 4):
            yield pieces
            pieces = b""
