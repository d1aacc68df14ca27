"""Saving and loading of modules: safetensors for the weights, readable JSON for the construction. No pickle."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vqkit.saving.config import Configured, from_config, is_own, resolve_class, to_config, weights_follow
from vqkit.saving.files import named, read_json, write_together
from vqkit.saving.hub import import_hub, snapshot
from vqkit.saving.migration import to_current_version
from vqkit.saving.sizes import Bounded, check_entries, check_finite
from vqkit.sharding import gathered, is_sharded
from vqkit.version import __version__

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = "vqkit"
FORMAT_VERSION = 4
_SHOWN = 8
"""Most folders that a message lists, those with the most similar names."""
MARK = "saved_together"
"""Entry of both files, equal in what was saved together; files of others have none."""
PROVENANCE = "provenance"
MOST_ENTRIES = 2**14
"""In a weights file: torch takes time with the square of their number to load them."""

LOCATORS: list[Callable[[str, str | None], Path | None]] = []
"""Where to look for a name that is no directory before the hub: (name, revision) -> the folder of a saved module, or
None. `vqkit.conversion` has the names of published weights.
"""


class Pretrained(Configured):
    """Mixin for modules: `save_pretrained`, `from_pretrained` and `push_to_hub`.

    A saved module is a directory with `config.json` (format, version, class and constructor arguments) and
    `model.safetensors` (the whole `state_dict`). Derive as `class Model(Pretrained, nn.Module)`.

    Attributes:
        provenance: whose weights a model holds or started from, and their license, in words: saved with it. None where
            nobody said so.
    """

    provenance: dict[str, str] | None = None

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into a directory.

        Each file is written under a temporary name, and both are moved into place once they are on the disk. They carry
        the same mark: where a kill came between the two moves, `from_pretrained` refuses the pair. Under data
        parallelism call it on one rank, but after `fully_shard` on all: the first then writes.

        Args:
            directory: created if it is missing; a model that was saved there before is replaced.

        Raises:
            ValueError: if a constructor argument or an entry of the state cannot be written; nothing is written then.
            OSError: the system refuses to write; the model that was there before is as it was.
        """
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "vqkit_version": __version__, **to_config(self)}
        tensors = _writable_state(self)
        if self.provenance is not None:
            config[PROVENANCE] = _checked_provenance(self.provenance)
        config[MARK] = _mark(config, tensors)
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        sharded = isinstance(self, nn.Module) and is_sharded(self)
        try:
            if not (sharded and torch.distributed.get_rank()):
                weights = _weights_file(tensors, config[MARK])
                write_together({Path(directory) / CONFIG_NAME: text.encode(), Path(directory) / WEIGHTS_NAME: weights})
        finally:
            if sharded:
                torch.distributed.barrier()  # so that every rank finds the files

    @classmethod
    def from_pretrained(
        cls,
        directory_or_hub_id: str | os.PathLike[str],
        *,
        map_location: str | torch.device = "cpu",
        allow: Sequence[str] = ("vqkit",),
        revision: str | None = None,
    ) -> Self:
        """Build the module that `save_pretrained` wrote, with its weights, in eval mode.

        Call it on the class that you expect, or on a base class of it. Parts that were saved in another floating point
        type (after `.double()` or `.bfloat16()`) come back in that type. The files may come from a stranger
        (`docs/security.md`): classes of this library are built on the meta device first, and their shapes compared with
        those of the weights, before memory is taken.

        Args:
            directory_or_hub_id: a directory, a name of published weights (`docs/weights.md`), which are converted into
                the hub's cache, or a Hugging Face hub id `"user/name"` if neither this directory nor `user` exists, or
                a `revision` is given.
            map_location: the device that the module is moved to.
            allow: packages whose classes the configuration may name; add your own package for parts that you wrote.
            revision: branch, tag or commit on the hub; None means its default branch.

        Returns:
            The module; call `.train()` on it to go on training.

        Raises:
            FileNotFoundError: if the directory or one of its two files is missing, or the hub has no such model.
            ValueError: if the files are damaged, of an unknown format version, name classes that are not allowed,
                describe another class than this one, do not fit each other, or hold weights that are not finite.
            ImportError: if a hub id is given and huggingface_hub is not installed.
        """
        if not issubclass(cls, nn.Module):
            raise TypeError(f"{cls.__name__} is not a torch.nn.Module: call from_pretrained on a class of module.")
        folder = _locate(directory_or_hub_id, revision)
        config_path, weights_path = folder / CONFIG_NAME, folder / WEIGHTS_NAME
        config = _read_config(config_path)
        with named(config_path):
            found = resolve_class(config.get("class_path"), allow=allow)
            if not issubclass(found, cls):
                raise ValueError(
                    f"describes a {found.__name__}, which is no {cls.__name__}: call {found.__name__}.from_pretrained."
                )
            named_classes = [resolve_class(path, allow=allow) for path in _class_paths(config)]
        state = _read_weights(weights_path, config.get(MARK))
        with weights_follow():
            # Constructors of other packages may need values, which the meta device has not: those run once, and freely.
            if all(map(is_own, named_classes)):
                with named(config_path), torch.device("meta"), Bounded(state):
                    planned = from_config(config, allow=allow)
                with named(weights_path):
                    check_entries(state, planned)
            with named(config_path):
                module = from_config(config, allow=allow)
        with named(weights_path):
            if not _loads_by_itself(module):
                check_entries(state, module)
            check_finite(state, module)
            _match_dtypes(module, state)
            module.load_state_dict(state)
        if PROVENANCE in config:
            module.provenance = config[PROVENANCE]
        return module.to(map_location).eval()

    def push_to_hub(self, repo_id: str, *, private: bool = False, commit_message: str = "Add vqkit model") -> str:
        """Upload the module to the Hugging Face hub, under the account that is logged in there.

        Args:
            repo_id: `"user/name"`; the repository is created if it does not exist.
            private: whether a repository that is created is private.
            commit_message: message of the commit.

        Returns:
            The address of the commit.

        Raises:
            ImportError: if huggingface_hub is not installed.
        """
        hub = import_hub("push_to_hub")
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.create_repo(repo_id, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))


