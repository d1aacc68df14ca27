"""Published weights as files: what is read of them, and what is refused."""

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vqkit.saving.files import named, read_json
from vqkit.saving.pickles import read_pickle
from vqkit.saving.pretrained import CONFIG_NAME, MOST_ENTRIES, WEIGHTS_NAME
from vqkit.saving.sizes import check_finite

WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", WEIGHTS_NAME)
"""In a folder of diffusers, or of the package huggingface_hub; the first that is there."""
HOLDERS = ("ema", "model", "state_dict")
"""Entries of a training checkpoint that hold a state dict, averaged weights first."""
UNUSED = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "argparse.Namespace")
"""Classes that checkpoints name beside their weights: of old Lightning, and of LlamaGen's trainer."""
MODEL_CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """Weights of a stranger, read and checked for what no model has.

    Attributes:
        file: where they are.
        state: name -> tensor on the CPU.
        config: content of a `config.json` beside them; {} without one.
        license: of the model card beside them, in its words; None without one.
    """

    file: Path
    state: Mapping[str, Tensor]
    config: Mapping[str, Any]
    license: str | None

    def __contains__(self, name: object) -> bool:
        return name in self.state

    @cached_property
    def _sorted(self) -> list[str]:
        return sorted(self.state)

    def has_below(self, path: str) -> bool:
        """Whether the layer of this name has an entry."""
        place = bisect_left(self._sorted, f"{path}.")
        return place < len(self._sorted) and self._sorted[place].startswith(f"{path}.")

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of an entry that says how large the model is.

        Raises:
            ValueError: it is missing, or has another number of axes; the message names it.
        """
        if name not in self.state:
            raise ValueError(f"entry {name!r} is missing: expected a tensor of {axes} axes")
        shape = tuple(self.state[name].shape)
        if len(shape) != axes or 0 in shape:
            raise ValueError(f"entry {name!r} has shape {shape}: expected {axes} axes, none of them empty")
        return shape


def read_source(path: Path) -> Source:
    """Weights in a file, with what lies beside it.

    Args:
        path: a `.safetensors` file, a file of `torch.save` of any other name, or a folder of diffusers or of
            huggingface_hub.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the file is damaged, would run code, holds no state dict, more entries than a model has, more
            numbers than bytes, or numbers that are not finite.
    """
    file = _file_of(path)
    content: Any
    if file.suffix == ".safetensors":
        with named(file):
            content = load_file(file)
    else:
        content = read_pickle(file, unused=UNUSED)
    with named(file):
        state = dict(_tensors(content))
        if sum(value.nbytes for value in state.values()) > file.stat().st_size:
            largest = max(state, key=lambda name: state[name].nbytes)
            raise ValueError(
                f"declares more numbers than it has bytes, {largest!r} alone {state[largest].numel()}: expected a file "
                "that holds its tensors"
            )
        check_finite(state)
    config = file.parent / CONFIG_NAME
    return Source(file, state, read_json(config) if config.is_file() else {}, _license_of(file.parent / MODEL_CARD))


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    for name in WEIGHTS_NAMES if path.is_dir() else ():
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"source={str(path)!r}: expected a file of weights, or a folder with one of {', '.join(WEIGHTS_NAMES)}"
    )


def _tensors(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The state dict in what was read."""
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        content = next((content[name] for name in HOLDERS if name in content), content)
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"holds a {type(content).__name__}: expected a state dict, names and tensors")
    if len(content) > MOST_ENTRIES:
        raise ValueError(f"has {len(content)} entries: expected at most {MOST_ENTRIES}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"entry {name!r} is a {type(value).__name__}: expected a state dict, names and tensors")
        if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized:
            raise ValueError(f"entry {name!r} is {value.layout} on {value.device}: expected plain numbers")
        yield name, value.detach()


def _license_of(card: Path) -> str | None:
    """The `license` in the head of a model card, of which hubs have one, a list, or "other" with its name beside it."""
    if not card.is_file():
        return None
    head = re.match(r"\s*---\n(.*?)\n---", card.read_text(encoding="utf-8-sig", errors="replace"), flags=re.DOTALL)
    said = re.findall(r"^(license|license_name) *:(.*(?:\n *- .*)*)", head[1] if head else "", flags=re.MULTILINE)
    words = {key: " ".join(re.findall(r"[+.-]*\w[\w.+-]*", text.partition(" #")[0])) for key, text in said}
    terms = words.get("license")
    return words.get("license_name") or terms if terms == "other" else terms or None
