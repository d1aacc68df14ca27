"""Networks of torchvision and timm."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models

from trainers.image.networks.network import FrozenNetwork
from trainers.image.networks.resizing import BilinearResize
from vqkit.backbones.timm2d import build_timm, published_timm, timm_file
from vqkit.saving.weights import BY_PATH, HubWeights, Weights, load_state


class TorchvisionNetwork(FrozenNetwork):
    """A network of torchvision, normalized as its weights are: `convnext_small`, `vgg16`, `resnet50`.

    Args:
        name: one of `torchvision.models.list_models()`.
        weights: where they come from; by default torchvision downloads those that it takes for the best.
        layers: see `FrozenNetwork`.
        resize: see `FrozenNetwork`; transformers want the size that they were trained with.

    Raises:
        ValueError: torchvision has no such network; otherwise see `FrozenNetwork`.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: Weights | None = None,
        layers: Sequence[str] = (),
        resize: BilinearResize | None = None,
    ) -> None:
        if name not in models.list_models(module=models):
            raise ValueError(f"name={name!r}: expected a network for classes of torchvision.models, such as vgg16")
        normalization = models.get_model_weights(name).DEFAULT.transforms()
        super().__init__(
            partial(_torchvision, name),
            weights=weights or HubWeights(),
            download=partial(_torchvision_file, name),
            layers=layers,
            resize=resize,
            normalization=(normalization.mean, normalization.std),
        )


def _torchvision(name: str, state: dict[str, Tensor] | None) -> nn.Module:
    arguments: dict[str, Any] = {}
    if name.startswith(("vgg", "googlenet", "inception")):
        arguments["init_weights"] = state is None  # which takes long
    network = models.get_model(name, weights=None, **arguments)
    if hasattr(network, "transform_input"):  # they were trained on other means than their transforms have
        network.transform_input = True
    return network if state is None else load_state(network, state)


def _torchvision_file(name: str, tag: str | None) -> Path:
    entries = models.get_model_weights(name)
    if tag is not None and tag not in entries.__members__:
        raise ValueError(f"tag={tag!r} of {name}: expected one of {', '.join(entries.__members__)}")
    return url_file((entries[tag] if tag else entries.DEFAULT).url, name)


def url_file(url: str, name: str) -> Path:
    """A file of the web, downloaded into the cache of torch.hub; the hash in its name is checked.

    Args:
        url: of the file.
        name: of the network, for the message.

    Raises:
        ValueError: it cannot be had.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        start = re.search(r"-([0-9a-f]{8,})\.", path.name)
        try:
            torch.hub.download_url_to_file(url, str(path), start and start[1], progress=False)
        except (OSError, RuntimeError) as error:  # no network, or a file with another hash
            raise ValueError(
                f"weights of {name} were not downloaded ({error}): fetch {url} where there is a network, put it into "
                f"{path.parent}, or give its path, {BY_PATH}"
            ) from error
    return path


class TimmNetwork(FrozenNetwork):
    """A network of timm, normalized as its weights are: `convnext_small.fb_in1k`, `vit_small_patch14_dinov2.lvd142m`.

    Needs `pip install "vqkit[perceptual]"`. Files with the names of the original release are converted as timm does.

    Args:
        name: of the architecture, with or without the tag of its weights.
        weights: where they come from; by default timm's place on the hub.
        layers: see `FrozenNetwork`.
        resize: see `FrozenNetwork`; transformers want the size that they are built for.
        arguments: of `timm.create_model`, such as `{img_size: 224}`.

    Raises:
        ValueError: timm is not installed or has no such network; otherwise see `FrozenNetwork`.
    """

    def __init__(
        self,
        name: str,
        *,
        weights: Weights | None = None,
        layers: Sequence[str] = (),
        resize: BilinearResize | None = None,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        published = published_timm(name)
        super().__init__(
            partial(build_timm, name, arguments or {}),
            weights=weights or HubWeights(),
            download=partial(timm_file, name),
            layers=layers,
            resize=resize,
            normalization=(published.mean, published.std),
        )
