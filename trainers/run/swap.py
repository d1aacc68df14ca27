"""`--quantizer WORD`: each quantizer of a configuration replaced in place, with its dim, number of codes and layout."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from trainers.run.explain import resolve, suggest
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    CenteredFSQ,
    Quantizer,
    ReinMax,
    ResidualQuantizer,
    RotationTrick,
)
from vqkit.methods import METHODS
from vqkit.parts.estimators import Estimator
from vqkit.quantizers.binary import BinaryQuantizer
from vqkit.quantizers.composite import CompositeQuantizer


class Word(NamedTuple):
    """What a word puts in the place of a quantizer.

    Attributes:
        quantizer: a `Quantizer`, or a grid, which stores no codebook.
        method: of a `Quantizer`.
        estimator: in place of the method's.
    """

    quantizer: type[BaseQuantizer] = Quantizer
    method: str = ""
    estimator: type[Estimator] | None = None


WORDS: dict[str, Word] = {
    **{method: Word(method=method) for method in METHODS},
    "rotation": Word(method="ema", estimator=RotationTrick),
    "reinmax": Word(method="gumbel", estimator=ReinMax),
    "fsq": Word(FSQ),
    "fsq_centered": Word(CenteredFSQ),
    "lfq": Word(LFQ),
    "bsq": Word(BSQ),
}
"""What `--quantizer` can be: the methods, two of them with another estimator, and the grids."""
PARTS = ("codebook_dim", "normalize", "codebook", "search", "estimator", "losses", "maintenance")
"""Arguments of a `Quantizer` that a swap drops, since they belong to the method."""


def swapped(config: Any, word: str) -> tuple[Any, list[str]]:
    """A configuration with other quantizers.

    A quantizer that is what the word says already is left as it is, so that swapping again changes nothing.

    Args:
        config: mappings with `class_path` and `init_args`, lists and values, in any nesting; left as it is.
        word: a key of `WORDS`.

    Returns:
        The configuration, and a line for each kind of swap that was made.

    Raises:
        ValueError: no such word; or there is no quantizer, or one of a class of which nothing is known.
    """
    if word not in WORDS:
        raise ValueError(f"quantizer={word!r}: expected one of {', '.join(WORDS)}{suggest(word, WORDS)}")
    swap = _Swap(word)
    made = swap.inside(config)
    if not swap.lines:
        raise ValueError(f"quantizer={word!r}: there is no vector quantizer in this configuration")
    return made, list(filter(None, dict.fromkeys(swap.lines)))


def nearest_levels(codes: int) -> list[int]:
    """Levels of an FSQ with about so many codes, each 5 to 8 as the paper advises (Mentzer et al. 2023, sec. 4.1)."""
    dims = range(1, 2 + int(math.log(codes, 5)))
    choices = (levels for count in dims for levels in itertools.combinations_with_replacement((8, 7, 6, 5), count))
    return list(min(choices, key=lambda levels: abs(math.log(math.prod(levels) / codes))))


class _Swap:
    """Walks through a configuration.

    Attributes:
        lines: what was done with each quantizer; empty for one that was left as it is.
    """

    def __init__(self, word: str) -> None:
        self.word, self.to = word, WORDS[word]
        self.over_the_sum = over_the_sum(self.to)
        self.lines: list[str] = []

    def inside(self, node: Any, *, staged: bool = False) -> Any:
        """The same value with other quantizers in it.

        Args:
            node: a value.
            staged: whether it stands in a residual quantizer.
        """
        if isinstance(node, list):
            return [self.inside(item, staged=staged) for item in node]
        if not isinstance(node, Mapping):
            return node
        found = _class_of(node)
        if found is None or not issubclass(found, BaseQuantizer):
            return {key: self.inside(value, staged=staged) for key, value in node.items()}
        if issubclass(found, CompositeQuantizer):
            return {**node, "init_args": self.composite(found, node["init_args"], staged)}
        if found not in {word.quantizer for word in WORDS.values()}:
            raise ValueError(
                f"quantizer={self.word!r} cannot take the place of {node['class_path']}, whose sizes are not known: "
                "write the new class into the configuration"
            )
        return self.quantizer(node, found, node["init_args"], staged)

    def composite(self, found: type[CompositeQuantizer], arguments: Mapping[str, Any], staged: bool) -> dict[str, Any]:
        """The arguments of a composite with other members."""
        residual, name = issubclass(found, ResidualQuantizer), found.member_name
        made = {**arguments, name: self.inside(arguments[name], staged=staged or residual)}
        if residual and _class_of(arguments["estimator"]) is not self.over_the_sum:
            made["estimator"] = _path(self.over_the_sum)
            self.lines.append(f"{self.word}: residual stages with {made['estimator'] or 'an estimator each'}")
        return made

    def quantizer(self, node: Any, found: type, arguments: Mapping[str, Any], staged: bool) -> Any:
        """The quantizer that takes the place of `node`."""
        estimator = None if staged and self.over_the_sum else self.to.estimator
        method = (self.to.method, estimator) if self.to.quantizer is Quantizer else ("", None)
        if found is self.to.quantizer and method == (
            arguments.get("method", ""),
            _class_of(arguments.get("estimator")),
        ):
            self.lines.append("")
            return node
        codes, dim = _codes_and_dim(arguments)
        old, given = found.__name__, set()
        if found is Quantizer:
            old, given = arguments["method"], {name for name in PARTS if arguments[name] not in (None, False)}
        size = {"method": self.to.method, "estimator": _path(estimator), "codebook_size": codes}
        said = ""
        if issubclass(self.to.quantizer, FSQ):
            levels = nearest_levels(codes)
            size, said = {"levels": levels}, f"levels {levels}, {math.prod(levels)} codes for {codes}, "
        elif issubclass(self.to.quantizer, BinaryQuantizer):
            bits = max(1, round(math.log2(codes)))
            size, said = {"bits": bits}, f"{bits} bits, {2**bits} codes for {codes}, "
        without = f", without its {' and '.join(sorted(given))}" if given else ""
        self.lines.append(f"{self.word}: {said}in place of {old}{without}")
        layout = {"dim": dim, "channel_dim": arguments["channel_dim"]}
        return {"class_path": _path(self.to.quantizer), "init_args": {**size, **layout}}


def over_the_sum(word: Word) -> type[Estimator] | None:
    """The estimator of residual stages together; None where it would cut something off (`check_stages`)."""
    if word.quantizer is not Quantizer:
        return None  # a grid has maps in and out
    parts = METHODS[word.method]()
    own = word.estimator or type(parts.estimator)
    if own.stays_close_to_code and (parts.codebook_dim is not None or own.trains_codebook):
        return None
    return own


def _codes_and_dim(arguments: Mapping[str, Any]) -> tuple[int, int]:
    if "levels" in arguments:
        return math.prod(arguments["levels"]), arguments["dim"] or len(arguments["levels"])
    if "bits" in arguments:
        return 2 ** arguments["bits"], arguments["dim"] or arguments["bits"]
    return arguments["codebook_size"], arguments["dim"]


def _path(found: type | None) -> str | None:
    return found and f"vqkit.{found.__name__}"


def _class_of(node: Any) -> Any:
    path = node.get("class_path") if isinstance(node, Mapping) else node
    return resolve(path) if isinstance(path, str) else None
