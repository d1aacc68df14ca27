"""What W&B's files hold: the history of a run, in a binary file that W&B itself has no reader for."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

STEP = "trainer/global_step"
"""Optimizer steps: the axis of everything that is logged."""

BLOCK, FILE_HEADER, PIECE_HEADER = 32_768, 7, 7


def history(file: Path) -> Iterator[dict[str, float]]:
    """The numbers of each history record of a W&B file."""
    for record in records(file):
        if record.WhichOneof("record_type") == "history":
            items = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            yield {name: value for name, value in items.items() if isinstance(value, int | float)}


def records(file: Path) -> Iterator[Any]:
    """All records of a W&B file, `wandb_internal_pb2.Record`."""
    for data in _contents(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]  # protobuf makes it when it is imported
        record.ParseFromString(data)
        yield record


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
