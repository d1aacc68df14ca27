"""`base: FILE` in a configuration file: what the file does not say is as in the other one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import get_loader, set_loader
from yaml import YAMLError

MODE = "yaml_with_base"
"""The name by which the parsers of the command line are told to read files so."""


def read_config(path: Path) -> dict[str, Any]:
    """The content of a configuration file, laid over that of its base.

    Mappings are merged key by key; a list, a value, or the arguments of another `class_path` replace those of the base.
    In a file with a base, a key with dots stands for the mappings that it names, but for the names of `schedules`.

    Args:
        path: of a YAML file.

    Raises:
        OSError: the file or its base cannot be read.
    """
    return _with_base(get_loader("yaml")(path.read_text()), path.parent)


def _with_base(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    if "base" not in content:
        return content
    own = dict(content)
    return _merged(read_config(folder / own.pop("base")), own)


def _merged(base: Any, own: Any, *, dotted: bool = True) -> Any:
    if not isinstance(base, Mapping) or not isinstance(own, Mapping):
        return own
    if own.get("class_path", base.get("class_path")) != base.get("class_path"):
        return own
    merged = dict(base)
    for keys, value in own.items():
        key, _, inner = keys.partition(".") if dotted else (keys, "", "")
        value = {inner: value} if inner else value
        merged[key] = _merged(merged.get(key, {}), value, dotted=key != "schedules")
    return merged


def _load(text: str, path: str = "") -> Any:
    """A file, which jsonargparse reads in its own folder, or a value, which has no path."""
    content = get_loader("yaml")(text)
    try:
        return _with_base(content, Path()) if path and isinstance(content, dict) else content
    except OSError as error:
        raise YAMLError(f"its base cannot be read: {error}") from error


set_loader(MODE, _load, exceptions=(YAMLError,))
