"""An encoder whose features several branches read, each of which makes the latents of its own codebook.

Source: Bai et al. 2024 (FQGAN, https://arxiv.org/abs/2411.16681), sec. 3.2, and its released code. The decoder is a
`ConvDecoder2d` of all branches' codes, one after another: `dim` is their sum, and `latent_kernel_size=1` reads them.
The quantizer is a `GroupedQuantizer`, whose groups are the branches (`configs/image/fqgan.yaml`).
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.conv2d import encoder_trunk
from vqkit.backbones.layers2d import Encoder2d, group_norms, level_widths
from vqkit.backbones.positions import LearnedPositions, Positions
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.transformer import SelfAttention, TransformerBlock
from vqkit.saving.config import Configured


class FactorizedEncoder2d(Configured, Encoder2d):
    """Images (B, C, H, W) to the latents of all branches, (B, dim, H / f, W / f), with f = 2^(number of levels - 1).

    A branch is an adapter, then norm, swish, a 3x3 convolution to `latent_channels` and a 1x1 convolution to its
    latents. The features that it reads are those of `ConvEncoder2d` before its last norm.

    Args:
        in_channels: C.
        branch_dims: channels of each branch's latents, in the order of the quantizer's groups; `dim` is their sum.
        image_size: side of the pictures that it is trained with, in pixels; a multiple of f.
        channels: width of the first level.
        channel_multipliers: width of each level relative to `channels`.
        num_res_blocks: see `ConvEncoder2d`.
        attention_factors: see `ConvEncoder2d`.
        attention_heads: see `ConvEncoder2d`; of the convolutional part.
        middle_attention: see `ConvEncoder2d`.
        latent_channels: channels between the two convolutions of a branch.
        adapter_depth: transformer blocks of each adapter.
        adapter_heads: heads of their attention; must divide the width of the last level.
        positions: builds what adds positions to the tokens of an adapter. The published ones know one size of pictures;
            `InterpolatedPositions` reads the same weights, and takes all.
        norm_groups: groups of each group norm; must divide the width of every level.
        norm_eps: added to each variance of a group norm.
        dropout: probability inside residual blocks.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if H or W is not a multiple of f, or of
            another size than the positions know.

    Examples:
        >>> encoder = FactorizedEncoder2d(image_size=32, channels=32, channel_multipliers=(1, 2), adapter_depth=1)
        >>> encoder(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 16, 16, 16])
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        branch_dims: Sequence[int] = (8, 8),
        image_size: int = 256,
        channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (),
        attention_heads: int | None = None,
        middle_attention: bool | None = None,
        latent_channels: int = 256,
        adapter_depth: int = 6,
        adapter_heads: int = 8,
        positions: Positions = LearnedPositions,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ) -> None:
        check_positive(image_size=image_size, latent_channels=latent_channels)
        if not branch_dims or min(branch_dims) < 1:
            raise ValueError(f"branch_dims={branch_dims!r}: expected a positive number for each branch, such as (8, 8)")
        widths = level_widths(channels, channel_multipliers, norm_groups)
        norm = group_norms(norm_groups, norm_eps)
        super().__init__(in_channels, sum(branch_dims), 2 ** (len(widths) - 1))
        if image_size % self.downsampling_factor:
            raise ValueError(f"image_size={image_size}: expected a multiple of the factor {self.downsampling_factor}")
        layers = encoder_trunk(
            in_channels,
            widths,
            num_res_blocks=num_res_blocks,
            attention_factors=attention_factors,
            attention_heads=attention_heads,
            middle_attention=middle_attention,
            patch_size=1,
            norm=norm,
            dropout=dropout,
        )
        self.layers = nn.Sequential(*layers)
        width, side = widths[-1], image_size // self.downsampling_factor
        self.branches = nn.ModuleList(
            nn.Sequential(
                TransformerAdapter2d(
                    width, (side, side), depth=adapter_depth, num_heads=adapter_heads, positions=positions
                ),
                norm(width),
                nn.SiLU(),
                nn.Conv2d(width, latent_channels, 3, padding=1),
                nn.Conv2d(latent_channels, dim, 1),
            )
            for dim in branch_dims
        )

    def forward(self, images: Tensor) -> Tensor:
        """Latents (B, dim, H / f, W / f), branch after branch, of images (B, C, H, W) in [-1, 1]."""
        features = super().forward(images)
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class TransformerAdapter2d(nn.Module):
    """A transformer on a map whose positions are its tokens: (B, channels, h, w) to the same.

    Positions are added, then there is a layer norm, the blocks, and another layer norm; nothing goes past it.

    Args:
        channels: width.
        grid_size: (h, w) of the training.
        depth: number of blocks.
        num_heads: must divide `channels`.
        positions: builds what adds positions to the tokens.

    Raises:
        ValueError: if a size is not positive or does not fit; in `forward` if the map has another size than the
            positions know.
    """

    def __init__(
        self,
        channels: int,
        grid_size: Sequence[int],
        *,
        depth: int = 6,
        num_heads: int = 8,
        positions: Positions = LearnedPositions,
    ) -> None:
        super().__init__()
        check_positive(adapter_depth=depth)
        self.positions = positions(channels, grid_size)
        self.blocks = nn.Sequential(
            nn.LayerNorm(channels),
            *(TransformerBlock(channels, SelfAttention(channels, num_heads=num_heads)) for _ in range(depth)),
            nn.LayerNorm(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to the same."""
        height, width = features.shape[-2:]
        tokens = self.positions(rearrange(features, "b c h w -> b h w c"))
        return rearrange(self.blocks(tokens.flatten(1, 2)), "b (h w) c -> b c h w", h=height, w=width)
