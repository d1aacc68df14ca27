"""`--quantizer WORD`: each quantizer of a configuration replaced in place, with its dim, number of codes and layout.

The words of composites are those of `arrangements.py`.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from trainers.run.arrangements import ARRANGEMENTS, arranged, class_of
from trainers.run.explain import suggest
from vqkit import (
    BSQ,
    FSQ,
    LFQ,
    BaseQuantizer,
    CenteredFSQ,
    MSBFirstLFQ,
    MultiRateQuantizer,
    MultiScaleQuantizer,
    Quantizer,
    ReinMax,
    ResidualQuantizer,
    RotationTrick,
    TextbookBSQ,
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
    method: str | None = None
    estimator: type[Estimator] | None = None

    @property
    def over_the_sum(self) -> type[Estimator] | None:
        """The estimator of residual stages together; None where it would cut something off (`check_stages`)."""
        if self.method is None:
            return None  # a grid has maps in and out
        parts = METHODS[self.method]()
        own = self.estimator or type(parts.estimator)
        return None if parts.codebook_dim is not None or own.required_metric is not None else own


WORDS: dict[str, Word] = {
    **{method: Word(method=method) for method in METHODS},
    "rotation": Word(method="ema", estimator=RotationTrick),
    "reinmax": Word(method="gumbel", estimator=ReinMax),
    "fsq": Word(FSQ),
    "fsq_centered": Word(CenteredFSQ),
    "lfq": Word(LFQ),
    "lfq_msb_first": Word(MSBFirstLFQ),
    "bsq": Word(BSQ),
    "bsq_textbook": Word(TextbookBSQ),
}
"""What `--quantizer` can be: the methods, two of them with another estimator, and the grids."""

LARGEST_CODEBOOK = 2**24
"""Codes that a swap gives a stored codebook."""

PARTS = ("codebook_dim", "normalize", "codebook", "search", "estimator", "losses", "maintenance")
"""Arguments of a `Quantizer` that a swap drops, since they belong to the method."""


def swapped(config: Any, word: str) -> tuple[Any, list[str]]:
    """A configuration with other quantizers.

    A quantizer that is what the word says already is left as it is, so that swapping again changes nothing.

    Args:
        config: mappings with `class_path` and all `init_args`, lists and values, in any nesting; left as it is.
        word: a key of `WORDS`, or one of `ARRANGEMENTS`, which takes the place of the whole quantizer.

    Returns:
        The configuration, and a line for each kind of swap that was made.

    Raises:
        ValueError: no such word; or there is no quantizer, or one of a class of which nothing is known.
    """
    if word not in WORDS:
        if word in ARRANGEMENTS:
            return arranged(config, word)
        known = [*WORDS, *ARRANGEMENTS]
        raise ValueError(f"quantizer={word!r}: expected one of {', '.join(dict.fromkeys(known))}{suggest(word, known)}")
    changes: list[str] = []
    made = _inside(config, WORDS[word], changes, staged=False)
    if not changes:
        raise ValueError(f"quantizer={word!r}: there is no vector quantizer in this configuration")
    return made, [f"{word}: {change}" for change in dict.fromkeys(changes) if change]


def nearest_levels(codes: int) -> list[int]:
    """Levels of an FSQ with about so many codes, each 5 to 8 as the paper advises (Mentzer et al. 2023, sec. 4.1)."""
    dims = range(1, 2 + int(math.log(codes, 5)))
    choices = (levels for count in dims for levels in itertools.combinations_with_replacement((8, 7, 6, 5), count))
    return list(min(choices, key=lambda levels: abs(math.log(math.prod(levels) / codes))))


def _inside(node: Any, word: Word, changes: list[str], *, staged: bool) -> Any:
    """A value with other quantizers in it; `staged` says that it stands in a chain that may have one estimator."""
    if isinstance(node, list):
        return [_inside(item, word, changes, staged=staged) for item in node]
    if not isinstance(node, Mapping):
        return node
    found = class_of(node)
    if found is None or not issubclass(found, BaseQuantizer):
        return {key: _inside(value, word, changes, staged=staged) for key, value in node.items()}
    arguments = dict(node["init_args"])
    if issubclass(found, CompositeQuantizer):
        chains = ResidualQuantizer, MultiRateQuantizer, MultiScaleQuantizer
        residual, name = issubclass(found, chains), found.member_name
        arguments[name] = _inside(arguments[name], word, changes, staged=staged or residual)
        if residual and class_of(arguments["estimator"]) is not word.over_the_sum:
            arguments["estimator"] = _path(word.over_the_sum)
            changes.append(f"residual stages with {arguments['estimator'] or 'an estimator each'}")
        unfit = {"level_sizes": not word.method, "flips": not issubclass(word.quantizer, BinaryQuantizer)}
        for argument in [argument for argument, drop in unfit.items() if drop and arguments.get(argument)]:
            arguments[argument] = None
            changes.append(f"scales without {argument}")
        return {**node, "init_args": arguments}
    estimator = None if staged and word.over_the_sum else word.estimator
    now = (found, arguments.get("method"), class_of(arguments.get("estimator")))
    if now == (word.quantizer, word.method, estimator):
        changes.append("")
        return node
    codes, dim = _codes_and_dim(found, node)
    size: dict[str, Any]
    if word.method and codes > LARGEST_CODEBOOK:
        raise ValueError(
            f"{_path(found)} has {codes} codes: a stored codebook of more than {LARGEST_CODEBOOK} does not fit the "
            "memory; write the new quantizer with its codebook_size into the configuration"
        )
    if word.method:
        size, said = {"method": word.method, "estimator": _path(estimator), "codebook_size": codes}, ""
    elif issubclass(word.quantizer, FSQ):
        levels = nearest_levels(codes)
        size, said = {"levels": levels}, f"levels {levels}, {math.prod(levels)} codes for {codes}, "
    else:
        bits = max(1, round(math.log2(codes)))
        size, said = {"bits": bits}, f"{bits} bits, {2**bits} codes for {codes}, "
    dropped = [name for name in PARTS if arguments.get(name) not in (None, False)] if found is Quantizer else []
    without = f", without its {' and '.join(dropped)}" if dropped else ""
    changes.append(f"{said}in place of {arguments.get('method', found.__name__)}{without}")
    layout = {"dim": dim, "channel_dim": arguments["channel_dim"]}
    return {"class_path": _path(word.quantizer), "init_args": {**size, **layout}}


def _codes_and_dim(found: type, node: Mapping[str, Any]) -> tuple[int, int]:
    arguments = node["init_args"]
    if found is Quantizer:
        return arguments["codebook_size"], arguments["dim"]
    if found in (FSQ, CenteredFSQ):
        return math.prod(arguments["levels"]), arguments["dim"] or len(arguments["levels"])
    if found in (LFQ, MSBFirstLFQ, BSQ, TextbookBSQ):
        return 2 ** arguments["bits"], arguments["dim"] or arguments["bits"]
    raise ValueError(
        f"{node['class_path']}: its number of codes is not known, so that --quantizer cannot take its place; write "
        "the new class into the configuration"
    )


def _path(found: type | None) -> str | None:
    return f"vqkit.{found.__name__}" if found else None
