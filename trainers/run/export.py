"""`python -m trainers export`: the tokenizer in a checkpoint, as a folder for `Tokenizer.from_pretrained`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, get_loader

import vqkit
from trainers.core.checkpoints import (
    Progress,
    read_checkpoint,
    save_tokenizer,
    saved_tokenizer,
    source_of,
    tokenizer_state,
)
from trainers.run.folders import CONFIG, RUNS, find_checkpoint, find_run, folder_of, identity
from vqkit import Tokenizer
from vqkit.saving.config import weights_follow
from vqkit.saving.files import named
from vqkit.saving.migration import to_current_version
from vqkit.saving.pretrained import check_replaceable


def export(arguments: Sequence[str]) -> list[str]:
    """Run the command.

    Args:
        arguments: its words, without `export`.

    Returns:
        Lines for a person: what was written, and how to load it.

    Raises:
        FileNotFoundError: there is no such run folder or checkpoint.
        ValueError: the checkpoint is damaged, or the target holds something else.
    """
    parser = argparse.ArgumentParser(prog="python -m trainers export", description="Write a checkpoint's tokenizer.")
    parser.add_argument("run", type=Path, help="run folder, such as runs/mine, or its name in runs")
    parser.add_argument("--checkpoint", default="last", help="best, last or a file (default: %(default)s)")
    parser.add_argument("--to", type=Path, required=True, help="folder to write; a tokenizer that is there is replaced")
    asked = parser.parse_args(arguments)
    run = find_run(asked.run)
    if not run.is_dir():
        raise FileNotFoundError(
            f"run={str(run)!r} is not a folder: expected a run folder, such as runs/mine, or its name in {RUNS}"
        )
    return export_tokenizer(find_checkpoint(run, asked.checkpoint, argument="checkpoint"), run, asked.to)


def export_tokenizer(checkpoint: Path, run: Path, folder: Path) -> list[str]:
    """Write the tokenizer of a checkpoint; neither the data nor the first codebook's file is needed.

    Args:
        checkpoint: of any run.
        run: folder, whose `config.yaml` may name classes of one's own, and describes the tokenizer of a checkpoint
            before version 0.2.
        folder: where to: empty, missing, or a tokenizer's.

    Returns:
        Lines for a person: what was written, and how to load it.

    Raises:
        ValueError: the checkpoint is damaged or does not fit the configuration, or the folder holds something else.
    """
    check_replaceable(folder)
    config = _tokenizer_config((folder_of(checkpoint) or run) / CONFIG)
    content = read_checkpoint(checkpoint)
    with named(checkpoint):
        progress = Progress.of(content)
        if content.get("tokenizer") is None and config is not None:
            tokenizer = _built(to_current_version(config, 3))
            tokenizer.load_state_dict(tokenizer_state(content))
        else:
            tokenizer = saved_tokenizer(content, allow=("vqkit", *_modules(config)))
    run_id = progress.run or identity(folder_of(checkpoint) or run)
    save_tokenizer(tokenizer, folder, source_of(checkpoint, progress.step, run_id))
    name = type(tokenizer).__name__
    home = "vqkit" if hasattr(vqkit, name) else type(tokenizer).__module__
    return [
        f"{folder}: {checkpoint}, step {progress.step} of run {run_id}",
        f"from {home} import {name}; tokenizer = {name}.from_pretrained({str(folder)!r})",
    ]


def _tokenizer_config(path: Path) -> Any:
    """The tokenizer in the configuration of a run; None where there is none."""
    if not path.is_file():
        return None
    with named(path):
        return get_loader("yaml")(path.read_text())["model"]["init_args"]["tokenizer"]


def _built(config: Any) -> Tokenizer:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Tokenizer, "tokenizer")
    with weights_follow():
        built = parser.instantiate_classes(parser.parse_object({"tokenizer": config})).tokenizer
    assert isinstance(built, Tokenizer)
    return built


def _modules(config: Any) -> Iterator[str]:
    """The modules of classes that a configuration of one's own names."""
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"].rpartition(".")[0]
        config = list(config.values())
    for item in config if isinstance(config, list) else ():
        yield from _modules(item)
