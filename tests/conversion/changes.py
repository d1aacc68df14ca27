"""Files of weights that are not what they should be, and what every family's weights on the meta device have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vqkit import Tokenizer, convert
from vqkit.conversion import Family
from vqkit.conversion.source import Source

State = dict[str, Tensor]


def removed(*starts: str) -> Callable[[State], State]:
    """Without the entries whose names start so."""
    return lambda state: {name: value for name, value in state.items() if not name.startswith(starts)}


def added(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Callable[[State], State]:
    """With an entry of zeros, in the place of one of the same name."""
    return lambda state: state | {name: torch.zeros(shape, dtype=dtype)}


def refuses(content: Any, message: str, folder: Path, *, file: str = "weights.bin", **options: Any) -> None:
    """Such a file is refused in these words, and nothing is written."""
    torch.save(content, folder / file)
    with pytest.raises(ValueError, match=message):
        convert(folder / file, folder / "converted", **options)
    assert not (folder / "converted").exists()


def planned(state: State, family: Family) -> Tokenizer:
    """What a family builds of entries on the meta device, each of whose weights has one."""
    source = Source(Path("none"), state, {}, None)
    with torch.device("meta"):
        tokenizer = family.build(source)
    entries = list(family.entries(source, tokenizer))
    family._check(source, entries)
    filled = {entry.target for entry in entries}
    assert {name for name, _ in tokenizer.named_parameters()} <= filled
    assert all(name.startswith("quantizer.") for name in tokenizer.state_dict().keys() - filled)
    return tokenizer