def check_replaceable(folder: Path) -> None:
    """Refuse a folder for a model that holds something else.

    Raises:
        ValueError: it is a file, or neither missing nor empty nor written by `save_pretrained`.
    """
    config = folder / CONFIG_NAME
    is_ours = config.is_file() and read_json(config).get("format") == FORMAT
    if folder.exists() and not is_ours and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} holds something else than a saved tokenizer: give a new folder")


def _writable_state(module: Any) -> dict[str, Tensor]:
    """The state as tensors that safetensors takes: contiguous, on the CPU, and without memory in common."""
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"state entry {key!r} is a {type(value).__name__}, and safetensors holds tensors only: let"
                " get_extra_state return a tensor."
            )
        state[key] = gathered(value.detach()).cpu().clone(memory_format=torch.contiguous_format)
    return state


def _mark(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """A digest of what is saved: the same model gives the same files."""
    digest = hashlib.sha256(json.dumps(config, allow_nan=False).encode())
    for name in sorted(tensors):
        digest.update(save({name: tensors[name]}))
    return digest.hexdigest()[:16]


def _weights_file(tensors: dict[str, Tensor], mark: str) -> bytes:
    """A weights file whose bytes follow from its content: safetensors writes its metadata in any order."""
    content = save(tensors, metadata={"format": "pt", MARK: mark})
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + written.ljust(end - 8) + content[end:]


def _loads_by_itself(module: nn.Module) -> bool:
    """Whether a part of somebody else takes entries of other names or shapes than it has: `load_state_dict` asks it."""
    return any(
        part._load_state_dict_pre_hooks or not type(part)._load_from_state_dict.__module__.startswith("torch.")
        for part in module.modules()
    )


def _match_dtypes(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Move each part whose state is of one floating point type to that type, since loading keeps the module's own."""
    dtypes: dict[str, set[torch.dtype]] = defaultdict(set)
    for name, value in state.items():
        while name and value.is_floating_point():
            name = name.rpartition(".")[0]
            dtypes[name].add(value.dtype)
    for name, part in module.named_modules():
        if len(dtypes[name]) == 1:
            part.to(dtype=next(iter(dtypes[name])))


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        written = sorted(str(found.parent) for found in path.parent.glob(f"*/{CONFIG_NAME}"))
        raise FileNotFoundError(
            f"{path} is missing: {path.parent} is not a directory written by save_pretrained"
            + (f"; {', '.join(written[:_SHOWN])} below it is one" if written else "")
        )
    config = read_json(path)
    with named(path):
        if config.get("format") != FORMAT:
            raise ValueError(f"was not written by save_pretrained: its 'format' is not {FORMAT!r}")
        _checked_provenance(config.get(PROVENANCE, {}))
        version = config.get("format_version")
        if isinstance(version, int) and 1 <= version < FORMAT_VERSION:
            return dict(to_current_version(config, version))
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version {version!r} (written by vqkit {config.get('vqkit_version')}), and this vqkit"
                f" reads versions 1 to {FORMAT_VERSION}: update vqkit, or save the model again with a matching version"
            )
    return config


def _checked_provenance(told: Any) -> dict[str, str]:
    if not isinstance(told, Mapping) or not all(isinstance(text, str) for item in told.items() for text in item):
        raise ValueError(f"{PROVENANCE}={told!r}: expected names and texts")
    return dict(told)


def _class_paths(value: Any) -> Iterator[Any]:
    """Every class that a configuration names."""
    if isinstance(value, Mapping):
        yield from (value[mark] for mark in ("class_path", "factory") if mark in value)
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _class_paths(item)


def _read_weights(path: Path, mark: Any) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} holds no complete model. Save or download it again.")
    with named(path):
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get(MARK, mark) != mark:
                raise ValueError(f"was saved with another {CONFIG_NAME} than the one beside it: save the model again")
        state = load_file(path)
        if len(state) > MOST_ENTRIES:
            raise ValueError(
                f"has {len(state)} entries: expected at most {MOST_ENTRIES}, since loading compares all names"
            )
    return state


def _locate(directory_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    name = os.fspath(directory_or_hub_id)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids, and {name!r} is a directory: leave it out.")
        return folder
    for locate in LOCATORS:
        if (found := locate(name, revision)) is not None:
            return found
    is_hub_id = isinstance(directory_or_hub_id, str) and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name)
    if not is_hub_id or (folder.parent.is_dir() and revision is None):
        parent = next(found for found in folder.absolute().parents if found.is_dir())
        names = sorted(found.name for found in parent.iterdir() if found.is_dir() and not found.name.startswith("."))
        names = get_close_matches(folder.name, names, n=_SHOWN, cutoff=0) or ["none"]
        raise FileNotFoundError(
            f"{name!r} is neither an existing directory nor a hub id of the form 'user/name': the folders in {parent} "
            f"are {', '.join(names)}" + (f"; for the hub's {name!r} give revision='main'" if is_hub_id else "")
        )
    asked = f"{name!r} is not a directory in {Path.cwd()}"
    return snapshot(name, [CONFIG_NAME, WEIGHTS_NAME], revision=revision, asked=asked)
