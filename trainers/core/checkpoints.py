"""Reading checkpoints of runs: whole, without code, and with their name on everything that is wrong with them."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vqkit import Tokenizer
from vqkit.saving.annotations import fits
from vqkit.saving.config import to_config
from vqkit.saving.files import named
from vqkit.saving.migration import to_current_version
from vqkit.saving.pretrained import FORMAT_VERSION
from vqkit.saving.sizes import check_finite

_ENTRIES = {
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "epoch": int,
    "global_step": int,
}
"""What the trainer takes from a checkpoint."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint that a run wrote; its tensors stay in the file until they are used.

    torch and Lightning load a file with flipped bytes, and say of other damage what pickle tripped over.

    Args:
        path: of the `.ckpt` file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a byte is not what was written, the file is no checkpoint of a run, would run code, or holds weights
            that are not finite; the message names the file and the entry.
    """
    with named(path), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("is no checkpoint, or ends too early: take another one, such as best.ckpt")
        with zipfile.ZipFile(file) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            broken = packed[0] if packed else archive.testzip()
        if broken:
            raise ValueError(f"entry {broken!r} is damaged: take another checkpoint, such as best.ckpt")
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:  # whose text advises to load it nevertheless
            raise ValueError("holds more than tensors and plain values, which only code could make") from error
        if not isinstance(checkpoint, dict):
            raise ValueError(f"holds a {type(checkpoint).__name__}: expected the dictionary of a checkpoint")
        for name, kind in _ENTRIES.items():
            if not fits(checkpoint.get(name), kind):
                raise ValueError(f"entry {name!r} is a {type(checkpoint.get(name)).__name__}: expected {kind.__name__}")
        for tensor in tree_leaves(checkpoint):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() < tensor.nbytes:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} holds fewer numbers than that")
        check_finite({name: value for name, value in checkpoint["state_dict"].items() if isinstance(value, Tensor)})
    return checkpoint


def described(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The configuration of a tokenizer, for its checkpoint; None where a part of it cannot be written."""
    try:
        return {"format_version": FORMAT_VERSION, **to_config(tokenizer)}
    except ValueError:
        return None


def migrated(description: Mapping[str, Any]) -> dict[str, Any]:
    """What `described` said when a checkpoint was written, in today's terms; at first it did not say its version."""
    current = description.get("format_version") == FORMAT_VERSION
    return dict(description if current else to_current_version(description, 3))


def check_same_parts(saved: Any, asked: Any, path: object, where: str = "tokenizer") -> None:
    """Refuse the checkpoint of a tokenizer with other parts, whose weights may fit all the same.

    Args:
        saved: what `described` said when the checkpoint was written, in today's terms (`migrated`).
        asked: of the tokenizer that takes the weights. Arguments that one of the two lacks, and numbers but the epsilon
            of norms, may differ.
        path: of the checkpoint, for the message.
        where: of both in the tokenizer, for the message.

    Raises:
        ValueError: a class, a method or another word differs; the message names it.
    """
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        for key in sorted(saved.keys() & asked.keys()):
            check_same_parts(saved[key], asked[key], path, f"{where}.{key}")
    elif isinstance(saved, list) and isinstance(asked, list) and len(saved) == len(asked):
        for index, (one, other) in enumerate(zip(saved, asked, strict=True)):
            check_same_parts(one, other, path, f"{where}.{index}")
    elif saved != asked and (where.endswith(".norm_eps") or not (fits(saved, float) and fits(asked, float))):
        raise ValueError(
            f"{path} holds another model than this configuration: give the --config and --quantizer that it was "
            f"trained with; its {where} is {_in_words(saved)}, not {_in_words(asked)}"
        )


def _in_words(part: Any) -> Any:
    return part["class_path"] if isinstance(part, Mapping) and "class_path" in part else repr(part)
