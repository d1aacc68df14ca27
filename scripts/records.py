"""Records of measurements: on which machine, and parts that are measured once and kept."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from first_run import processor

from vqkit.saving.files import write_json


def one_thread(circumstances: str) -> str:
    """The machine of a measurement on one thread, and what the user says of it."""
    return ", ".join(filter(None, [f"one thread of {processor()}", circumstances]))


def load_record(path: Path, *, again: bool) -> dict[str, Any]:
    """What a record holds; nothing where there is none, or all of it is measured again."""
    return json.loads(path.read_text()) if path.is_file() and not again else {}


def fill(path: Path, record: dict[str, Any], place: dict[str, Any], parts: Mapping[str, Callable[[], Any]]) -> None:
    """Measure the parts that a place of the record has not, and write the whole record after each.

    Args:
        path: of the record.
        record: all of it.
        place: a dictionary in the record, or the record.
        parts: how each is measured, by its name.
    """
    for name, measure in parts.items():
        if name not in place:
            print(f"measuring {name} ...", flush=True)
            place[name] = measure()
            write_json(path, record)
