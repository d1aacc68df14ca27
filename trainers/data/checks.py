"""Checks of arguments that data modules of several kinds have."""

from collections.abc import Mapping


def check_least(values: Mapping[str, tuple[int, int]]) -> None:
    """Refuse numbers that are too small.

    Args:
        values: the value of each argument and the least that it may be, by its name.

    Raises:
        ValueError: a value is below; the message names the first one.
    """
    for name, (value, least) in values.items():
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}.")


def check_fraction(name: str, value: float) -> None:
    """Refuse what is no share between none and all.

    Raises:
        ValueError: the value is not in (0, 1).
    """
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}.")
