"""Folders that are filled package by package: one run at a time, a package whole or not at all.

The record of a package in ``.packages/`` is written last and is what a later run trusts.
"""

import fcntl
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fetching.debian import FetchError

RECORDS = ".packages"


@contextmanager
def claimed(destination: Path) -> Iterator[None]:
    """Keeps a folder for this run, and clears away what a killed one left.

    Args:
        destination: the folder; it must be new, empty, or filled by an earlier run.

    Raises:
        FetchError: it holds something else, or another run is writing to it.
    """
    if destination.exists() and not destination.is_dir():
        raise FetchError(f"--destination {destination} is a file; name a folder.")
    if destination.is_dir() and any(destination.iterdir()) and not (destination / RECORDS).is_dir():
        raise FetchError(
            f"--destination {destination} holds files that this command did not write, and it would delete some. "
            "Name a new or an empty folder."
        )
    (destination / RECORDS).mkdir(parents=True, exist_ok=True)
    with (destination / RECORDS / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FetchError(f"Another run is writing to {destination}; wait for it or name another folder.") from None
        for leftover in destination.glob(".partial-*"):
            shutil.rmtree(leftover)
        yield


def fill(
    wanted: Sequence[str],
    records: dict[str, Any],
    build: Callable[[str, Callable[[str], None]], Any],
    *,
    counted: Callable[[Any], str],
    failures: tuple[type[Exception], ...],
    say: Callable[[str], None],
) -> dict[str, str]:
    """Builds the packages that have no record yet, and goes on when one fails.

    Args:
        wanted: names of the packages, in order.
        records: the records that are there, by name; new ones are added.
        build: makes one package from its name and a function that receives lines of progress; returns its record.
        counted: says in words what a record holds.
        failures: errors that concern one package only.
        say: receives one line of progress at a time.

    Returns:
        The reasons of the packages that failed, by name.
    """
    failed: dict[str, str] = {}
    for number, name in enumerate(wanted, start=1):
        heading = f"[{number}/{len(wanted)}] {name}"
        if name in records:
            say(f"{heading}: already there, {counted(records[name])}")
            continue
        try:
            records[name] = build(name, lambda line, heading=heading: say(f"{heading}: {line}"))
        except failures as error:
            failed[name] = str(error)
            say(f"{heading}: FAILED. {error}")
    return failed


def complain(failed: dict[str, str], wanted: Sequence[str]) -> None:
    """Raises FetchError when at least one package failed."""
    if failed:
        raise FetchError(
            f"{len(failed)} of {len(wanted)} packages could not be fetched ({', '.join(failed)}); the reasons are "
            "above. The others are complete."
        )


def move_into_place(staged: Path, destination: Path, package: str, splits: Sequence[str]) -> None:
    """Moves ``<staged>/<split>`` to ``<destination>/<split>/<package>`` for every split that is there."""
    for split in splits:
        if (staged / split).is_dir():
            (destination / split).mkdir(exist_ok=True)
            (staged / split).rename(destination / split / package)


def clear(destination: Path, package: str, splits: Sequence[str]) -> None:
    """Removes what an interrupted run left of a package: no record vouches for it."""
    (destination / RECORDS / f"{package}.json").unlink(missing_ok=True)
    for split in splits:
        shutil.rmtree(destination / split / package, ignore_errors=True)
