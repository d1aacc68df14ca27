"""Tables of the documents that are read from the code: methods, parts, refusals, and faults with their tests."""

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Iterable, Iterator
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
    """One row for each word that `Quantizer` knows: idea, equation, parts and source, from its file."""
    lines = ["| method | idea | what it computes | parts | source |", "|---|---|---|---|---|"]
    for name, method in METHODS.items():
        module = inspect.getdoc(sys.modules[method.__module__]) or ""
        idea = _first_paragraph(module).partition(": ")
        parts = method()
        search = f"`{parts.search.metric}`" if type(parts.search) is Search else _call(parts.search)
        chosen = [_factory(parts.codebook), search, _call(parts.estimator)]
        chosen += map(_call, (*parts.losses, *parts.maintenance))
        if parts.codebook_dim is not None:
            chosen.append(f"`codebook_dim={parts.codebook_dim}`")
        cells = [f"`{name}`", idea[2] or idea[0], _first_paragraph(inspect.getdoc(method) or ""), ", ".join(chosen)]
        lines.append(f"| {' | '.join([*cells, _source(module)])} |")
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
    # What follows the reference is for readers of the code.
    return _cell(re.split(r"(?<=\))\.\s", found[1])[0]) if found else "-"


def _cell(text: str) -> str:
    return " ".join(text.split()).rstrip(".").replace("|", "\\|")


def _factory(factory: Any) -> str:
    return f"`{getattr(factory, '__name__', factory)}`"


def _call(part: Any) -> str:
    weight = getattr(part, "weight", None)
    return f"`{type(part).__name__}{'' if weight is None else f'({weight:g})'}`"


def incompatible_parts() -> str:
    """Which pairs of parts are refused, grouped by the reason, with the message of the first pair."""
    groups: dict[str, list[tuple[str, str]]] = {}
    messages: dict[str, str] = {}
    for first, second, message in _refused_pairs():
        reason = message.replace(first, "A").replace(second, "B")
        groups.setdefault(reason, []).append((first, second))
        messages.setdefault(reason, message)
    lines = ["| these | with these | message, for the first pair |", "|---|---|---|"]
    for reason, pairs in groups.items():
        for ours, theirs in _rectangles(pairs):
            lines.append(f"| {_names(ours)} | {_names(theirs)} | {messages[reason]} |")
    return "\n".join(lines)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _rectangles(pairs: list[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Pairs as sets of firsts that have the same seconds."""
    seconds = {first: tuple(b for a, b in pairs if a == first) for first, _ in pairs}
    for theirs, ours in itertools.groupby(sorted(seconds, key=seconds.__getitem__), key=seconds.__getitem__):
        yield list(ours), list(theirs)


def _classes(base: type) -> list[type]:
    """The public classes of a kind of part that can be built without a file."""
    return [
        value
        for value in vars(vqkit).values()
        if inspect.isclass(value) and issubclass(value, base) and value not in (Estimator, Loss, Maintenance)
    ]


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
    suits = (s for s in searches if s.metric == estimator.metric and s.samples >= estimator.of_samples)
    return next(suits, Search(estimator.metric or "euclidean"))


def _conflict(first: Any, second: Any, *parts: Any) -> Iterator[tuple[str, str, str]]:
    """(A, B, message) for each conflict that names both."""
    names = type(first).__name__, type(second).__name__
    try:
        check_compatible(*parts)
    except IncompatibleParts as refusal:
        for conflict in refusal.conflicts:
            if all(re.search(rf"\b{name}\b", conflict) for name in names):
                yield *names, conflict
