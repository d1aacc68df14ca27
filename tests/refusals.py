"""Tables of what is refused, and with which words."""

import re
from collections.abc import Callable
from typing import Any

import pytest


def refused(
    *cases: tuple[Any, str],
    by: Callable[[Any], object] = lambda call: call(),
    error: type[Exception] | tuple[type[Exception], ...] = ValueError,
    literal: bool = False,
) -> Callable[..., None]:
    """A test for each case: it is refused, and the message says why.

    Args:
        cases: what is refused, and a regular expression of the message.
        by: what refuses it; by default a case is a call of its own.
        error: as which it is refused.
        literal: whether messages are parts of what is said, word by word, instead of regular expressions.
    """

    @pytest.mark.parametrize(("case", "message"), cases)
    def test(case: Any, message: str) -> None:
        with pytest.raises(error, match=re.escape(message) if literal else message):
            by(case)

    return test
