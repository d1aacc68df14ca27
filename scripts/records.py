"""Records of measurements: on which machine, and parts that are measured once and kept."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from first_run import processor

from vqkit.saving.files import write_json


def measuring_parser(description: str, *, again: bool = False) -> argparse.ArgumentParser:
    """The arguments of a script that writes a record; with `again` of one that keeps what it has measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--circumstances", default="", help="what the record should say of the machine")
    if again:
        parser.add_argument("--again", action="store_true", help="measure what the record holds, too")
    return parser


def machine(circumstances: str = "") -> str:
    """What something is measured on, and what the user says of it."""
    threads = torch.get_num_threads()
    return ", ".join(filter(None, [f"{threads} thread{'s' * (threads > 1)} of {processor()}", circumstances]))


def load_record(path: Path, *, again: bool = False) -> dict[str, Any]:
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
