"""Convolutional encoder and decoder for images, of the MAGVIT-2 family: no attention, and resampling that is learned.

Beside the VQGANs of `conv2d.py`: residual blocks have no biases, and as many stand in the middle and in each level of
the decoder as in a level of the encoder; convolutions with a stride are padded on all sides; the decoder doubles a map
by depth-to-space; and the latents steer its norms (`AdaptiveGroupNorm2d`).

Source: Yu et al. 2023 (MAGVIT-v2, arXiv:2310.05737), section 3.2; in images as Luo et al. 2024 (Open-MAGVIT2,
arXiv:2409.04410) have it in their code (SEED-Voken), and Zhu et al. 2024 (SimVQ, arXiv:2411.02038), without adaptive
norms.
Differs: residual branches start at zero and adaptive norms as plain ones, which makes a deep model start as a shallow
one. `vqkit.convert` builds the models whose weights are published (`docs/weights.md`).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.backbones.layers2d import (
    Decoder2d,
    Encoder2d,
    Norm,
    ResidualBlock2d,
    check_latents,
    group_norms,
    level_widths,
)
from vqkit.backbones.sizes import check_positive
from vqkit.saving.config import Configured


class MAGVIT2Encoder(Configured, Encoder2d):
    """Images (B, C, H, W) to latents (B, dim, H / f, W / f), with f = 2^(number of levels - 1).

    Args:
        in_channels: C.
        dim: channels of the latents; the quantizer's `dim`.
        channels: width of the first level.
        channel_multipliers: width of each level relative to `channels`; between two levels the map is halved.
        num_res_blocks: residual blocks per level: 4 in Open-MAGVIT2's models, 2 in SimVQ's.
        num_middle_blocks: residual blocks behind the last level; None: `num_res_blocks`.
        norm_groups: groups of each group norm; must divide the width of every level.
        norm_eps: added to each variance.
        dropout: probability inside residual blocks.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if H or W is not a multiple of f.

    Examples:
        >>> encoder = MAGVIT2Encoder(dim=18, channels=32, channel_multipliers=(1, 2), num_res_blocks=1)
        >>> encoder(torch.randn(1, 3, 64, 96)).shape
        torch.Size([1, 18, 32, 48])
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        dim: int,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        num_middle_blocks: int | None = None,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        widths = level_widths(channels, channel_multipliers, norm_groups)
        super().__init__(in_channels, dim, 2 ** (len(widths) - 1))
        norm = group_norms(norm_groups, norm_eps)
        middle = num_res_blocks if num_middle_blocks is None else num_middle_blocks
        check_positive(num_res_blocks=num_res_blocks, num_middle_blocks=middle)
        width = widths[0]
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
        for level, next_width in enumerate(widths):
            if level > 0:
                layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
            layers += _blocks(num_res_blocks, width, next_width, norm, dropout)
            width = next_width
        layers += _blocks(middle, width, width, norm, dropout)
        self.layers = nn.Sequential(*layers, norm(width), nn.SiLU(), nn.Conv2d(width, dim, 1))


