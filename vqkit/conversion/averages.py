"""Averages of weights that SEED-Voken, and what grew out of it, publish beside the weights of the last step."""

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from vqkit.conversion.source import Source

AVERAGES = "model_ema."
AVERAGES_OF_LOSS = f"{AVERAGES}loss"
COUNTERS = (f"{AVERAGES}decay", f"{AVERAGES}num_updates")


def averaged(source: Source, *, unused: tuple[str, ...], frozen: Collection[str] = ()) -> Source:
    """The source with the averages in place of the weights, under names with dots.

    Averages are published under the names of the weights without their dots, so the weights of the last step say where
    these were. A file without averages is returned as it is.

    Args:
        source: of the training.
        unused: starts of the names of entries that a tokenizer does not need.
        frozen: entries that were not trained, of which there is no average.

    Raises:
        ValueError: there are averages, and not of all weights, or of others.
    """
    averages = {name for name in source.state if name.startswith(AVERAGES)} - {*COUNTERS}
    if not averages:
        return source
    state: dict[str, Tensor] = {}
    for name in source.state:
        if name.startswith((AVERAGES, *unused)):
            continue
        average = AVERAGES + name.replace(".", "")
        if name in frozen and average not in averages:
            average = name
        elif average not in averages:
            raise ValueError(f"entry {average!r} is missing: expected the average of {name!r}")
        state[name] = source.state[average]
        averages.discard(average)
    others = sorted(name for name in averages if not name.startswith(AVERAGES_OF_LOSS))
    if others:
        raise ValueError(f"entry {others[0]!r} is unexpected: there is no entry that it is the average of")
    return replace(source, state=state)
