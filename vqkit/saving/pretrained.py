"""Saving and loading of modules: safetensors for the weights, readable JSON for the construction. No pickle."""

import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vqkit.saving.config import Configured, from_config, is_own, resolve_class, to_config, weights_follow
from vqkit.saving.files import named, read_json
from vqkit.saving.migration import to_current_version
from vqkit.saving.sizes import Bounded, check_entries, check_finite
from vqkit.version import __version__

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
FORMAT = "vqkit"
FORMAT_VERSION = 4
MOST_ENTRIES = 2**14
"""In a weights file: torch takes time with the square of their number to load them."""


class Pretrained(Configured):
    """Mixin for modules: `save_pretrained`, `from_pretrained` and `push_to_hub`.

    A saved module is a directory with `config.json` (format, version, class and constructor arguments) and
    `model.safetensors` (the whole `state_dict`). Derive as `class Model(Pretrained, nn.Module)`.
    """

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` into a directory.

        Each file is written under a temporary name and moved into place, so that an interruption never leaves half a
        file. Under data parallelism call it on one rank.

        Args:
            directory: created if it is missing; a model that was saved there before is replaced.

        Raises:
            ValueError: if a constructor argument or an entry of the state cannot be written; nothing is written then.
        """
        config = {"format": FORMAT, "format_version": FORMAT_VERSION, "vqkit_version": __version__, **to_config(self)}
        text = json.dumps(config, indent=2, allow_nan=False) + "\n"
        tensors = _writable_state(self)
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        mark = f".{os.getpid()}.tmp"
        temporary = {name: folder / (name + mark) for name in (WEIGHTS_NAME, CONFIG_NAME)}
        try:
            save_file(tensors, temporary[WEIGHTS_NAME], metadata={"format": "pt"})
            temporary[CONFIG_NAME].write_text(text, encoding="utf-8")
            # safetensors gives its file to the owner alone; both shall have the permissions of a new file.
            temporary[WEIGHTS_NAME].chmod(stat.S_IMODE(temporary[CONFIG_NAME].stat().st_mode))
            for name, path in temporary.items():
                os.replace(path, folder / name)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)

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
            directory_or_hub_id: a directory, or a Hugging Face hub id `"user/name"` if no such directory exists.
            map_location: the device that the module is moved to.
            allow: packages whose classes the configuration may name; add your own package for parts that you wrote.
            revision: branch, tag or commit on the hub; None means its default branch.

        Returns:
            The module; call `.train()` on it to go on training.

        Raises:
            FileNotFoundError: if the directory or one of its two files is missing.
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
        state = _read_weights(weights_path)
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
        hub = _import_hub("push_to_hub")
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.create_repo(repo_id, private=private, exist_ok=True)
            return str(hub.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message))


def _writable_state(module: Any) -> dict[str, Tensor]:
    """The state as tensors that safetensors takes: contiguous, on the CPU, and without memory in common."""
    state: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"state entry {key!r} is a {type(value).__name__}, and safetensors holds tensors only: let"
                " get_extra_state return a tensor."
            )
        state[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return state


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
        raise FileNotFoundError(f"{path} is missing: {path.parent} is not a directory written by save_pretrained.")
    config = read_json(path)
    with named(path):
        if config.get("format") != FORMAT:
            raise ValueError(f"was not written by save_pretrained: its 'format' is not {FORMAT!r}")
        version = config.get("format_version")
        if isinstance(version, int) and 1 <= version < FORMAT_VERSION:
            return dict(to_current_version(config, version))
        if version != FORMAT_VERSION:
            raise ValueError(
                f"format_version {version!r} (written by vqkit {config.get('vqkit_version')}), and this vqkit"
                f" reads versions 1 to {FORMAT_VERSION}: update vqkit, or save the model again with a matching version"
            )
    return config


def _class_paths(value: Any) -> Iterator[Any]:
    """Every class that a configuration names."""
    if isinstance(value, Mapping):
        yield from (value[mark] for mark in ("class_path", "factory") if mark in value)
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _class_paths(item)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} holds no complete model. Save or download it again.")
    with named(path):
        state = load_file(path)
        if len(state) > MOST_ENTRIES:
            raise ValueError(
                f"has {len(state)} entries: expected at most {MOST_ENTRIES}, since loading compares all names"
            )
    return state


def _locate(directory_or_hub_id: str | os.PathLike[str], revision: str | None) -> Path:
    name = os.fspath(directory_or_hub_id)
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r} is for hub ids, and {name!r} is a directory: leave it out.")
        return Path(name)
    if not isinstance(directory_or_hub_id, str) or not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"{name!r} is neither an existing directory nor a hub id of the form 'user/name'.")
    hub = _import_hub(f"{name!r} is not a directory, and looking for it on the hub")
    return Path(hub.snapshot_download(name, revision=revision, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME]))


def _import_hub(purpose: str) -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ImportError(f'{purpose} needs huggingface_hub: pip install "vqkit[hub]"') from error
    return huggingface_hub