class MAGVIT2Decoder(Configured, Decoder2d):
    """Latents (B, dim, h, w) to images (B, C, f h, f w), the mirror of `MAGVIT2Encoder`.

    Arguments and attributes are those of the encoder, in its order (the level nearest to the image first). What
    differs:

    Args:
        out_channels: C.
        num_middle_blocks: residual blocks before the first level that is run.
        adaptive_norm: whether an `AdaptiveGroupNorm2d` of the latents stands before each level, as in MAGVIT-v2 and
            Open-MAGVIT2. SimVQ has none.

    Raises:
        ValueError: if a size is not positive or does not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int = 3,
        dim: int,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 4,
        num_middle_blocks: int | None = None,
        adaptive_norm: bool = True,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        widths = level_widths(channels, channel_multipliers, norm_groups)
        super().__init__(out_channels, dim, 2 ** (len(widths) - 1))
        norm = group_norms(norm_groups, norm_eps)
        middle = num_res_blocks if num_middle_blocks is None else num_middle_blocks
        check_positive(num_res_blocks=num_res_blocks, num_middle_blocks=middle)
        width = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1)]
        layers += _blocks(middle, width, width, norm, dropout)
        for level in reversed(range(len(widths))):
            if adaptive_norm:
                layers.append(AdaptiveGroupNorm2d(width, dim, groups=norm_groups, eps=norm_eps))
            layers += _blocks(num_res_blocks, width, widths[level], norm, dropout)
            width = widths[level]
            if level > 0:
                layers.append(SubpixelUpsample2d(width))
        layers += [norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)]
        self.layers: nn.ModuleList = nn.ModuleList(layers)
        self.output_layer = f"layers.{len(layers) - 1}"

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, f h, f w), about in [-1, 1] and not clipped, of latents (B, dim, h, w)."""
        check_latents(latents, self.dim)
        x = latents
        for layer in self.layers:
            x = layer(x, latents) if isinstance(layer, AdaptiveGroupNorm2d) else layer(x)
        return x


class AdaptiveGroupNorm2d(nn.Module):
    """Group norm whose gain and shift depend on the latents: gain(standard deviation) * norm(x) + shift(mean).

    Mean and standard deviation are those of each channel of the latents over their map, and gain and shift linear maps
    of them: the style of StyleGAN, read off the latents. It starts as a group norm.

    Args:
        channels: width of what is normalised.
        latent_channels: of the latents.
        groups: must divide `channels`.
        eps: added to the variances of x and of the latents.

    Source: Yu et al. 2023 (MAGVIT-v2, arXiv:2310.05737), section 3.2; the statistics are those of Open-MAGVIT2's code,
    with the variance divided by the number of positions less one.
    Differs: the variance of a single position is 0, where that code has NaN.
    """

    def __init__(self, channels: int, latent_channels: int, *, groups: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=eps, affine=False)
        self.gain = nn.Linear(latent_channels, channels)
        self.shift = nn.Linear(latent_channels, channels)
        nn.init.zeros_(self.gain.weight)
        nn.init.ones_(self.gain.bias)
        nn.init.zeros_(self.shift.weight)
        nn.init.zeros_(self.shift.bias)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        """(B, channels, H, W) and latents (B, latent_channels, h, w) to (B, channels, H, W)."""
        latents = latents.to(torch.promote_types(latents.dtype, torch.float32)).flatten(2)
        mean = latents.mean(-1)
        squares = (latents - mean.unsqueeze(-1)).square().sum(-1)
        deviation = (squares / max(latents.shape[-1] - 1, 1) + self.norm.eps).sqrt()
        gain, shift = self.gain(deviation.to(x.dtype)), self.shift(mean.to(x.dtype))
        return gain[..., None, None] * self.norm(x) + shift[..., None, None]


class SubpixelUpsample2d(nn.Module):
    """Doubles the map by a 3x3 convolution to four times the channels, of which each four become 2 x 2 pixels.

    Args:
        channels: width.

    Source: Shi et al. 2016 (arXiv:1609.05158), eq. 4: depth-to-space.
    Differs: the four of a pixel are neighbours, as in `torch.nn.PixelShuffle`. Open-MAGVIT2's code has them a
    quarter of the channels apart, which is the same layer with its outputs in another order.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 4 * channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) to (B, channels, 2 H, 2 W)."""
        return F.pixel_shuffle(self.convolution(x), 2)


def _blocks(number: int, in_channels: int, out_channels: int, norm: Norm, dropout: float) -> list[nn.Module]:
    """Residual blocks without bias, of which the first changes the width."""
    widths = [in_channels] + [out_channels] * number
    return [
        ResidualBlock2d(before, after, norm=norm, dropout=dropout, bias=False) for before, after in pairwise(widths)
    ]
