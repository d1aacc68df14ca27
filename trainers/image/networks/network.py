"""A network that is used and never trained."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.core.evaluation import new_tensors_in_float32
from trainers.core.held import HeldModule
from trainers.image.networks.resizing import BilinearResize
from vqkit.precision import FullPrecisionModule
from vqkit.runtime import autocast_disabled
from vqkit.saving.files import named
from vqkit.saving.weights import Weights, read_state, sha256_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of RGB in [0, 1], by which torchvision's networks normalize."""


class FrozenNetwork(HeldModule["_Held"]):
    """Features of images by a pretrained network, at named layers or at its end; gradients reach the images.

    It is a `HeldModule`, and stays in float32 where a model of 16 bits is trained, and under autocast. It is built with
    random numbers of its own, so that a model that is built after it starts as without it.

    Only what the layers need is run and kept. Derived classes say how to build the network and how to get its weights.

    Args:
        build: makes the network from its state dict; from None with whatever numbers its constructor draws.
        weights: where they come from.
        download: see `Weights.find`.
        layers: names of submodules (`get_submodule`), in any order; none for the output of the network itself, such as
            logits. Of a submodule that runs several times the first output counts.
        resize: of the images, before they are normalized; None takes them as they come.
        normalization: means and standard deviations of the channels, for images in [0, 1].

    Attributes:
        file: the weights; None for those of `RandomWeights`.

    Raises:
        ValueError: weights cannot be had or do not fit, or there is no such layer or its output is of no use.
    """

    def __init__(
        self,
        build: Callable[[dict[str, Tensor] | None], nn.Module],
        *,
        weights: Weights,
        download: Callable[[str | None], Path],
        layers: Sequence[str] = (),
        resize: BilinearResize | None = None,
        normalization: tuple[Sequence[float], Sequence[float]] = IMAGENET,
    ) -> None:
        layers, file = tuple(layers), weights.find(download)
        # Also inside of a measurement, or where Lightning makes a model's dtype the default.
        with torch.inference_mode(False), new_tensors_in_float32():
            with torch.random.fork_rng(devices=[]), named(file) if file else nullcontext():
                torch.default_generator.manual_seed(weights.seed)  # those of GPUs stay as they are
                network = build(read_state(file) if file else None)
            super().__init__(_Held(network, layers, normalization))
            self.file = file
            self.layers = layers
            self.resize = resize
            self._try_out()

    @property
    def sha256(self) -> str | None:
        """Of the file with the weights, in hexadecimal; None for random ones."""
        return sha256_of(self.file) if self.file else None

    def record(self) -> dict[str, Any]:
        """What has to be equal for figures by it to be compared."""
        return {
            "network": f"{type(self).__name__}, {type(self.held.network).__name__.lstrip('_')}",
            "weights": self.file.name if self.file else "random numbers",
            "sha256": self.sha256,
            "layers": list(self.layers) or "output",
            "resize": str(self.resize),
        }

    def forward(self, images: Tensor) -> list[Tensor]:
        """The features.

        Args:
            images: (B, 3, H, W) in [-1, 1], or (B, 1, H, W) of which all channels become one.

        Returns:
            one tensor (B, ...) for each of `layers`, in their order; without layers the output alone. float32, float64
            where the model is.

        Raises:
            ValueError: `images` has another number of axes or channels.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(f"images have shape {tuple(images.shape)}: expected (batch, 3 or 1, height, width)")
        with autocast_disabled(images.device):
            return self.held(images if self.resize is None else self.resize(images))

    @torch.no_grad()
    def _try_out(self) -> None:
        """Run once, to find out what is wrong with the layers now and not at the first step, and what is unused."""
        size = self.resize.resolution if self.resize else 224
        network = self.held.network
        ran: set[nn.Module] = set()
        versions: dict[nn.Module, int] = {}

        def note(part: nn.Module, _: Any, output: Any) -> None:
            versions.setdefault(part, _version(output))

        hooks = [part.register_forward_pre_hook(lambda part, _: ran.add(part)) for part in network.modules()]
        hooks += [network.get_submodule(name).register_forward_hook(note) for name in self.layers]
        try:
            outputs = self(torch.zeros(1, 3, size, size))
        finally:
            for hook in hooks:
                hook.remove()
        for name, output in zip(self.layers or ("",), outputs, strict=True):
            if not isinstance(output, Tensor) or output.ndim < 2:
                kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise ValueError(
                    f"layer {name!r} of {network.__class__.__name__} gives {kind}: expected a tensor (B, ...)"
                )
            if name and _version(output) != versions[network.get_submodule(name)]:
                raise ValueError(f"layer {name!r} is overwritten by the next one: name that one instead")
        for part in network.children() if self.layers else ():
            if ran.isdisjoint(part.modules()):
                for module in part.modules():
                    for name in {**module._parameters, **module._buffers}:
                        setattr(module, name, None)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        network = type(self.held.network).__name__
        return f"{network}, file={self.file}, layers={self.layers}, resize={self.resize}"


def _version(output: Any) -> int:
    """How often a tensor was written to."""
    return output._version if isinstance(output, Tensor) else 0


class _AllFound(Exception):
    """Every layer has run: the rest of the network is not needed."""


class _Held(FullPrecisionModule):
    """The network with its normalization, outside of all modules."""

    def __init__(self, network: nn.Module, layers: tuple[str, ...], normalization: Any) -> None:
        super().__init__()
        names = {name for name, _ in network.named_modules()}
        for layer in layers:
            if layer not in names:
                near = ", ".join(sorted(name for name in names if name and name.count(".") <= layer.count(".")))
                raise ValueError(f"layers: {type(network).__name__} has no {layer!r}; it has {near}")
        for part in network.modules():
            if hasattr(part, "inplace"):
                vars(part)["inplace"] = False  # the features of the layer before would be overwritten
        self.network = network
        self.layers = layers
        mean, deviation = (torch.tensor(values).reshape(-1, 1, 1) for values in normalization)
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", deviation)
        self.mean: Tensor
        self.deviation: Tensor

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, C, H, W) in [-1, 1] -> features."""
        images = ((images.to(self.mean.dtype) + 1) / 2 - self.mean) / self.deviation
        if not self.layers:
            return [self.network(images)]
        found: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            found.setdefault(name, output)
            if len(found) == len(self.layers):
                raise _AllFound

        hooks = [
            self.network.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
            for name in self.layers
        ]
        try:
            self.network(images)
        except _AllFound:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        if silent := [name for name in self.layers if name not in found]:
            raise ValueError(f"layers {silent} of {type(self.network).__name__} do not run: name those around them")
        return [found[name] for name in self.layers]
