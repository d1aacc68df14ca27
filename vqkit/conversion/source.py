"""Published weights as files: what is read of them, and what is refused."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vqkit.conversion.licenses import MODEL_CARD, license_of
from vqkit.saving.files import named, read_json
from vqkit.saving.pickles import read_pickle
from vqkit.saving.pretrained import CONFIG_NAME, MOST_ENTRIES, WEIGHTS_NAME
from vqkit.saving.sizes import FLOATING, check_finite

WEIGHTS_NAMES = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin",
    WEIGHTS_NAME,
    "pytorch_model.bin",
)
"""In a folder of diffusers, or of the package huggingface_hub; the first that is there."""
HOLDERS = ("ema", "model", "state_dict")
"""Entries of a training checkpoint that hold a state dict, averaged weights first."""
UNUSED = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "argparse.Namespace")
"""Classes that checkpoints name beside their weights: of old Lightning, and of LlamaGen's trainer."""


class ConfigFile(Mapping[str, Any]):
    """The content of a JSON file, read when it is first asked for; {} where there is none.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _content(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.is_file() else {}

    def __getitem__(self, name: str) -> Any:
        return self._content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._content)

    def __len__(self) -> int:
        return len(self._content)


@dataclass(frozen=True)
class Source:
    """Weights of a stranger, read and checked for what no model has.

    Attributes:
        file: where they are.
        state: name -> tensor on the CPU.
        config: content of a `config.json` beside them, which is read once a family asks for it: repositories have files
            of this name for other ends, and not all are JSON.
        license: of the model card beside them, in its words; None without one.
        metadata: what a checkpoint says of itself, unchecked plain values; {} where there is nothing.
    """

    file: Path
    state: Mapping[str, Tensor]
    config: Mapping[str, Any]
    license: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)

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

    def number(self, name: str, default: int | None = None) -> int:
        """A positive whole number of `config.json`.

        Args:
            name: of the setting.
            default: where it is not there; None refuses that.

        Raises:
            ValueError: it is missing, or something else.
        """
        found = self.config.get(name, default)
        if type(found) is not int or found < 1:
            raise ValueError(f"config.json has {name}={found!r}: expected a positive whole number")
        return found

    def check_config(self, meant: Mapping[str, Any]) -> None:
        """Refuse a `config.json` that describes another model.

        Args:
            meant: what the weights do not show, by name; what is not in the file is taken to be so.

        Raises:
            ValueError: the file has another value.
        """
        for name, value in meant.items():
            if (found := self.config.get(name, value)) != value:
                raise ValueError(f"config.json has {name}={found!r}: expected {value!r}")


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
    config, license = ConfigFile(file.parent / CONFIG_NAME), license_of(file.parent / MODEL_CARD)
    return Source(file, state, config, license, _metadata(content))


def _file_of(path: Path) -> Path:
    if path.is_file():
        return path
    for name in WEIGHTS_NAMES if path.is_dir() else ():
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(
        f"source={str(path)!r}: expected a file of weights, or a folder with one of {', '.join(WEIGHTS_NAMES)}"
    )


def _metadata(content: Any) -> Mapping[str, Any]:
    """What a checkpoint says of itself beside its state dict."""
    said = content.get("metadata") if isinstance(content, Mapping) else None
    return said if isinstance(said, Mapping) else {}


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
        if value.is_floating_point() and value.dtype not in FLOATING:
            raise ValueError(
                f"entry {name!r} holds {value.dtype}: expected numbers of 16 bits or more; take the weights that these "
                "were rounded from"
            )
        yield name, value.detach()
