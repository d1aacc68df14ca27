"""Tests of many alike: a few by default, the others with the slow ones."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest


def few(values: Mapping[str, Any] | Iterable[Any], *names: object, long: Collection[object] = ()) -> list[Any]:
    """Parameters for each value; those that are not named carry the marker `slow`, or `long`.

    Args:
        values: by name, or numbers and words, which are their own names, or files, named by their stems.
        names: of those that are always tested.
        long: of those that are tested by hand.
    """
    if not isinstance(values, Mapping):
        values = {value.stem if isinstance(value, Path) else value: value for value in values}
    unknown = {*names, *long} - {*values}
    assert not unknown, f"no value has the name {unknown}"
    later = {name: pytest.mark.long if name in long else pytest.mark.slow for name in values if name not in names}
    return [pytest.param(value, id=str(name), marks=later.get(name, ())) for name, value in values.items()]
