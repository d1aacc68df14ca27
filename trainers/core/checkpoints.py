"""Checkpoints of runs: read whole and without code, how far they have come, and the tokenizer that is in them."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lightning import Trainer
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.utils._pytree import tree_leaves

from vqkit import Tokenizer
from vqkit.saving.annotations import fits
from vqkit.saving.config import from_config, to_config, weights_follow
from vqkit.saving.files import NotWritten, named, write_json
from vqkit.saving.migration import computed_formerly, to_current_version
from vqkit.saving.pickles import read_pickle
from vqkit.saving.pretrained import FORMAT_VERSION, PROVENANCE
from vqkit.saving.sizes import check_finite
from vqkit.tokens.names import escaped

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
    checkpoint = read_pickle(path)
    with named(path):
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


class Progress(NamedTuple):
    """How far the training that wrote a checkpoint had come.

    Attributes:
        run: id of the run; None where the checkpoint does not say.
        step: optimizer steps.
        epochs: passes over the data that were finished.
        seconds: of training, counted where `trainer.max_time` limits them.
        initialized: whether the quantizer was initialized.
        tokenizer: what `described` said of the tokenizer.
    """

    run: str | None
    step: int
    epochs: int
    seconds: float
    initialized: bool
    tokenizer: Mapping[str, Any] | None

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "Progress":
        """What a checkpoint, as `read_checkpoint` returns it, says."""
        return cls(
            run=checkpoint.get("run"),
            step=checkpoint["global_step"],
            epochs=checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"],
            seconds=checkpoint["callbacks"].get("Timer", {}).get("time_elapsed", {}).get("train", 0.0),
            initialized=checkpoint.get("quantizer_initialized_at", 0) is not None,
            tokenizer=checkpoint.get("tokenizer"),
        )

    def limit(self, trainer: Trainer) -> str | None:
        """The limit that training has reached already, such as `max_steps=20`; None while steps are left."""
        for name, done in (("max_steps", self.step), ("max_epochs", self.epochs)):
            most = getattr(trainer, name)
            if most is not None and 0 <= most <= done:
                return f"{name}={most}"
        if trainer.min_steps or trainer.min_epochs:
            return None  # which may ask for more than the time allows
        limits = [
            callback.time_remaining() for callback in getattr(trainer, "callbacks", []) if isinstance(callback, Timer)
        ]
        seconds = min((limit for limit in limits if limit is not None), default=float("inf"))
        return f"max_time={seconds:.0f} seconds" if seconds <= self.seconds else None


def saved_tokenizer(checkpoint: Mapping[str, Any], *, allow: Sequence[str] = ("vqkit",)) -> Tokenizer:
    """The tokenizer that a checkpoint describes, with its weights; averaged ones where the run kept an average.

    Args:
        checkpoint: as `read_checkpoint` returns it.
        allow: packages whose classes it may name (`vqkit.saving.config.from_config`).

    Raises:
        ValueError: it describes none, names a class that is not allowed, or its weights do not fit.
    """
    if checkpoint.get("tokenizer") is None:
        raise ValueError("does not say what its tokenizer is made of, as checkpoints before version 0.2 do not")
    with weights_follow():
        tokenizer = from_config(migrated(checkpoint["tokenizer"]), allow=allow)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"describes a {type(tokenizer).__name__}: expected a Tokenizer")
    tokenizer.load_state_dict(tokenizer_state(checkpoint))
    tokenizer.provenance = checkpoint.get(PROVENANCE)
    return tokenizer


def tokenizer_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The entries of a checkpoint's weights that are the tokenizer's, by their names in it."""
    return state_under("tokenizer", checkpoint["state_dict"])


