"""`python -m trainers table`: the figures of several runs side by side, where they were measured alike."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainers.run.folders import find_run
from vqkit.saving.files import read_json

WEIGHTS = ("checkpoint", "step", "run")
"""What of a protocol says whose weights were measured, and may differ."""


def table(arguments: Sequence[str]) -> list[str]:
    """Run the command.

    Args:
        arguments: its words, without `table`.

    Returns:
        Lines of Markdown: a figure in each row, a run in each column, and below what differs although it was allowed.

    Raises:
        FileNotFoundError: there is no record of a run.
        ValueError: a record has no protocol, protocols differ, or no run has a figure that was asked for.
    """
    parser = argparse.ArgumentParser(
        prog="python -m trainers table", description="Figures of runs side by side; other protocols are refused."
    )
    parser.add_argument("runs", nargs="+", help="run folders with metrics.json, their names in runs, or such files")
    parser.add_argument("--figures", nargs="+", help="rows (default: all figures)")
    parser.add_argument(
        "--despite", nargs="+", default=[], help="entries of the protocol that may differ, such as versions.torch"
    )
    asked = parser.parse_args(arguments)
    records = {name: _record(name) for name in asked.runs}
    notes = _differences(records, asked.despite)
    numbers = {
        name: {key: value for key, value in record.items() if isinstance(value, int | float)}
        for name, record in records.items()
    }
    there = list(dict.fromkeys(key for found in numbers.values() for key in found))
    if unknown := sorted(set(asked.figures or ()) - set(there)):
        raise ValueError(f"--figures {' '.join(unknown)}: no run has it; there are {', '.join(there)}")
    lines = [f"| | {' | '.join(records)} |", "|---|" + "---:|" * len(records)]
    for key in asked.figures or there:
        cells = (f"{found[key]:.6g}" if key in found else "-" for found in numbers.values())
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return [*lines, *(["", f"Not measured alike: {'; '.join(notes)}."] if notes else [])]


def _record(name: str) -> Mapping[str, Any]:
    asked = find_run(Path(name))
    path = asked / "metrics.json" if asked.is_dir() else asked
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: expected a folder with it, as python -m trainers test writes it"
        )
    record = read_json(path)
    if not isinstance(record.get("protocol"), Mapping):
        raise ValueError(f"{path} has no protocol: expected a file that python -m trainers test wrote")
    return record


def _differences(records: Mapping[str, Mapping[str, Any]], allowed: Sequence[str]) -> list[str]:
    """In words what differs and is allowed to; what is not allowed is refused.

    What says how a figure was measured may be missing with it, as that of codes is where latents are continuous.
    """
    flat = {name: dict(_entries(record["protocol"])) for name, record in records.items()}
    (first, expected), *others = flat.items()
    notes: dict[bool, list[str]] = {True: [], False: []}
    for other, found in others:
        for key in dict.fromkeys([*expected, *found]):
            ours, theirs = (f"{entries[key]!r}" if key in entries else "missing" for entries in (expected, found))
            one_has_it = (key in expected) != (key in found) and (key in records[first]) != (key in records[other])
            if ours != theirs and key not in WEIGHTS and not one_has_it:
                permitted = any(f"{key}.".startswith(f"{prefix}.") for prefix in allowed)
                notes[permitted].append(f"{key} is {ours} in {first} and {theirs} in {other}")
    if notes[False]:
        raise ValueError(
            f"protocols differ, so figures cannot be compared: {'; '.join(notes[False])}. Measure all of them alike by "
            "python -m trainers test, or name entries that do not matter here by --despite"
        )
    return notes[True]


def _entries(protocol: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            yield from _entries(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
