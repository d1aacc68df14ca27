"""Layers of convolutional encoders and decoders for images, and the checks of their sizes."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.sizes import check_positive

Norm = Callable[[int], nn.Module]
"""Builds a norm for a number of channels."""


class Encoder2d(nn.Module):
    """An encoder of pictures: images (B, C, H, W) in [-1, 1] to latents (B, dim, H / f, W / f), by its `layers`.

    Attributes:
        in_channels: C.
        dim: channels of the latents.
        channel_dim: 1, their axis.
        downsampling_factor: f.
    """

    channel_dim = 1
    layers: nn.Module

    def __init__(self, in_channels: int, dim: int, downsampling_factor: int) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, dim=dim)
        self.in_channels = in_channels
        self.dim = dim
        self.downsampling_factor = downsampling_factor

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, dim, H / f, W / f) of images (B, C, H, W) in [-1, 1]."""
        check_images(images, self.in_channels, self.downsampling_factor)
        return self.layers(images)


class Decoder2d(nn.Module):
    """A decoder of pictures: latents (B, dim, h, w) to images (B, C, f h, f w), by its `layers`.

    Attributes:
        out_channels: C.
        dim: channels of the latents.
        channel_dim: 1, their axis.
        downsampling_factor: f.
        output_layer: name of the layer, beside a linear path, that gives the images.
    """

    channel_dim = 1
    layers: nn.Module
    output_layer: str

    def __init__(self, out_channels: int, dim: int, downsampling_factor: int) -> None:
        super().__init__()
        check_positive(out_channels=out_channels, dim=dim)
        self.out_channels = out_channels
        self.dim = dim
        self.downsampling_factor = downsampling_factor

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, f h, f w), about in [-1, 1] and not clipped, of latents (B, dim, h, w)."""
        check_latents(latents, self.dim)
        return self.layers(latents)


class ResidualBlock2d(nn.Module):
    """x + convolution(dropout(swish(norm(convolution(swish(norm(x))))))).

    Where the widths differ, a 1x1 convolution takes x to the new one. The branch starts at zero.

    Args:
        in_channels: width before.
        out_channels: width after.
        norm: builds a group norm for a width.
        dropout: probability before the second convolution.
        bias: whether the convolutions have one; none in MAGVIT-2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, norm: Norm, dropout: float = 0.0, bias: bool = True
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            norm(in_channels),
            nn.SiLU(),
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias),
            norm(out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias),
        )
        zero(self.branch[-1])
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.skip(x) + self.branch(x)


class Attention2d(nn.Module):
    """x + self-attention over all positions of the map; time and not memory grows with (H W)^2.

    Args:
        channels: width.
        norm: builds a group norm for a width.
        heads: among which it is split; None: heads of the largest size up to 64 that divides both it and 64.
    """

    def __init__(self, channels: int, *, norm: Norm, heads: int | None = None) -> None:
        super().__init__()
        if heads is not None and (heads < 1 or channels % heads):
            raise ValueError(
                f"attention_heads={heads}: expected a divisor of the width {channels} of a level, such as 1"
            )
        self.num_heads = channels // math.gcd(channels, 64) if heads is None else heads
        self.norm = norm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.output = nn.Conv2d(channels, channels, 1)
        zero(self.output)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to the same."""
        height, width = x.shape[-2:]
        maps = self.query_key_value(self.norm(x))
        query, key, value = rearrange(maps, "b (three n c) h w -> three b n (h w) c", three=3, n=self.num_heads)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.output(rearrange(attended, "b n (h w) c -> b (n c) h w", h=height, w=width))


class Downsample2d(nn.Module):
    """Halves the map by a 3x3 convolution of stride 2, padded at the right and the bottom only, as published.

    Args:
        channels: width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels, H / 2, W / 2)."""
        return self.convolution(F.pad(x, (0, 1, 0, 1)))


class Upsample2d(nn.Module):
    """Doubles the map by repetition and a 3x3 convolution.

    Args:
        channels: width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels, 2 H, 2 W)."""
        return self.convolution(F.interpolate(x, scale_factor=2, mode="nearest"))


def group_norms(groups: int, eps: float) -> Norm:
    """Builds group norms with `groups` groups and `eps` added to each variance.

    Raises:
        ValueError: `eps` is not positive.
    """
    if not 0 < eps < math.inf:
        raise ValueError(f"norm_eps={eps}: expected a positive number, 1e-6 in the released models")
    return partial(nn.GroupNorm, groups, eps=eps)


def level_widths(channels: int, multipliers: Sequence[int], norm_groups: int) -> list[int]:
    """Width of each level, image first.

    Raises:
        ValueError: a number is not positive, or a width is no multiple of `norm_groups`.
    """
    check_positive(channels=channels, norm_groups=norm_groups)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(
            f"channel_multipliers={multipliers!r}: expected a positive number per level, such as (1, 2, 4)"
        )
    widths = [channels * multiplier for multiplier in multipliers]
    for width in widths:
        if width % norm_groups:
            raise ValueError(
                f"norm_groups={norm_groups} does not divide the width {width} of a level: choose channels={channels} as"
                " a multiple of it, or fewer groups"
            )
    return widths


def check_images(images: Tensor, in_channels: int, factor: int, *, divided: str = "by the downsampling factor") -> None:
    """Refuse images that are not (B, `in_channels`, H, W) with sides that are multiples of `factor`."""
    if images.ndim != 4 or images.shape[1] != in_channels:
        raise ValueError(
            f"images has shape {tuple(images.shape)}: expected (B, {in_channels}, H, W); for one image add a batch axis"
            " with images[None], for another number of channels set in_channels"
        )
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be divided {divided} {factor}: crop or pad both sides to a"
            " multiple of it"
        )


def check_latents(latents: Tensor, dim: int) -> None:
    """Refuse latents that are not (B, `dim`, h, w)."""
    if latents.ndim != 4 or latents.shape[1] != dim:
        raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {dim}, h, w)")


def zero(layer: nn.Module) -> None:
    """Set all parameters of a layer to 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