def state_under(path: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a state dict that are of one module, by their names in it."""
    return {key.removeprefix(f"{path}."): value for key, value in state.items() if key.startswith(f"{path}.")}


def source_of(checkpoint: str | Path | None, step: int | None, run: str | None) -> dict[str, Any]:
    """Where weights come from, for the record of what is made with them; the path holds from any folder."""
    return {"checkpoint": escaped(str(Path(checkpoint).absolute())) if checkpoint else None, "step": step, "run": run}


def save_tokenizer(tokenizer: Tokenizer, folder: Path, weights: Mapping[str, Any]) -> None:
    """Write a tokenizer for `from_pretrained`, and `weights.json`; the folder appears with all of it, or not at all.

    Args:
        tokenizer: of which `to_config` can be made.
        folder: made if missing. Where it is there, its files are replaced, each whole.
        weights: where its weights come from; see `source_of`.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new = Path(temporary) / folder.name
        try:
            tokenizer.save_pretrained(new)
            write_json(new / "weights.json", weights)
        except NotWritten as error:  # which names a folder that is gone by then
            meant = folder / Path(error.filename).name
            raise NotWritten(error.errno, error.strerror, str(meant)) from error
        if folder.is_dir():
            for path in new.iterdir():
                os.replace(path, folder / path.name)
        else:
            os.replace(new, folder)


def described(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The configuration of a tokenizer, for its checkpoint; None where a part of it cannot be written."""
    try:
        return {"format_version": FORMAT_VERSION, **to_config(tokenizer)}
    except ValueError:
        return None


def migrated(description: Mapping[str, Any]) -> dict[str, Any]:
    """What `described` said when a checkpoint was written, in today's terms; at first it did not say its version.

    Raises:
        ValueError: a later vqkit has written it.
    """
    version = description.get("format_version", 3)
    if version == FORMAT_VERSION:
        return dict(description)
    if version != 3:
        raise ValueError(
            f"describes a tokenizer in format {version!r}, and this vqkit reads 3 and {FORMAT_VERSION}: update vqkit"
        )
    return dict(to_current_version(description, 3))


def is_of_run(checkpoint: Mapping[str, Any], task: Any) -> bool:
    """Whether the run of a task has written a checkpoint, as far as it says so."""
    return checkpoint.get("run") in (None, task.run_id)


def check_same_tokenizer(saved: Mapping[str, Any] | None, tokenizer: Tokenizer, path: object) -> None:
    """`check_same_parts` for a tokenizer that is to take weights, as far as it can be described.

    A checkpoint without a description is of version 0.1: then only what classes computed then is compared.
    """
    asked = described(tokenizer)
    if asked is not None:
        with named(Path(str(path))):
            check_same_parts(computed_formerly(asked) if saved is None else migrated(saved), asked)


def check_same_parts(saved: Any, asked: Any, where: str = "tokenizer") -> None:
    """Refuse the checkpoint of a tokenizer with other parts, whose weights may fit all the same.

    Args:
        saved: what `described` said when the checkpoint was written, in today's terms (`migrated`).
        asked: of the tokenizer that takes the weights. Arguments that one of the two lacks, and numbers but the epsilon
            of norms, may differ.
        where: of both in the task, for the message.

    Raises:
        ValueError: a class, a method or another word differs; the message names it, and the arguments to give.
    """
    found = list(_differences(saved, asked, where))
    if not found:
        return
    where, one, other = found[0]
    message = (
        "holds another model than this configuration: give the --config and --quantizer that it was trained with; its "
        f"{where} is {_in_words(one)}, not {_in_words(other)}"
    )
    if all(not isinstance(one, Mapping | list) for _, one, _ in found):
        given = " ".join(f"--model.{where.replace('.init_args', '')}={one}" for where, one, _ in found)
        message += f". As arguments: {given}"
    raise ValueError(message)


def _differences(saved: Any, asked: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(saved, Mapping) and isinstance(asked, Mapping):
        for key in sorted(saved.keys() & asked.keys()):
            yield from _differences(saved[key], asked[key], f"{where}.{key}")
    elif isinstance(saved, list) and isinstance(asked, list) and len(saved) == len(asked):
        for index, (one, other) in enumerate(zip(saved, asked, strict=True)):
            yield from _differences(one, other, f"{where}.{index}")
    elif saved != asked and (where.endswith(".norm_eps") or not (fits(saved, float) and fits(asked, float))):
        yield where, saved, asked


def _in_words(part: Any) -> Any:
    return part["class_path"] if isinstance(part, Mapping) and "class_path" in part else repr(part)
