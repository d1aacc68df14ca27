"""States of published models, changed or whole, and what becomes of them."""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from tests.conversion.published import Published
from vqkit import Tokenizer, convert
from vqkit.conversion import Family
from vqkit.conversion.converting import family_of
from vqkit.conversion.source import Source

State = dict[str, Tensor]
Model = TypeVar("Model", bound=Published)


@cache
def filled(cls: type[Model], **options: Any) -> Model:
    """A model that has asked for its weights."""
    model = cls(**options)
    model(torch.zeros(1, 3, 16, 16))
    return model


def removed(*starts: str) -> Callable[[State], None]:
    """Takes out the entries whose names begin by one of these expressions; there are some."""

    def change(state: State) -> None:
        found = [name for name in state if re.match("|".join(starts), name)]
        assert found
        for name in found:
            del state[name]

    return change


def added(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[State], None]:
    """Gives an entry zeros of this shape, or adds it."""
    return lambda state: state.update({name: torch.zeros(shape, dtype=dtype)})


def refuses(content: Any, message: str, folder: Path, file: str = "weights.pt", **options: Any) -> None:
    """A file of this content is not converted, and nothing is left of the attempt."""
    torch.save(content, folder / file)
    with pytest.raises(ValueError, match=message):
        convert(folder / file, folder / "converted", **options)
    assert not (folder / "converted").exists()


def refuses_change(
    name: str, state: State, change: Callable[[State], None], message: str, folder: Path, **options: Any
) -> None:
    """The same of a state after a change: the message names the file and the family."""
    state = dict(state)
    change(state)
    refuses(state, rf"weights\.pt: does not hold the weights of {name}: .*({message})", folder, **options)


def changes_refused(
    name: str, state: Callable[[], State], *cases: tuple[Callable[[State], None], str], **options: Any
) -> Callable[..., None]:
    """A test for each change and its message, see `refuses_change`."""

    @pytest.mark.parametrize(("change", "message"), cases)
    def test(change: Callable[[State], None], message: str, tmp_path: Path) -> None:
        refuses_change(name, state(), change, message, tmp_path, **options)

    return test


def planned(state: State, family: Family | None = None) -> Tokenizer:
    """The tokenizer of a state, on the meta device: each of its weights has an entry."""
    source = Source(Path("none"), state, {}, None)
    _, tokenizer, entries = (family or family_of(source)).plan(source)
    filled = {entry.target for entry in entries}
    assert {name for name, _ in tokenizer.named_parameters()} <= filled
    assert all(name.startswith("quantizer.") for name in tokenizer.state_dict().keys() - filled)
    return tokenizer
