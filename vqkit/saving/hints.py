"""What to say of an argument that a constructor does not take: which one it is a slip of, or to which part it belongs.

Everything is read from signatures and annotations.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, get_args, get_origin, get_type_hints

from torch import nn

_CLOSE = 0.6
"""The ratio of `SequenceMatcher` from which on names count as alike, as in `difflib.get_close_matches`."""
_CLOSE_WITH_CLASS = 0.8
"""The same for names that begin with that of a class, such as commitment_weight."""
_PREFERENCE = 0.2
"""Of the called class itself and of the parts that it has by default, over others that are alike."""


def check_names(cls: type, arguments: Mapping[str, Any], *, base: type, defaults: Callable[[], Sequence[type]]) -> None:
    """Refuse an argument whose name a constructor does not have.

    Args:
        cls: the class whose constructor is called.
        arguments: what it is given by name.
        base: of all classes that count as parts, where an annotation of the constructor names one.
        defaults: () -> classes of parts that it has where the caller gives none, besides those in its signature.

    Raises:
        TypeError: as of any function, with the place where the argument belongs.
    """
    taken = _parameters(cls)
    name = next((name for name in arguments if name not in taken), None)
    if name is None or any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    objects = [item for own in taken.values() for item in _as_list(own.default)]
    preferred = {*defaults(), *map(type, objects)}
    found = [(_likeness(name, own), True, f"did you mean {own!r}?") for own in taken]
    value = repr(arguments[name]) if isinstance(arguments[name], int | float | str) else "..."
    for argument, form, part in _parts(cls, base):
        for own in _parameters(part).keys() - taken:  # what the called class takes itself is meant of it
            with_class = _likeness(name.replace("_", ""), f"{part.__name__}{own}".lower())
            likeness = max(_likeness(name, own), with_class * (with_class >= _CLOSE_WITH_CLASS))
            call = form.format(part.__name__, f"{own}={value}")
            found.append(
                (likeness, part in preferred, f"{own!r} is one of {part.__name__}, so write {argument}={call}")
            )
    alike = [(likeness + _PREFERENCE * first, hint) for likeness, first, hint in found if likeness >= _CLOSE]
    nothing = f"it takes {', '.join(taken) or 'none'}"
    hint = max(alike, key=lambda pair: pair[0])[1] if alike else nothing
    raise TypeError(f"{cls.__name__} has no argument {name!r}: {hint}")


def _likeness(name: str, other: str) -> float:
    return SequenceMatcher(None, name, other).ratio()


def _as_list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Those of the constructor, by name, without `self`."""
    if cls.__init__ is nn.Module.__init__:  # type: ignore[misc]
        return {}  # its keywords are never taken
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


def _parts(cls: type, base: type) -> Iterator[tuple[str, str, type]]:
    """Arguments that take a part, the form in which they take it, and the class of each part that would do."""
    try:
        hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    except NameError:  # annotations of somebody else that are for type checkers alone
        return
    for argument in _parameters(cls):
        for form, kind in _kinds(hints.get(argument), "{}({})"):
            if issubclass(kind, base):
                yield from ((argument, form, part) for part in _family(kind))


def _kinds(hint: Any, form: str) -> Iterator[tuple[str, type]]:
    """The classes in an annotation, and the forms of lists and factories that stand around them."""
    origin = get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        form = f"[{form}]"
    if origin is get_origin(Callable[[], None]):
        form = "functools.partial({}, {})"
    if isinstance(hint, type) and origin is None:
        yield form, hint
    for inner in get_args(hint):
        yield from _kinds(inner, form)


def _family(cls: type) -> Iterator[type]:
    """A class and all below it, but those that are private or cannot be built."""
    if not inspect.isabstract(cls) and not cls.__name__.startswith("_"):
        yield cls
    children: list[type] = cls.__subclasses__()
    for child in children:
        yield from _family(child)
