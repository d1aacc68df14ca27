"""Trained weights that a new run starts from, at step 0."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from trainers.core.checkpoints import (
    Progress,
    check_same_parts,
    described,
    migrated,
    read_checkpoint,
    state_under,
    tokenizer_state,
)
from trainers.core.optimization import DISCRIMINATORS, OBJECTIVES
from trainers.core.parts import named_parts
from trainers.core.task import TokenizerTask
from trainers.run.folders import find_checkpoint, find_run, folder_of, identity
from vqkit import Codebook, Tokenizer
from vqkit.conversion import converted
from vqkit.saving.config import to_config
from vqkit.saving.files import named, read_json
from vqkit.saving.migration import computed_formerly
from vqkit.saving.pretrained import CONFIG_NAME, PROVENANCE, WEIGHTS_NAME

TRAINING_ONLY = ("losses", "maintenance", "estimator")
"""Arguments of quantizers that a new run may change: how codes are trained, not what they mean."""
BESIDE = {DISCRIMINATORS: "adversary.discriminators", OBJECTIVES: "objectives"}
"""What a run trains beside the tokenizer, and where it is in the task. It is taken where `parts` names it."""
SHOWN = 4
"""Most entries that a message lists."""


@dataclass(frozen=True)
class Origin:
    """A file of trained weights, and what of it a new run takes.

    Attributes:
        file: a checkpoint, or the weights that `save_pretrained` wrote.
        hash: SHA-256 of the file, hexadecimal.
        parts: that are taken, by their names: of the tokenizer, and those of `BESIDE`; None for all of the tokenizer.
        run: id of the run that made the weights; None where the file does not say.
        step: of that run.
        checkpoint: content of the file, where it is a checkpoint.
    """

    file: Path
    hash: str
    parts: Sequence[str] | None
    run: str | None
    step: int | None
    checkpoint: Mapping[str, Any] | None

    @classmethod
    def of(cls, asked: str, *, parts: Sequence[str] | None = None, expected_hash: str | None = None) -> Self:
        """Find the file, and read what it says of itself.

        Args:
            asked: run folder (its `last.ckpt`), `RUN:best`, file of a checkpoint, folder of `save_pretrained`, or name
                of published weights on the hub, which are converted into its cache.
            parts: see `Origin`.
            expected_hash: SHA-256 that the file must have; None takes any.

        Raises:
            FileNotFoundError: there is nothing of this kind.
            ValueError: the file is damaged, or has another hash.
        """
        file = _find(asked)
        with file.open("rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        if expected_hash not in (None, found):
            raise ValueError(
                f"init_hash={expected_hash!r}: {file} has {found}; it was replaced since, so give the file of that "
                "time, or take today's by --init_hash null"
            )
        if file.name == WEIGHTS_NAME:
            record = file.parent / "weights.json"
            weights = read_json(record) if record.is_file() else {}
            return cls(file, found, parts, weights.get("run"), weights.get("step"), None)
        checkpoint = read_checkpoint(file)
        with named(file):
            progress = Progress.of(checkpoint)
        home = folder_of(file)
        run = progress.run or (identity(home) if home else None)
        return cls(file, found, parts, run, progress.step, checkpoint)

    def description(self) -> dict[str, Any]:
        """What the tokenizer in the file is made of, as `to_config` writes it.

        Raises:
            ValueError: the file is refused, or does not say it.
        """
        if self.checkpoint is None:
            return to_config(Tokenizer.from_pretrained(self.file.parent))  # sizes are compared with the weights there
        with named(self.file):
            if self.checkpoint.get("tokenizer") is None:
                raise ValueError("does not say what its tokenizer is made of: write it into the configuration")
            found = migrated(self.checkpoint["tokenizer"])
        return {name: found[name] for name in ("class_path", "init_args")}

    def load(self, task: TokenizerTask, *, trains: bool = True) -> None:
        """Give the weights to a new task, which does not initialize a quantizer that is among them.

        Args:
            task: takes them.
            trains: whether it is going to be trained, and not only measured.

        Raises:
            ValueError: a part does not exist, is of another class, or its weights do not fit; the message names them.
                Or the quantizer is none of them, and frozen.
        """
        tokenizer = task.tokenizer
        names = [name for name, _ in tokenizer.named_children()] if self.parts is None else self.parts
        beside, names = [name for name in names if name in BESIDE], [name for name in names if name not in BESIDE]
        state, saved, provenance = self._read(tokenizer)
        asked = described(tokenizer)
        for name, part in named_parts(tokenizer, names, argument="init_parts").items():
            if saved is not None and asked is not None and name in asked["init_args"]:
                meant, ours = (_meaning(description["init_args"].get(name)) for description in (saved, asked))
                try:
                    with named(self.file):
                        check_same_parts(meant, ours, f"tokenizer.{name}")
                except ValueError as error:
                    raise ValueError(f"{error}{_advice(name, task) if trains else ''}") from error
            self._fill(name, state_under(name, state), part, trains=trains)
        for name in beside:
            own = state_under(BESIDE[name], (self.checkpoint or {}).get("state_dict", {}))
            if not own or name not in task.parts():
                where = "this configuration" if own else self.file
                raise ValueError(f"init_parts={list(self.parts or ())}: {where} has no {name}; leave them out")
            self._fill(name, own, task.get_submodule(BESIDE[name]), trains=trains)
        if trains and all(name.partition(".")[0] != "quantizer" for name in names):
            _check_learns(task, names)
        tokenizer.provenance = provenance or tokenizer.provenance
        initialized = self.checkpoint is None or Progress.of(self.checkpoint).initialized
        if trains and initialized and any(name.partition(".")[0] == "quantizer" for name in names):
            task.keep_quantizer(f"{self.file} has it initialized")

    def _fill(self, name: str, state: Mapping[str, Tensor], part: nn.Module, *, trains: bool) -> None:
        try:
            part.load_state_dict(state)
        except RuntimeError as error:
            advice = "take the parts that fit by --init_parts, such as [encoder]"
            if not trains:
                advice = "give the --config and --quantizer that it was trained with"
            reason = _differences(name, state, part) or error
            raise ValueError(f"{self.file} does not fit this configuration: {reason}; {advice}") from error

    def record(self) -> dict[str, Any]:
        """What `run.json` says of it."""
        parts = None if self.parts is None else list(self.parts)
        return {"file": str(self.file), "sha256": self.hash, "parts": parts, "run": self.run, "step": self.step}

    def __str__(self) -> str:
        """In a line."""
        step = "" if self.step is None else f", step {self.step} of run {self.run or 'unknown'}"
        parts = "all parts" if self.parts is None else ", ".join(self.parts)
        return f"{parts} of {self.file}{step}, SHA-256 {self.hash}"

    def _read(
        self, tokenizer: Tokenizer
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any] | None, dict[str, str] | None]:
        """The weights, what `described` said of the tokenizer, and its provenance."""
        if self.checkpoint is None:
            known = {type(module).__module__ for module in tokenizer.modules()}
            loaded = Tokenizer.from_pretrained(self.file.parent, allow=("vqkit", *sorted(known)))
            return loaded.state_dict(), described(loaded), loaded.provenance
        saved, state = self.checkpoint.get("tokenizer"), tokenizer_state(self.checkpoint)
        if saved is None:  # version 0.1
            asked = described(tokenizer)
            return state, None if asked is None else computed_formerly(asked), None
        with named(self.file):
            return state, migrated(saved), self.checkpoint.get(PROVENANCE)


def saved_folder(asked: str) -> Path | None:
    """The folder of a saved tokenizer, or of published weights by their name (`docs/weights.md`); None for all else.

    Raises:
        FileNotFoundError: the hub cannot be reached.
        ValueError: the weights of this name are refused.
    """
    folder = Path(asked).expanduser()
    if not folder.exists():
        return converted(asked)
    return folder if (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file() else None


def _find(asked: str) -> Path:
    run, _, word = asked.rpartition(":")
    if run and word in ("last", "best"):
        return find_checkpoint(find_run(Path(run).expanduser()), word, argument="init_from")
    path = find_run(Path(asked).expanduser())
    if path.is_file():
        return path
    if (path / "checkpoints").is_dir():
        return find_checkpoint(path, "last", argument="init_from")
    if (saved := saved_folder(str(path))) is not None:
        return saved / WEIGHTS_NAME
    raise FileNotFoundError(
        f"init_from={asked!r}: expected the folder of a run (runs/mine, or runs/mine:best), a .ckpt file, a folder "
        f"of save_pretrained with {CONFIG_NAME} and {WEIGHTS_NAME}, or a name of published weights (docs/weights.md); "
        "files of others become such a folder by python -m vqkit convert"
    )


def _meaning(description: Any) -> Any:
    """A description without what only training needs."""
    if isinstance(description, Mapping):
        return {key: _meaning(value) for key, value in description.items() if key not in TRAINING_ONLY}
    return [_meaning(value) for value in description] if isinstance(description, list) else description


def _advice(name: str, task: TokenizerTask) -> str:
    """What takes all parts but one, which is new then, and lets it learn."""
    fit = [part for part, _ in task.tokenizer.named_children() if part != name]
    options = f'--init_parts "[{",".join(fit)}]"'
    if any(part.partition(".")[0] == name for part in task.frozen):
        left = [part for part in task.frozen if part.partition(".")[0] != name]
        options += f' --model.freeze "[{",".join(left)}]", so that the new {name} learns'
    return f"; or take the parts that fit by {options}"


def _check_learns(task: TokenizerTask, taken: Sequence[str]) -> None:
    """Refuse a frozen quantizer that is new: its codes would stay the random ones of its constructor."""
    quantizer = task.tokenizer.quantizer
    has_weights = next(quantizer.parameters(), None) is not None
    has_weights |= any(isinstance(module, Codebook) for module in quantizer.modules())
    if has_weights and "quantizer" in task.frozen:
        left = ",".join(part for part in task.frozen if part != "quantizer")
        raise ValueError(
            f"freeze={list(task.frozen)}: the quantizer is none of the parts that are taken, {', '.join(taken)}, so "
            f'its codes are random and would stay so; let it learn by --model.freeze "[{left}]", or take it too'
        )


def _differences(name: str, found: Mapping[str, Any], part: nn.Module) -> str:
    """In words which entries of a part are not there, not expected, or of other shapes."""
    wanted = part.state_dict()
    lines = []
    for key in sorted(found.keys() | wanted.keys()):
        shapes = [str(tuple(getattr(state[key], "shape", ()))) if key in state else None for state in (found, wanted)]
        if shapes[0] != shapes[1]:
            lines.append(f"{name}.{key} is {shapes[0] or 'missing'} there and {shapes[1] or 'unknown'} here")
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return ", ".join(lines[:SHOWN] + more)
