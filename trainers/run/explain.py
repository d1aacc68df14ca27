"""Turns the nested report of the argument parser into the line that matters: where, what, and the choices."""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable
from typing import Any, get_args, get_type_hints

from trainers.run import migration as trainers_migration
from vqkit.saving.migration import current_path

PLACE = re.compile(
    r"""(?:Parser key "(?P<key>[^"]+)"|Problem with given class_path '(?P<path>[^']+)'):\s*(?P<rest>.*)"""
)
NO_OPTION = re.compile(r"(?:Option '(?P<option>[^']+)' is not accepted|Key '(?P<key>[^']+)' is not expected)")
LITERAL = re.compile(r"Expected a typing\.Literal\[(?P<choices>.*)\]\. Got value: (?P<value>.*)")
REQUIRED = "the following arguments are required: "
NO_CLASS = ("has no attribute '", "No module named '", "Import path expected", "not correspond to a subclass")
NOISE = (
    "Does not validate against any of the Union subtypes",
    "Subtypes: ",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value type: ",
    "Given value: ",
    "Expected a path but ",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with",
)


def explain(report: str) -> str:
    """The reasons in a report of jsonargparse, without the way that led there.

    Args:
        report: message of an `ArgumentError`, or of a `ValueError` out of a constructor, in any nesting.

    Returns:
        `key.of.argument: reason`, with choices and a guess where they can be found out; further reasons on further
        lines.
    """
    places: dict[str, list[tuple[int, str]]] = {"key": [], "path": []}
    reasons: list[str] = []
    for line in report.splitlines():
        text = line.strip().removeprefix("- ")
        indent = len(line) - len(text)
        while match := PLACE.fullmatch(text):
            kind = "key" if match["key"] else "path"
            places[kind] = [*(place for place in places[kind] if place[0] < indent), (indent, match[kind])]
            text = match["rest"]
        if not text or text.startswith(NOISE):
            continue
        keys, classes = ([name for _, name in found] for found in places.values())
        reason = _reason(text, classes, keys[-1] if keys else "")
        reason = f"{'.'.join(keys)}: {reason}" if keys and not reasons else reason
        if reason not in reasons:
            reasons.append(reason)
    return "\n  ".join(reasons) or report


def suggest(word: str, choices: Iterable[str]) -> str:
    """`; did you mean ...?` if a choice is near, else nothing."""
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _reason(text: str, classes: list[str], key: str) -> str:
    if text.startswith(REQUIRED):
        return f"needs {text.removeprefix(REQUIRED)}"
    if match := LITERAL.fullmatch(text):
        choices = [choice.strip("'\" ") for choice in match["choices"].split(",")]
        return (
            f"expected one of {', '.join(map(repr, choices))}, got {match['value']!r}{suggest(match['value'], choices)}"
        )
    if (match := NO_OPTION.match(text)) and classes:
        option = match["option"] or match["key"]
        if replaced := trainers_migration.REPLACED_ARGUMENTS.get((classes[-1], option)):
            return f"{classes[-1]} has no argument {option!r}: {replaced}"
        names = _arguments(classes[-1])
        return f"{classes[-1]} has no argument {option!r}{suggest(option, names)}; it takes {', '.join(names)}"
    if not classes or not any(sign in text for sign in NO_CLASS):
        return text
    if replaced := trainers_migration.REPLACED_CLASSES.get(classes[-1]):
        return f"{classes[-1]} is gone: {replaced}"
    renamed = trainers_migration.current_path(current_path(classes[-1]))
    if renamed != classes[-1]:
        return f"{classes[-1]} is called {renamed} now: write that"
    if len(classes) >= 2:
        choices = _classes_for(classes[-2], key)
        guess = suggest(classes[-1].rpartition(".")[2], [choice.rpartition(".")[2] for choice in choices])
        return f"{text}{guess}; choices: {', '.join(choices)}" if choices else text
    return text


def resolve(path: str) -> Any:
    """What an import path names, or None."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _arguments(path: str) -> list[str]:
    """The names of the arguments, those of base classes in the place of `**arguments`."""
    found = resolve(path)
    names: list[str] = []
    for maker in inspect.getmro(found) if inspect.isclass(found) else filter(callable, [found]):
        parameters = inspect.signature(maker).parameters.values()
        names += [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
        if all(each.kind is not each.VAR_KEYWORD for each in parameters):
            break
    return list(dict.fromkeys(names))


def _classes_for(owner: str, argument: str) -> list[str]:
    """Import paths of what an argument of the class `owner` can be, by its annotation."""
    found = resolve(owner)
    hint = get_type_hints(found.__init__).get(argument) if isinstance(found, type) else None  # type: ignore[misc]
    return sorted({path for base in _classes_in(hint) for path in _public_paths(base)})


def _classes_in(hint: Any) -> list[type]:
    inner = [found for argument in get_args(hint) for found in _classes_in(argument)]
    if isinstance(hint, list):  # the arguments of a Callable
        return []
    return inner or ([hint] if isinstance(hint, type) and hint.__module__.startswith(("vqkit", "trainers")) else [])


def _public_paths(base: type) -> list[str]:
    found = [base, *(sub for sub in _all_subclasses(base))]
    public = importlib.import_module("vqkit")
    paths = [f"vqkit.{cls.__name__}" for cls in found if getattr(public, cls.__name__, None) is cls]
    abstract = {"vqkit.BaseQuantizer", "vqkit.VectorQuantizer", "vqkit.Loss", "vqkit.Maintenance", "vqkit.Estimator"}
    return [path for path in paths if path not in abstract]


def _all_subclasses(base: type) -> list[type]:
    found: list[type] = base.__subclasses__()
    return [deeper for sub in found for deeper in (sub, *_all_subclasses(sub))]
