"""A system that refuses."""

import errno
import os
from collections.abc import Callable
from typing import Any


def failing(function: Callable[..., Any], *, after: int, error: int = errno.ENOSPC) -> Callable[..., Any]:
    """A function that works so many times, and then raises what the system says of a full disk."""
    calls = []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise OSError(error, os.strerror(error))
        return function(*arguments, **options)

    return called
