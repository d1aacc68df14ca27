"""Convolutional encoder and decoder for images, of the VQGAN family, with patchified stems.

Source: Esser, Rombach, Ommer 2021 (arXiv:2012.09841), appendix, table 7: residual blocks of group norm, swish and 3x3
convolution; strided convolution downwards, nearest neighbour and convolution upwards; attention at coarse maps.
Differs: attention is listed by downsampling factor, not by the size of a map, so that one model takes images of any
size, and has heads of up to 64 channels (published: `attention_heads=1`); residual branches start at zero, and so does
attention, which makes a deep model start as a shallow one; two additions, `patch_size` and `linear_path`, make small
models quick to train. `vqkit.convert` builds the models whose weights are published (`docs/weights.md`).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from vqkit.backbones.layers2d import (
    Attention2d,
    Decoder2d,
    Downsample2d,
    Encoder2d,
    Norm,
    ResidualBlock2d,
    Upsample2d,
    group_norms,
    level_widths,
    zero,
)
from vqkit.backbones.sizes import check_positive
from vqkit.precision import widest_dtype
from vqkit.saving.config import Configured


class ConvEncoder2d(Configured, Encoder2d):
    """Images (B, C, H, W) to latents (B, dim, H / f, W / f), with f = patch_size * 2^(number of levels - 1).

    Args:
        in_channels: C.
        dim: channels of the latents; the quantizer's `dim`.
        channels: width of the first level.
        channel_multipliers: width of each level relative to `channels`; between two levels the map is halved.
        num_res_blocks: residual blocks per level; two more follow after the last level.
        attention_factors: downsampling factors, counted from the image, at which each residual block is followed by
            self-attention (what others list as attention resolutions).
        attention_heads: of each self-attention; None: as many as heads of up to 64 channels need. 1 as published.
        middle_attention: whether self-attention stands between the two last blocks; None: if the last level's factor is
            listed. True in taming-transformers, whatever is listed.
        patch_size: p; the image is first rearranged to p x p patches of C p^2 channels. 1 is the published model.
        linear_path: add a linear projection of each f x f patch to the latents and start the convolutions at zero.
            Training then starts from a truncated cosine transform of the patches, which is close to their principal
            components, instead of from noise. Give the decoder the same.
        latent_kernel_size: odd size of one more convolution, behind all others: `quant_conv` of the published models,
            1, or 3 in VAR. None: there is none.
        latent_channels: channels between it and the others; None: `dim`.
        norm_groups: groups of each group norm; must divide the width of every level.
        norm_eps: added to each variance: 1e-6 as in the released models; tokenizers of vqkit 0.1 had 1e-5, which moves
            the latents of a nearly uniform image by up to a hundredth.
        dropout: probability inside residual blocks.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if H or W is not a multiple of f.

    Examples:
        >>> encoder = ConvEncoder2d(dim=16, channels=32, channel_multipliers=(1, 2), patch_size=2)
        >>> encoder(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 16, 16, 24])
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        dim: int,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        attention_heads: int | None = None,
        middle_attention: bool | None = None,
        latent_kernel_size: int | None = None,
        latent_channels: int | None = None,
        patch_size: int = 1,
        linear_path: bool = False,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        widths = level_widths(channels, channel_multipliers, norm_groups)
        super().__init__(in_channels, dim, patch_size * 2 ** (len(widths) - 1))
        norm = group_norms(norm_groups, norm_eps)
        inner = _latent_channels(dim, latent_channels, latent_kernel_size)
        layers = encoder_trunk(
            in_channels,
            widths,
            num_res_blocks=num_res_blocks,
            attention_factors=attention_factors,
            attention_heads=attention_heads,
            middle_attention=middle_attention,
            patch_size=patch_size,
            norm=norm,
            dropout=dropout,
        )
        width = widths[-1]
        layers += [norm(width), nn.SiLU(), nn.Conv2d(width, inner, 3, padding=1)]
        if latent_kernel_size is not None:
            layers.append(nn.Conv2d(inner, dim, latent_kernel_size, padding=latent_kernel_size // 2))
        self.layers = nn.Sequential(*layers)
        self.linear = None
        if linear_path:
            factor = self.downsampling_factor
            self.linear = _linear_path(nn.Conv2d(in_channels, dim, factor, stride=factor))
            zero(layers[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, dim, H / f, W / f) of images (B, C, H, W) in [-1, 1]."""
        latents = super().forward(images)
        return latents if self.linear is None else latents + self.linear(images)


class ConvDecoder2d(Configured, Decoder2d):
    """Latents (B, dim, h, w) to images (B, C, f h, f w), the mirror of `ConvEncoder2d`.

    Arguments and attributes are those of the encoder, in its order (the level nearest to the image first). What
    differs:

    Args:
        out_channels: C.
        num_res_blocks: one less than the residual blocks per level, as in the published model; two more come first.
        latent_kernel_size: of a convolution in front of all others, `post_quant_conv` of the published models.

    Raises:
        ValueError: if a size is not positive or does not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int = 3,
        dim: int,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        attention_heads: int | None = None,
        middle_attention: bool | None = None,
        latent_kernel_size: int | None = None,
        latent_channels: int | None = None,
        patch_size: int = 1,
        linear_path: bool = False,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        widths = level_widths(channels, channel_multipliers, norm_groups)
        factors = _factors(len(widths), patch_size, attention_factors)
        super().__init__(out_channels, dim, factors[-1])
        norm = group_norms(norm_groups, norm_eps)
        attention = partial(Attention2d, norm=norm, heads=attention_heads)
        check_positive(num_res_blocks=num_res_blocks)
        inner = _latent_channels(dim, latent_channels, latent_kernel_size)
        width = widths[-1]
        layers: list[nn.Module] = []
        if latent_kernel_size is not None:
            layers.append(nn.Conv2d(dim, inner, latent_kernel_size, padding=latent_kernel_size // 2))
        layers.append(nn.Conv2d(inner, width, 3, padding=1))
        in_middle = factors[-1] in attention_factors if middle_attention is None else middle_attention
        layers += _middle(width, attention if in_middle else None, norm, dropout)
        for level in reversed(range(len(widths))):
            for _ in range(num_res_blocks + 1):
                layers.append(ResidualBlock2d(width, widths[level], norm=norm, dropout=dropout))
                width = widths[level]
                if factors[level] in attention_factors:
                    layers.append(attention(width))
            if level > 0:
                layers.append(Upsample2d(width))
        output = nn.Conv2d(width, out_channels * patch_size**2, 3, padding=1)
        layers += [norm(width), nn.SiLU(), output, nn.PixelShuffle(patch_size)]
        self.layers = nn.Sequential(*layers)
        self.output_layer = f"layers.{layers.index(output)}"
        self.linear = None
        if linear_path:
            factor = self.downsampling_factor
            self.linear = _linear_path(nn.ConvTranspose2d(dim, out_channels, factor, stride=factor))
            zero(output)

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, f h, f w), about in [-1, 1] and not clipped, of latents (B, dim, h, w)."""
        images = super().forward(latents)
        return images if self.linear is None else images + self.linear(latents)


def encoder_trunk(
    in_channels: int,
    widths: Sequence[int],
    *,
    num_res_blocks: int,
    attention_factors: Sequence[int],
    attention_heads: int | None,
    middle_attention: bool | None,
    patch_size: int,
    norm: Norm,
    dropout: float,
) -> list[nn.Module]:
    """Layers from images (B, in_channels, H, W) to features (B, widths[-1], H / f, W / f), without the last norm.

    Args:
        in_channels: of the images.
        widths: of the levels, that of the image first.
        num_res_blocks: see `ConvEncoder2d`, as all that follow.
        attention_factors: which levels attend.
        attention_heads: of each attention.
        middle_attention: between the last two blocks.
        patch_size: of the image.
        norm: builds a norm for a width.
        dropout: in residual blocks.

    Raises:
        ValueError: a size is not positive, or a factor is not that of a level.
    """
    check_positive(num_res_blocks=num_res_blocks)
    factors = _factors(len(widths), patch_size, attention_factors)
    attention = partial(Attention2d, norm=norm, heads=attention_heads)
    layers: list[nn.Module] = [
        nn.PixelUnshuffle(patch_size),
        nn.Conv2d(in_channels * patch_size**2, widths[0], 3, padding=1),
    ]
    width = widths[0]
    for level, (next_width, factor) in enumerate(zip(widths, factors, strict=True)):
        if level > 0:
            layers.append(Downsample2d(width))
        for _ in range(num_res_blocks):
            layers.append(ResidualBlock2d(width, next_width, norm=norm, dropout=dropout))
            width = next_width
            if factor in attention_factors:
                layers.append(attention(width))
    in_middle = factors[-1] in attention_factors if middle_attention is None else middle_attention
    return layers + _middle(width, attention if in_middle else None, norm, dropout)


def cosine_basis(dim: int, channels: int, patch_size: int) -> Tensor:
    """Orthonormal basis of patches, those that matter most in photographs first: the three-dimensional DCT-II.

    Over the colours it gives the grey value and two opponent colours. Flat patches come first; of the others, the
    variance is taken to fall with the square of the spatial frequency and eightfold with each step of colour.

    Args:
        dim: number of basis patches.
        channels: C.
        patch_size: p.

    Returns:
        (dim, C, p, p); rows beyond C p^2 are 0.

    Source: Ahmed, Natarajan, Rao 1974, "Discrete cosine transform" (https://doi.org/10.1109/T-C.1974.223784): close to
    the principal components of smooth data.
    """
    colour, space = _dct(channels), _dct(patch_size)
    axes = itertools.product(range(channels), range(patch_size), range(patch_size))
    order = sorted(axes, key=lambda axis: ((axis[1] ** 2 + axis[2] ** 2) * 8 ** axis[0], axis))[:dim]
    basis = torch.zeros(dim, channels, patch_size, patch_size)
    for row, (c, v, u) in enumerate(order):
        basis[row] = torch.einsum("c,v,u->cvu", colour[c], space[v], space[u])
    return basis


def _linear_path(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Conv2d | nn.ConvTranspose2d:
    """`layer`, started as the first terms of the cosine transform of each patch, or as its inverse."""
    with torch.no_grad():
        layer.weight.copy_(cosine_basis(*layer.weight.shape[:3]))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


def _dct(size: int) -> Tensor:
    dtype = widest_dtype(torch.get_default_device())
    positions = (torch.arange(size, dtype=dtype) + 0.5) * math.pi / size
    rows = torch.cos(torch.arange(size, dtype=dtype)[:, None] * positions)
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def _middle(width: int, attention: Callable[[int], nn.Module] | None, norm: Norm, dropout: float) -> list[nn.Module]:
    blocks: list[nn.Module] = [ResidualBlock2d(width, width, norm=norm, dropout=dropout) for _ in range(2)]
    if attention is not None:
        blocks.insert(1, attention(width))
    return blocks


def _latent_channels(dim: int, latent_channels: int | None, kernel_size: int | None) -> int:
    """Channels on the inner side of the convolution next to the quantizer."""
    if latent_channels is None:
        latent_channels = dim
    elif kernel_size is None:
        raise ValueError(
            f"latent_channels={latent_channels}: latent_kernel_size=None has no convolution from these to dim={dim}; "
            "set it to 1"
        )
    check_positive(latent_channels=latent_channels)
    if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
        raise ValueError(
            f"latent_kernel_size={kernel_size}: expected an odd number, 1 or 3, or None for no convolution"
        )
    return latent_channels


def _factors(levels: int, patch_size: int, attention_factors: Sequence[int]) -> list[int]:
    """Downsampling factor of each level, image first."""
    check_positive(patch_size=patch_size)
    factors = [patch_size * 2**level for level in range(levels)]
    for factor in attention_factors:
        if factor not in factors:
            raise ValueError(f"attention_factors={attention_factors!r}: {factor} is no factor of a level {factors}")
    return factors
