"""Tables of the documents that are read from the code and a benchmark: methods, parts, refusals, regressions, steps."""

import ast
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pages import captioned, table_lines, wrapped

import vqkit
from vqkit import Codebook, Estimator, IncompatibleParts, Loss, Maintenance, Search
from vqkit.methods import METHODS
from vqkit.parts.compatibility import check_compatible

ROOT = Path(__file__).resolve().parent.parent
REGRESSIONS = ROOT / "tests/regressions"
STEPS = ROOT / "benchmarks/results/quantizer_step.md"
SHOWN_STEPS = [("ema", 1024), ("ema", 16384), ("simvq", 16384), ("residual", 1024), ("fsq", 1024)]
"""Which rows of the benchmark README shows: (method, K)."""
KINDS = {"codebooks": Codebook, "searches": Search, "estimators": Estimator, "losses": Loss, "maintenance": Maintenance}
SECTIONS_OF_RECIPES = ("Source", "Published", "Differs")
SECTIONS = re.compile(r"(?P<fault>.+?)\s*Seen in: (?P<seen>.+?)\s*Avoided since (?P<version>[\d.]+): ", re.DOTALL)


def regressions() -> str:
    """One row for each test of tests/regressions, from its docstring."""
    rows = []
    for path in sorted(REGRESSIONS.glob("test_*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
        found = SECTIONS.match(docstring)
        if found is None:
            raise ValueError(f"{path}: its docstring has to name the fault, 'Seen in:' and 'Avoided since VERSION:'")
        fault, seen = (_cell(found[name]) for name in ("fault", "seen"))
        title = path.stem.removeprefix("test_").replace("_", " ")
        rows.append([fault, _issues(seen), f"[{title}](../{path.relative_to(ROOT)})"])
    return "\n".join(table_lines(["what is tested", "where it was seen", "test"], rows, words=range(3)))


def method_papers() -> str:
    """One row for each method, grid and composite: idea and paper, with a link."""
    rows = []
    for name, method in METHODS.items():
        module = inspect.getdoc(sys.modules[method.__module__]) or ""
        rows.append([f"`{name}`", _capital(_ideas(method, module)[0]), _source(module)])
    splits = (vqkit.SplitQuantizer, vqkit.FeatureSplitQuantizer)
    chains = (vqkit.ResidualQuantizer, vqkit.MultiScaleQuantizer, vqkit.MultiRateQuantizer)
    composites = (*chains, vqkit.GroupedQuantizer, *splits, vqkit.MixtureQuantizer, vqkit.PrefixQuantizer)
    for cls in (vqkit.FSQ, vqkit.LFQ, vqkit.BSQ, *composites):
        docstring = inspect.getdoc(cls) or ""
        rows.append([f"`{cls.__name__}`", _first_paragraph(docstring), _source(docstring)])
    return "\n".join(table_lines(["", "idea", "paper"], rows, words=range(3)))


def methods() -> str:
    """One item for each word that `Quantizer` knows: idea, source, equation and parts."""
    items = []
    for name, method in METHODS.items():
        module = inspect.getdoc(sys.modules[method.__module__]) or ""
        parts = method()
        search = f"`{parts.search.metric}`" if not parts.search.uses_noise else _call(parts.search)
        chosen = [_factory(parts.codebook), search, _call(parts.estimator)]
        chosen += map(_call, (*parts.losses, *parts.maintenance))
        if parts.codebook_dim is not None:
            chosen.append(f"`codebook_dim={parts.codebook_dim}`")
        items.append(f"- **`{name}`**: {' '.join(map(_sentence, _ideas(method, module)))}")
        items += [f"  Parts: {', '.join(chosen)}.", f"  Source: {_source(module)}."]
    return wrapped(items)


def parts() -> str:
    """One item for each public part that can be put into a `Quantizer`, from its docstring, by kind."""
    items = []
    for kind, base in KINDS.items():
        items += ["", f"**{kind.capitalize()}**", ""]
        for cls in public_classes(base):
            docstring = inspect.getdoc(cls) or ""
            items.append(f"- `{cls.__name__}`: {_sentence(_first_paragraph(docstring))}")
            if (source := _source(docstring)) != "-":
                items.append(f"  Source: {source}.")
    return wrapped(items[1:])


def training_steps() -> str:
    """Time and memory of a training step beside vector-quantize-pytorch, from the benchmark's report."""
    report = STEPS.read_text()
    measured: dict[tuple[str, int], list[str]] = {}
    for section in re.finditer(
        r"^## N = (\d+), K = (\d+), D = (\d+)\n(.+?)(?=^## |\Z)", report, re.DOTALL | re.MULTILINE
    ):
        rows, codes, dim = map(int, section.groups()[:3])
        for row in re.findall(r"^\| (\w+ \| [\d.].+) \|$", section[4], re.MULTILINE):
            method, ours, theirs, _, our_memory, their_memory, *_ = row.split(" | ")
            title = f"`{method}`, {rows:,} vectors, K = {codes:,}, D = {dim}"
            cells = [title, f"{ours} ms", f"{theirs} ms", f"{our_memory} MiB", f"{their_memory} MiB"]
            measured.setdefault((method, codes), cells)
    heads = ["training step", "vqkit", "VQP", "peak memory of vqkit", "of VQP"]
    facts = dict(re.findall(r"^- (\w+): (.+)$", report, re.MULTILINE))
    caption = f"{facts['command']} on {facts['machine'].partition(', load')[0]}; {facts['versions']}."
    return captioned(table_lines(heads, [measured[step] for step in SHOWN_STEPS]), caption)


def recipes() -> str:
    """One row for each recipe of a published tokenizer of pictures, then what differs in ours, an item each."""
    import recipes as configurations  # it needs the trainers, the other tables do not

    def bits(recipe: Any) -> str:
        side = recipe.config["data"]["init_args"]["resolution"]
        return f"{recipe.bits():,.0f} ({recipe.bits() / side**2:.3f} per pixel)"

    return _recipes(configurations.recipes(), "image", "bits of an image", bits)


def recipe_steps() -> str:
    """What memory one step of each recipe of pictures took."""
    import recipes as configurations

    rows = []
    machines = set()
    for name, recipe in configurations.recipes().items():
        if step := recipe.taken():
            machines.add(step["machine"])
        peak = f"{step['peak_mib'] / 1024:.1f}" if step else "not taken"
        rows.append([f"`{name}`", peak, f"{recipe.state_bytes() / 2**30:.1f}"])
    caption = (
        "Middle: the most memory that the process of one step at full size took, start of the quantizer included, with "
        f"one image in 32 bits and all discriminators; {' and '.join(sorted(machines))}; "
        "`python scripts/recipes.py --step NAME --record`. Not taken: none of the present configuration is recorded. "
        "Such a step keeps no averages. Right: by the counts of parameters, without networks that objectives look "
        "through; frozen parts have neither gradients nor moments."
    )
    heads = ["recipe", "GiB of a step", "GiB of weights, gradients, moments and averages"]
    return captioned(table_lines(heads, rows), caption)


def sound_recipes() -> str:
    """The same of published codecs."""
    import sound_recipes as configurations

    def rate(recipe: Any) -> str:
        return f"{recipe.bits() / 1000:.3g} ({recipe.tokenizer.frame_rate:.4g})"

    return _recipes(configurations.sound_recipes(), "audio", "kbit/s (frames a second)", rate)


def _recipes(found: dict[str, Any], folder: str, title: str, rate: Callable[[Any], str]) -> str:
    rows = []
    differences = []
    for name, recipe in found.items():
        link, numbers = f"[`{name}`](../configs/{folder}/{name}.yaml)", recipe.parameters()
        judges = numbers.pop("discriminators", 0)
        parts = " + ".join(f"{number / 1e6:.1f}" for number in numbers.values())
        size = f"{parts} = {sum(numbers.values()) / 1e6:.1f}" + f"; {judges / 1e6:.1f}" * bool(judges)
        source, published, differs = (_linked(_cell(recipe.head[section])) for section in SECTIONS_OF_RECIPES)
        rows.append([link, source, rate(recipe), size, published])
        differences.append(f"- {link}: {_sentence(differs)}")
    lines = table_lines(["recipe", "source", title, "parameters in millions", "published"], rows, words=(0, 1, 4))
    return captioned(lines, *differences)


def _first_paragraph(docstring: str) -> str:
    return _linked(_cell(docstring.partition("\n\n")[0]))


def _ideas(method: Any, module: str) -> list[str]:
    """The idea of a method, which its module states after the method's name if it has one, and what it computes."""
    return [
        *filter(None, [_first_paragraph(module).partition(": ")[2]]),
        _first_paragraph(inspect.getdoc(method) or ""),
    ]


def _source(docstring: str) -> str:
    found = re.search(r"^Source: (.+?)(?=\n\n|\n[A-Z][a-z]+: |\n[A-Z][a-z]+:$|\Z)", docstring, re.DOTALL | re.MULTILINE)
    # What follows the first reference is for readers of the code.
    return _linked(_cell(re.split(r"(?<=\))[.:]\s|;\s", found[1])[0])) if found else "-"


def _linked(text: str) -> str:
    """A reference whose papers are links."""
    text = re.sub(r"arXiv[: ](\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r" \(https://((?:doi|ieeexplore\.ieee)\.org/[\w./-]+)\)", r" ([\1](https://\1))", text)


def _issues(text: str) -> str:
    """The numbered issues of vector-quantize-pytorch as links."""
    return re.sub(r"\bVQP#(\d+)", r"[VQP#\1](https://github.com/lucidrains/vector-quantize-pytorch/issues/\1)", text)


def _cell(text: str) -> str:
    return " ".join(text.split()).rstrip(".").replace("|", "\\|")


def _sentence(text: str) -> str:
    """The text of a cell as a sentence outside of a table."""
    return _capital(text).replace("\\|", "|") + "."


def _capital(text: str) -> str:
    """Capitalized, unless it begins with a formula."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,]", text) else text


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
    return wrapped(items)


def _names(names: Iterable[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} or {last}" if most else last


def _rectangles(pairs: list[tuple[str, str]]) -> Iterator[tuple[list[str], list[str]]]:
    """Pairs as sets of firsts that have the same seconds."""
    seconds = {first: tuple(b for a, b in pairs if a == first) for first, _ in pairs}
    for theirs, ours in itertools.groupby(sorted(seconds, key=seconds.__getitem__), key=seconds.__getitem__):
        yield list(ours), list(theirs)


def public_classes(base: type) -> list[type]:
    """The public classes of a kind of part that can be built without a file, those of no single method first."""
    found = (value for value in vars(vqkit).values() if inspect.isclass(value) and issubclass(value, base))
    concrete = (value for value in found if not inspect.isabstract(value))
    return sorted(concrete, key=lambda value: not value.__module__.startswith("vqkit.parts."))


def _refused_pairs() -> Iterator[tuple[str, str, str]]:
    """Every pair of public parts that is refused, among partners that suit both as far as they can."""
    books = [cls(16, 4) for cls in public_classes(Codebook)]
    estimators, losses, policies = ([cls() for cls in public_classes(base)] for base in (Estimator, Loss, Maintenance))
    searches = [cls() for cls in public_classes(Search)]
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
