"""Parameters of the published models by part, each computed a second way: a module for each family of recipes.

A module has `COUNTS`: name of the recipe -> parts ("encoder", "quantizer", "decoder", where there is an adversary
"discriminators") and their numbers, from the published list of layers, never from what a recipe of ours gave. `STATED`,
where a source states the size of the whole tokenizer: name -> parameters in millions, as rounded there.
"""

import importlib
import pkgutil


def collected(name: str) -> dict:
    """What all modules say under a name."""
    found: dict = {}
    for module in pkgutil.iter_modules(__path__):
        content = getattr(importlib.import_module(f"{__name__}.{module.name}"), name, {})
        assert not found.keys() & content.keys(), f"two modules have the same recipe: {found.keys() & content.keys()}"
        found |= content
    return found
