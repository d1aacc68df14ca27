"""Tests of many alike: a few by default, the others with the slow ones."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest


def few(values: Mapping[str, Any] | Iterable[Any], *names: object) -> list[Any]:
    """Parameters for each value; those that are not named carry the marker `slow`.

    Args:
        values: by name, or numbers and words, which are their own names, or files, named by their stems.
        names: of those that are always tested.
    """
    if not isinstance(values, Mapping):
        values = {value.stem if isinstance(value, Path) else value: value for value in values}
    assert {*names} <= {*values}, f"no value has the name { ({*names} - {*values}) }"
    marks = {name: () if name in names else pytest.mark.slow for name in values}
    return [pytest.param(value, id=str(name), marks=marks[name]) for name, value in values.items()]
