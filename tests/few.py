"""Tests of many alike: a few by default, the others with the slow ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest


def few(values: Mapping[str, Any] | Iterable[Any], *names: str) -> list[Any]:
    """Parameters for each value; those that are not named carry the marker `slow`.

    Args:
        values: by name, or their own names, or files, which are named by their stems.
        names: of those that are always tested.
    """
    if not isinstance(values, Mapping):
        values = {value.stem if isinstance(value, Path) else value: value for value in values}
    unknown = {*names} - {*values}
    if unknown:
        raise ValueError(f"names has {sorted(unknown)}, expected some of {[*values]}; correct the spelling.")
    marks = {name: () if name in names else pytest.mark.slow for name in values}
    return [pytest.param(value, id=name, marks=marks[name]) for name, value in values.items()]
