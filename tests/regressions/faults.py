"""The two tests of most regressions: ours passes the check, and what has the fault does not."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest


def both(
    check: Callable[..., None],
    *,
    sound: Sequence[Any],
    faulty: Sequence[Any],
    message: str | None = None,
    error: type[Exception] | tuple[type[Exception], ...] = AssertionError,
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Tests that `check` passes what is sound, and fails what is faulty with `error` and `message`.

    Args:
        check: asserts that its arguments do not have the fault.
        sound: arguments, or tuples of them, one for each test.
        faulty: as `sound`.
        message: a regular expression; None for any.
        error: what the check raises.
    """

    @pytest.mark.parametrize("arguments", [*map(_as_tuple, sound)], ids=_name)
    def passes(arguments: tuple[Any, ...]) -> None:
        check(*arguments)

    @pytest.mark.parametrize("arguments", [*map(_as_tuple, faulty)], ids=_name)
    def fails(arguments: tuple[Any, ...]) -> None:
        with pytest.raises(error, match=message):
            check(*arguments)

    return passes, fails


def _as_tuple(arguments: Any) -> tuple[Any, ...]:
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _name(arguments: tuple[Any, ...]) -> str:
    plain = str | int | float | None
    values = (value.func if isinstance(value, partial) else value for value in arguments)
    return "-".join(
        str(value) if isinstance(value, plain) else getattr(value, "__name__", type(value).__name__) for value in values
    )
