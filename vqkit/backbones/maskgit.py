"""Encoder and decoder of MaskGIT's VQGAN: convolutions alone, with averages in the place of strides.

Source: Chang et al. 2022 (MaskGIT, https://arxiv.org/abs/2202.04200), sec. 4.1, and its released code. Against the
VQGAN of Esser et al. 2021 (`vqkit.backbones.conv2d`) there is no attention, maps are halved by averages, residual
blocks have no biases, a level of the decoder has as many of them as one of the encoder, and a block between two widths
does not add its input. The released weights are those of `MaskGITVQGAN` (`docs/weights.md`); TiTok
(https://arxiv.org/abs/2406.07550) has them as its teacher, and this decoder behind its own.

Differs: images lie in [-1, 1], as everywhere here, and are mapped to the [0, 1] of the published model in its encoder
and back in its decoder; residual branches start at zero.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from vqkit.backbones.layers2d import (
    Decoder2d,
    Encoder2d,
    Norm,
    ResidualBlock2d,
    Upsample2d,
    group_norms,
    level_widths,
)
from vqkit.backbones.sizes import check_positive
from vqkit.saving.config import Configured


class MaskGITEncoder2d(Configured, Encoder2d):
    """Images (B, C, H, W) to latents (B, dim, H / f, W / f), with f = 2^(number of levels - 1).

    Args:
        in_channels: C.
        dim: channels of the latents; the quantizer's `dim`.
        channels: width of the first level.
        channel_multipliers: width of each level relative to `channels`; between two levels 2 x 2 positions become their
            mean.
        num_res_blocks: residual blocks per level; as many follow after the last level.
        norm_groups: groups of each group norm; must divide the width of every level.
        norm_eps: added to each variance.
        dropout: probability inside residual blocks.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if H or W is not a multiple of f.

    Examples:
        >>> encoder = MaskGITEncoder2d(dim=16, channels=32, channel_multipliers=(1, 2))
        >>> encoder(torch.rand(1, 3, 64, 96) * 2 - 1).shape
        torch.Size([1, 16, 32, 48])
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        dim: int = 256,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        check_positive(num_res_blocks=num_res_blocks)
        widths = level_widths(channels, channel_multipliers, norm_groups)
        super().__init__(in_channels, dim, 2 ** (len(widths) - 1))
        norm = group_norms(norm_groups, norm_eps)
        layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)]
        width = widths[0]
        for level, next_width in enumerate(widths):
            if level > 0:
                layers.append(nn.AvgPool2d(2))
            layers += _blocks(num_res_blocks, width, next_width, norm, dropout)
            width = next_width
        layers += _blocks(num_res_blocks, width, width, norm, dropout)
        layers += [norm(width), nn.SiLU(), nn.Conv2d(width, dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, dim, H / f, W / f) of images (B, C, H, W) in [-1, 1]."""
        return super().forward((images + 1) / 2)


class MaskGITDecoder2d(Configured, Decoder2d):
    """Latents (B, dim, h, w) to images (B, C, f h, f w), the mirror of `MaskGITEncoder2d`.

    Maps are doubled by repetition and a 3x3 convolution. Arguments and attributes are those of the encoder, in its
    order (the level nearest to the image first). What differs:

    Args:
        out_channels: C.
        num_res_blocks: residual blocks per level; as many come first.

    Raises:
        ValueError: if a size is not positive or does not fit.
    """

    def __init__(
        self,
        *,
        out_channels: int = 3,
        dim: int = 256,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        check_positive(num_res_blocks=num_res_blocks)
        widths = level_widths(channels, channel_multipliers, norm_groups)
        super().__init__(out_channels, dim, 2 ** (len(widths) - 1))
        norm = group_norms(norm_groups, norm_eps)
        width = widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(dim, width, 3, padding=1)]
        layers += _blocks(num_res_blocks, width, width, norm, dropout)
        for level in reversed(range(len(widths))):
            layers += _blocks(num_res_blocks, width, widths[level], norm, dropout)
            width = widths[level]
            if level > 0:
                layers.append(Upsample2d(width))
        layers += [norm(width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.output_layer = f"layers.{len(layers) - 1}"

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, C, f h, f w), about in [-1, 1] and not clipped, of latents (B, dim, h, w)."""
        return 2 * super().forward(latents) - 1


class WidthBlock2d(ResidualBlock2d):
    """h + W h with h = convolution(dropout(swish(norm(convolution(swish(norm(x))))))), W a 1x1 convolution.

    The block between two widths as it was released: what is projected and added is the branch, and not x.

    Args:
        in_channels: width before.
        out_channels: width after.
        norm: builds a group norm for a width.
        dropout: probability before the second convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, dropout: float) -> None:
        super().__init__(in_channels, out_channels, norm=norm, dropout=dropout, bias=False)
        self.skip = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.branch[-1].reset_parameters()  # type: ignore[operator]  # at zero nothing would pass through the block

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        branch = self.branch(x)
        return branch + self.skip(branch)


def _blocks(number: int, width: int, next_width: int, norm: Norm, dropout: float) -> list[nn.Module]:
    """Residual blocks, of which the first one changes the width if it has to."""
    blocks: list[nn.Module] = [
        ResidualBlock2d(next_width, next_width, norm=norm, dropout=dropout, bias=False) for _ in range(number)
    ]
    if width != next_width:
        blocks[0] = WidthBlock2d(width, next_width, norm=norm, dropout=dropout)
    return blocks
