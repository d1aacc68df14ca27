"""Converted weights beside their download: what `from_pretrained` opens for a name of published weights."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from vqkit.conversion.converting import save_fetched
from vqkit.conversion.published import Fetched, find
from vqkit.saving.pretrained import LOCATORS, WEIGHTS_NAME
from vqkit.version import __version__

FOLDER = "vqkit"
"""Of converted weights, in that of their repository: the hub's client deletes both together."""


def converted(name: str, revision: str | None = None) -> Path | None:
    """The folder of published weights as a tokenizer; they are fetched and converted where it is not there yet.

    The folder appears whole or not at all. Of two processes that convert at once, the later one takes
    the other's.

    Args:
        name: of the table; see `vqkit.conversion.published.find`.
        revision: branch, tag or commit; None means the default branch.

    Returns:
        None where it is no name of published weights.

    Raises:
        FileNotFoundError: the hub cannot be reached, and the weights are not in its cache.
        ValueError: the weights are refused, or their license has to be accepted: `convert` them into a folder then; or
            a file of this name is there, which is a path and no name.
        ImportError: huggingface_hub is not installed.
    """
    weights = find(name)
    if weights is None:
        return None
    if Path(name).is_file():
        raise ValueError(f"{name} is a file in {Path.cwd()}: convert it (vqkit.convert), and give the folder")
    fetched = weights.fetch(revision=revision)
    folder = fetched.home / FOLDER / key(fetched)
    if not is_whole(folder):
        folder.parent.mkdir(exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=folder.parent) as temporary:
            save_fetched(fetched, Path(temporary) / folder.name)
            try:
                os.rename(Path(temporary) / folder.name, folder)
            except OSError:
                if not is_whole(folder):  # of another process
                    raise
    return folder


def key(fetched: Fetched) -> str:
    """Name of a folder for what follows from the weights: commit, file, family and version of this library.

    A mended family converts anew.
    """
    file = fetched.weights.path.replace("/", "--")
    return f"{fetched.commit}-{file}-{type(fetched.weights.family).__name__}-{__version__}"


def is_whole(folder: Path) -> bool:
    """Whether a folder, which is moved into its place with all that it holds, is there."""
    return (folder / WEIGHTS_NAME).is_file()


LOCATORS.append(converted)
