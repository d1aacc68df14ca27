"""Noise that a decoder shapes: what it cannot know of a sound, such as the breath of a voice, it draws."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from vqkit.backbones.sizes import check_positive

Module = TypeVar("Module", bound=nn.Module)


class NoiseInjection1d(nn.Module):
    """x + n * map(x), of white noise n from N(0, 1) that all channels share, and a linear map of each time step.

    Noise is added in training, and in evaluation inside of `injected_noise` alone.

    Args:
        channels: width.

    Source: Siuzdak et al. 2024 (SNAC, arXiv:2410.14411), sec. 3, "noise block".
    Differs: SNAC adds noise in evaluation too, so that no two calls of its decoder give the same sound. Here a sound
    follows from its indices; without noise it is the mean over n of the first such layer's outputs.

    Raises:
        ValueError: if `channels` is not positive.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check_positive(channels=channels)
        self.map = weight_norm(nn.Conv1d(channels, channels, 1, bias=False))
        self.injects = False
        self.generator: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, T) to the same."""
        if not (self.training or self.injects):
            return x
        generator = self.generator if self.injects else None
        noise = torch.randn(x.shape[0], 1, x.shape[-1], generator=generator, device=x.device, dtype=x.dtype)
        return x + noise * self.map(x)


@contextmanager
def injected_noise(module: Module, generator: torch.Generator | None = None) -> Iterator[Module]:
    """Context in which the noise layers of a module in eval mode add noise.

        >>> with injected_noise(codec, torch.Generator().manual_seed(0)):  # doctest: +SKIP
        ...     sound = codec.decode(indices)

    Layers draw in the order in which they are run, as SNAC does, so that the same seed gives its noise. Of blocks
    (`decode_blocks`) each draws its own; what the blocks share is drawn anew, and the sound is another draw of the same
    law.

    Args:
        module: a decoder, or a tokenizer with one.
        generator: on the device of the module; None for that of torch.

    Yields:
        The module.

    Raises:
        ValueError: if no layer of it adds noise.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, NoiseInjection1d)]
    if not layers:
        raise ValueError(f"{type(module).__name__} has no NoiseInjection1d: expected a decoder that adds noise")
    before = [(layer.injects, layer.generator) for layer in layers]
    for layer in layers:
        layer.injects, layer.generator = True, generator
    try:
        yield module
    finally:
        for layer, (injects, own) in zip(layers, before, strict=True):
            layer.injects, layer.generator = injects, own
