"""Networks of the package timm as encoders: DINOv2, SigLIP, ViTamin, ConvNeXt and whatever else it has.

Needs `pip install "vqkit[perceptual]"`.
"""

import importlib.util
import inspect
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vqkit.saving.config import Configured, weights_will_follow
from vqkit.saving.files import named
from vqkit.saving.weights import BY_PATH, Weights, hub_file, read_state
from vqkit.unsaved_buffers import UnsavedBuffers

WITHOUT_NORM = ("hiera", "hieradet_sam2")
"""Modules of timm with networks of which it normalizes no features."""


class TimmEncoder(Configured, UnsavedBuffers):
    """Images (B, 3, H, W) to latents (B, dim, H / f, W / f): features of one layer of a network of timm.

    Class and register tokens are dropped, layers behind the one that is asked for are not built into the model, and the
    network's last norm, where it has one, comes behind it. Images in [-1, 1] are normalized as the network wants them.
    All of it trains. `freeze: [encoder.network]` of the trainers leaves it as it is, but for a linear map to `dim`;
    elsewhere `encoder.network.requires_grad_(False)` does.

    A saved tokenizer holds the network's weights, and `from_pretrained` asks for no others.

    Args:
        name: of the architecture, with or without the tag of its weights: `vit_small_patch14_dinov2.lvd142m`.
        weights: where they come from, by `WeightsFile`, `PackagedWeights` or `HubWeights` of `vqkit.saving.weights`;
            None starts from new ones. Where a state is loaded right afterwards (`vqkit.saving.config.weights_follow`),
            none are read.
        dim: channels of the latents, by a linear map; None: those of the layer, without a map.
        layer: number of a block of a transformer, or of a stage of others, from 0 or, below it, from the end.
        arguments: of the network's constructor, such as `{img_size: 256}` or `{dynamic_img_size: true}`.

    Raises:
        ValueError: timm is not installed, has no such network, or this one gives no features of its layers, or none
            that are normalized; weights cannot be had or do not fit; there is no such layer; in `forward` if there are
            no images, if they do not fit the network, or if its features are not what timm says of them.
    """

    channel_dim = 1
    in_channels = 3
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str,
        *,
        weights: Weights | None,
        dim: int | None = None,
        layer: int = -1,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        published = published_timm(name)
        _check_normalizes(name)
        file = None if weights is None or weights_will_follow() else weights.find(partial(timm_file, name))
        with named(file) if file else nullcontext():
            network = build_timm(name, arguments or {}, read_state(file) if file else None)
        if not hasattr(network, "forward_intermediates"):
            raise ValueError(f"name={name!r}: timm gives no features of layers of it; take another network")
        layers = len(network.feature_info)
        if not -layers <= layer < layers:
            raise ValueError(f"layer={layer}: {name} has layers 0 to {layers - 1}, or -{layers} to -1")
        self.name, self.layer = name, layer % layers
        network.prune_intermediate_layers([self.layer], prune_norm=False, prune_head=True)
        found = network.feature_info[self.layer]
        self.network = network
        self.dim = found["num_chs"] if dim is None else dim
        self.downsampling_factor = found["reduction"]
        self.projection = nn.Identity() if dim is None else nn.Conv2d(found["num_chs"], dim, 1)
        self.register_unsaved("mean", partial(_of_channels, published.mean))
        self.register_unsaved("deviation", partial(_of_channels, published.std))
        self.record(weights=None)

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, dim, H / f, W / f) of images (B, 3, H, W) in [-1, 1]."""
        self._check(images)
        normalized = ((images + 1) / 2 - self.mean) / self.deviation
        (features,) = self.network.forward_intermediates(
            normalized, indices=[self.layer], norm=True, stop_early=True, output_fmt="NCHW", intermediates_only=True
        )
        self._check_features(images, features)
        return self.projection(features)

    def _check(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.in_channels:
            raise ValueError(
                f"images has shape {tuple(images.shape)}: expected (B, {self.in_channels}, H, W); for one image add a"
                " batch axis with images[None]"
            )
        if not images.shape[0]:
            raise ValueError(
                f"images has shape {tuple(images.shape)}: expected at least one image, since most networks of timm "
                "cannot run without; leave the batch out"
            )
        height, width = images.shape[-2:]
        if height % self.downsampling_factor or width % self.downsampling_factor:
            raise ValueError(
                f"images of {height} x {width} pixels cannot be divided by the downsampling factor"
                f" {self.downsampling_factor}: crop or pad both sides to a multiple of it"
            )
        patches: Any = getattr(self.network, "patch_embed", None)
        if getattr(patches, "strict_img_size", False) and (height, width) != tuple(patches.img_size):
            raise ValueError(
                f"images of {height} x {width} pixels: the network is built for {patches.img_size[0]} x"
                f" {patches.img_size[1]}; give arguments={{'img_size': ...}}, or {{'dynamic_img_size': True}} for any"
            )

    def _check_features(self, images: Tensor, features: Tensor) -> None:
        height, width = (side // self.downsampling_factor for side in images.shape[-2:])
        if not torch.compiler.is_compiling() and features.shape[2:] != (height, width):
            raise ValueError(
                f"images of {images.shape[2]} x {images.shape[3]} pixels: layer {self.layer} of {self.name} gives "
                f"{features.shape[2]} x {features.shape[3]} features, not one for {self.downsampling_factor} x "
                f"{self.downsampling_factor} pixels, as timm says of it; take another layer or network"
            )


def published_timm(name: str) -> Any:
    """What timm says of a network: `mean` and `std` of its images, and where its weights are.

    Args:
        name: of the architecture, with or without the tag of its weights.

    Raises:
        ValueError: timm is not installed, or has no such network.
    """
    if importlib.util.find_spec("timm") is None:
        raise ValueError(f'name={name!r}: the package timm is not installed: pip install "vqkit[perceptual]"')
    published = _pretrained(name)
    if published is None:  # also of names such as hf-hub:..., which would be fetched
        raise ValueError(f"name={name!r}: expected a network of timm; timm.list_pretrained('*') has their names")
    return published


def build_timm(name: str, arguments: dict[str, Any], state: dict[str, Tensor] | None) -> Any:
    """A network of timm.

    Args:
        name: see `published_timm`.
        arguments: of its constructor.
        state: weights, with timm's names or those of the original release; None leaves the network new.

    Raises:
        ValueError: `arguments` says where weights are, or how timm builds.
    """
    import timm

    for argument in arguments:
        if argument in inspect.signature(timm.create_model).parameters or argument == "features_only":
            raise ValueError(
                f"arguments={arguments}: expected those of the network's constructor, and {argument!r} is timm's own; "
                "weights=... says where weights come from"
            )
    if state is None:
        return timm.create_model(name, pretrained=False, **arguments)
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, **arguments)


def timm_file(name: str, tag: str | None) -> Path:
    """The published weights of a network, from the hub.

    Args:
        name: see `published_timm`.
        tag: of the weights, in place of that in `name`.

    Raises:
        ValueError: there are none, or they cannot be had.
    """
    published = _pretrained(f"{name.split('.')[0]}.{tag}" if tag else name)
    if published is None or not published.hf_hub_id:
        raise ValueError(f"name={name!r}, tag={tag!r}: timm has no such weights on the hub; give a file, {BY_PATH}")
    return hub_file(published.hf_hub_id, published.hf_hub_filename or "model.safetensors")


def _check_normalizes(name: str) -> None:
    from timm.models import is_model_in_modules

    if is_model_in_modules(name, WITHOUT_NORM):
        raise ValueError(f"name={name!r}: timm gives no normalized features of Hiera; take another network")


def _pretrained(name: str) -> Any:
    """What timm has of pretrained weights; None where it knows no such network or tag."""
    import timm

    try:
        return timm.get_pretrained_cfg(name)
    except RuntimeError:  # a network that it knows, of weights that it does not
        return None


def _of_channels(values: Sequence[float]) -> Tensor:
    """(C, 1, 1)."""
    return torch.tensor(values).reshape(-1, 1, 1)
