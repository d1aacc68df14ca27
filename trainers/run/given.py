"""Configurations that leave the tokenizer to the weights: its parts are written into them."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from trainers.core.given import GivenTokenizer
from trainers.run.explain import resolve
from trainers.run.folders import find_checkpoint
from trainers.run.origin import Origin, saved_folder
from vqkit.saving.config import resolve_class


def with_given_tokenizer(command: str, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The model of a configuration with the tokenizer of its weights.

    Args:
        command: fit, validate, test or predict.
        asked: its whole configuration, parsed.

    Returns:
        None where the configuration names another tokenizer than `GivenTokenizer`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: there are none, they are damaged, do not say what their tokenizer is made of, or name classes of
            other packages.
    """
    model = asked["model"]
    place = model.get("init_args", {}).get("tokenizer") if isinstance(model, Mapping) else None
    path = place.get("class_path") if isinstance(place, Mapping) else place
    if not isinstance(path, str) or resolve(path) is not GivenTokenizer:
        return None
    described = Origin.of(_weights(command, asked)).description()
    return {**model, "init_args": {**model["init_args"], "tokenizer": as_arguments(described)}}


def _weights(command: str, asked: Mapping[str, Any]) -> str:
    checkpoint = asked["ckpt_path"]
    if command != TrainerFn.FITTING and checkpoint is not None and (saved := saved_folder(checkpoint)):
        return str(saved)
    if command != TrainerFn.FITTING or checkpoint is not None:
        return str(find_checkpoint(Path(asked["runs"]) / asked["name"], checkpoint or "last"))
    if asked["init_from"] is None:
        raise ValueError(
            "model.tokenizer is that of --init_from, which is not given: name a converted tokenizer (docs/weights.md), "
            "a run or a checkpoint"
        )
    return str(asked["init_from"])


def as_arguments(described: Any) -> Any:
    """What `to_config` wrote, as the parser of the command line takes it.

    Args:
        described: mappings, lists and values; a factory is a class with the arguments that it is given.

    Raises:
        ValueError: a class is none of vqkit's: whoever wrote the weights shall not have modules imported; or what it
            is given is no list or mapping.
    """
    if isinstance(described, list):
        return [as_arguments(item) for item in described]
    if not isinstance(described, Mapping):
        return described
    if "float" in described:
        return float(described["float"])
    arguments = {name: as_arguments(item) for name, item in described.items()}
    path = arguments.pop("factory", arguments.get("class_path"))
    if path is None:
        return arguments
    try:
        found = resolve_class(path)
    except ValueError as error:
        raise ValueError(f"{error} Or write the tokenizer into the configuration.") from error
    positional, named = arguments.get("args", []), arguments.get("init_args", {})
    if not isinstance(positional, list) or not isinstance(named, dict):
        raise ValueError(f"{path} has args={positional!r} and init_args={named!r}: expected a list and a mapping")
    names = list(inspect.signature(found.__init__).parameters)[1:]
    return {"class_path": path, "init_args": dict(zip(names, positional, strict=False)) | named}
