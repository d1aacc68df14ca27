"""Whether a value that was read from a file is one that an argument is annotated with."""

import collections.abc
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1
"""What tensors and their sizes are counted in."""

_LISTS = (list, tuple, collections.abc.Sequence, collections.abc.Iterable)


def check_arguments(constructor: Callable[..., Any], arguments: Mapping[str, Any], where: str) -> None:
    """Refuse arguments that are not what a constructor is annotated with.

    Args:
        constructor: an `__init__`; arguments without an annotation may be anything.
        arguments: by name; `self` is left out.
        where: the place of the object in its configuration, for the message.

    Raises:
        ValueError: one is of another type; the message names it.
    """
    hints = get_type_hints(constructor)
    _, *parameters = inspect.signature(constructor).parameters.values()
    for parameter in parameters:
        name = parameter.name
        several = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if name in arguments and name in hints and not several and not fits(arguments[name], hints[name]):
            wanted = inspect.formatannotation(hints[name])
            raise ValueError(f"argument {f'{where}.{name}'.lstrip('.')!r} is {arguments[name]!r}: expected {wanted}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as files hold it: lists for sequences, whole numbers for floating point too, NaN
    for nothing.

    Args:
        value: read from a file, parts and factories already built.
        hint: a resolved annotation; of what is none of JSON's types or a class, anything is.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return any(value == argument and type(value) is type(argument) for argument in arguments)
    if origin in _LISTS:
        return isinstance(value, list | tuple) and all(fits(item, arguments[0]) for item in value)
    if origin is collections.abc.Callable or hint is Callable:
        return callable(value)
    if hint is None:
        return value is None
    if hint in (int, float):
        number = isinstance(value, (int, float) if hint is float else int) and not isinstance(value, bool)
        return number and value == value and not (isinstance(value, int) and abs(value) > LARGEST)
    return not isinstance(hint, type) or isinstance(value, hint)
