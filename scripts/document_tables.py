"""Tables of the documents that are read from the code: methods, parts, refusals, and faults with their tests."""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import vqkit
from vqkit import Codebook, Estimator, IncompatibleParts, Loss, Maintenance, Search
from vqkit.methods import METHODS
from vqkit.parts.compatibility import check_compatible

ROOT = Path(__file__).resolve().parent.parent
REGRESSIONS = ROOT / "tests/regressions"
KINDS = {"codebooks": Codebook, "searches": Search, "estimators": Estimator, "losses": Loss, "maintenance": Maintenance}
SECTIONS = re.compile(r"(?P<fault>.+?)\s*Seen in: (?P<seen>.+?)\s*Avoided since (?P<version>[\d.]+): ", re.DOTALL)


def faults() -> str:
    """One row for each test of tests/regressions, from its docstring."""
    lines = ["| fault | seen in | test |", "|---|---|---|"]
    for path in sorted(REGRESSIONS.glob("test_*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        found = SECTIONS.match(docstring)
        if found is None:
            raise ValueError(f"{path}: its docstring has to name the fault, 'Seen in:' and 'Avoided since VERSION:'")
        fault, seen = (_cell(found[name]) for name in ("fault", "seen"))
        title = path.stem.removeprefix("test_").replace("_", " ")
        lines.append(f"| {fault} | {seen} | [{title}]({path.relative_to(ROOT)}) |")
    return "\n".join(lines)


def methods() -> str:
    """One row for each word that `Quantizer` knows: idea and source, from its file."""
    lines = ["| method | idea | source |", "|---|---|---|"]
    for name, method in METHODS.items():
        module = inspect.getdoc(sys.modules[method.__module__]) or ""
        idea = _first_paragraph(module).partition(": ")
        lines.append(f"| `{name}` | {idea[2] or idea[0]} | {_source(module)} |")
    return "\n".join(lines)


def method_parts() -> str:
    """One row for each word that `Quantizer` knows: equation and parts, from its function."""
    lines = ["| method | what it computes | parts |", "|---|---|---|"]
    for name, method in METHODS.items():
        parts = method()
        search = f"`{parts.search.metric}`" if not parts.search.uses_noise else _call(parts.search)
        chosen = [_factory(parts.codebook), search, _call(parts.estimator)]
        chosen += map(_call, (*parts.losses, *parts.maintenance))
        if parts.codebook_dim is not None:
            chosen.append(f"`codebook_dim={parts.codebook_dim}`")
        lines.append(f"| `{name}` | {_first_paragraph(inspect.getdoc(method) or '')} | {', '.join(chosen)} |")
    return "\n".join(lines)


def parts() -> str:
    """One row for each public part that can be put into a `Quantizer`, from its docstring."""
    lines = ["| | part | what it does | source |", "|---|---|---|---|"]
    for kind, base in KINDS.items():
        for cls in _classes(base):
            docstring = inspect.getdoc(cls) or ""
            lines.append(f"| {kind} | `{cls.__name__}` | {_first_paragraph(docstring)} | {_source(docstring)} |")
    return "\n".join(lines)


def _first_paragraph(docstring: str) -> str:
    return _cell(docstring.partition("\n\n")[0])


def _source(docstring: str) -> str:
    found = re.search(r"^Source: (.+?)(?=\n\n|\n[A-Z][a-z]+: |\n[A-Z][a-z]+:$|\Z)", docstring, re.DOTALL | re.MULTILINE)
    # What follows the first reference is for readers of the code.
    return _cell(re.split(r"(?<=\))[.:]\s|;\s", found[1])[0]) if found else "-"


def _cell(text: str) -> str:
    return " ".join(text.split()).rstrip(".").replace("|", "\\|")


def _factory(factory: Any) -> str:
    return f"`{getattr(factory, '__name__', factory)}`"


def _call(part: Any) -> str:
    weight = getattr(part, "weight", None)
    return f"`{type(part).__name__}{'' if weight is None else f'({weight:g})'}`"


def incompatible_parts() -> str:
    """Which pairs of parts are refused, one item for each reason, with the message of the first pair."""
    groups: dict[str, list[tuple[str, str]]] = {}
    messages: dict[str, str] = {}
    for first, second, message in _refused_pairs():
        reason = re.sub(rf"\b{second}\b", "B", re.sub(rf"\b{first}\b", "A", message))
        groups.setdefault(reason, []).append((first, second))
        messages.setdefault(reason, message)
    items = [
        f"- {_names(ours)} with {_names(theirs)}: *{messages[reason]}*"
        for reason, pairs in groups.items()
        for ours, theirs in _rectangles(pairs)
    ]
    wrap = partial(textwrap.fill, width=150, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(wrap, items))


def _names(names: Iterable[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} or {last}" if most else last


def _rectangles(pairs: list[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Pairs as sets of firsts that have the same seconds."""
    seconds = {first: tuple(b for a, b in pairs if a == first) for first, _ in pairs}
    for theirs, ours in itertools.groupby(sorted(seconds, key=seconds.__getitem__), key=seconds.__getitem__):
        yield list(ours), list(theirs)


def _classes(base: type) -> list[type]:
    """The public classes of a kind of part that can be built without a file, those of no single method first."""
    found = (value for value in vars(vqkit).values() if inspect.isclass(value) and issubclass(value, base))
    concrete = (value for value in found if not inspect.isabstract(value))
    return sorted(concrete, key=lambda value: not value.__module__.startswith("vqkit.parts."))


def _refused_pairs() -> Iterator[tuple[str, str, str]]:
    """Every pair of public parts that is refused, among partners that suit both as far as they can."""
    books = [cls(16, 4) for cls in _classes(Codebook)]
    estimators, losses, policies = ([cls() for cls in _classes(base)] for base in (Estimator, Loss, Maintenance))
    searches = [cls() for cls in _classes(Search)]
    for book, estimator in itertools.product(books, estimators):
        yield from _conflict(book, estimator, book, _search_for(estimator, searches), estimator, _trainer(book), [])
    for book, loss in itertools.product(books, losses):
        rest = [other for other in _trainer(book) if other.name != loss.name]
        yield from _conflict(loss, book, book, Search(), vqkit.StraightThrough(), [loss, *rest], [])
    for book, policy in itertools.product(books, policies):
        yield from _conflict(policy, book, book, Search(), vqkit.StraightThrough(), _trainer(book), [policy])
    plain = vqkit.Codebook(16, 4)
    for search, estimator in itertools.product(searches, estimators):
        yield from _conflict(estimator, search, plain, search, estimator, _trainer(plain), [])
    for estimator, loss in itertools.product(estimators, losses):
        rest = [other for other in _trainer(plain) if other.name != loss.name]
        search = _search_for(estimator, searches)
        yield from _conflict(loss, estimator, plain, search, estimator, [loss, *rest], [])


def _trainer(book: Codebook) -> list[Loss]:
    return [vqkit.CodebookLoss()] if book.trained_by == "gradient" else []


def _search_for(estimator: Estimator, searches: list[Search]) -> Search:
    if estimator.needs_sampled_choice:
        return next(search for search in searches if search.uses_noise)
    return Search(estimator.required_metric or "euclidean")


def _conflict(first: Any, second: Any, *parts: Any) -> Iterator[tuple[str, str, str]]:
    """(A, B, message) for each conflict that names both before it tells how to mend it."""
    names = type(first).__name__, type(second).__name__
    try:
        check_compatible(*parts)
    except IncompatibleParts as refusal:
        for conflict in refusal.conflicts:
            if all(re.search(rf"\b{name}\b", conflict.partition(": ")[0]) for name in names):
                yield *names, conflict
