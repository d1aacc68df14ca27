"""Positions of tokens on a grid, as parts: what is added to tokens (B, h, w, channels), and what other grids get.

| part | another grid than that of the training |
|---|---|
| `LearnedPositions` | is refused: the published tokenizers know one size |
| `InterpolatedPositions` | the learned table is resized |
| `SinCosPositions` | the waves go on |
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqkit.backbones.sizes import check_positive
from vqkit.saving.config import Configured

Positions = Callable[[int, Sequence[int]], nn.Module]
"""Builds what adds positions to tokens (B, h, w, channels), for channels and the grid (h, w) of the training."""


class LearnedPositions(Configured, nn.Module):
    """A trained vector for each place of one grid, and of no other.

    Args:
        channels: of the tokens.
        grid_size: (h, w), in tokens.

    Attributes:
        table: these vectors, (h, w, channels).

    Raises:
        ValueError: if a size is not positive; in `forward` if the tokens are on another grid.
    """

    def __init__(self, channels: int, grid_size: Sequence[int]) -> None:
        super().__init__()
        height, width = grid_size
        check_positive(channels=channels, height=height, width=width)
        self.table = nn.Parameter(nn.init.normal_(torch.empty(height, width, channels), std=0.02))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, channels) to the same."""
        if tokens.shape[1:3] != self.table.shape[:2]:
            (height, width), (rows, columns) = tokens.shape[1:3], self.table.shape[:2]
            raise ValueError(
                f"a grid of {height} x {width} patches: positions were learned for {rows} x {columns}; resize or crop"
                " the images to that many patches, tile larger ones (vqkit.Tiles), or build encoder and decoder with"
                " positions=InterpolatedPositions, which reads the same weights"
            )
        return tokens + self.table


class InterpolatedPositions(LearnedPositions):
    """The same, with the table resized for other grids by bicubic interpolation (Keys' kernel with -0.75).

    Source: Dosovitskiy et al. 2020 (ViT, arXiv:2010.11929), sec. 3.2, for fine-tuning at a higher resolution.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, channels) to the same, for any h and w."""
        if tokens.shape[1:3] == self.table.shape[:2]:
            return tokens + self.table
        size = (tokens.shape[1], tokens.shape[2])
        maps = F.interpolate(self.table.permute(2, 0, 1)[None], size, mode="bicubic", align_corners=False)
        return tokens + maps[0].permute(1, 2, 0)


class SinCosPositions(Configured, nn.Module):
    """Sines and cosines of column and row, with wavelengths from 2 pi to 10,000 times that; nothing is trained.

    The first half of the channels is of the column, the second of the row: for each the sines of all frequencies and
    then the cosines.

    Args:
        channels: of the tokens; a multiple of 4.
        grid_size: not needed, taken since every positions part is.

    Raises:
        ValueError: if `channels` is no multiple of 4.

    Source: Chen, Xie, He 2021 (MoCo v3, arXiv:2104.02057), sec. 5, after Vaswani et al. 2017 (arXiv:1706.03762).
    """

    def __init__(self, channels: int, grid_size: Sequence[int]) -> None:
        super().__init__()
        if channels < 1 or channels % 4:
            raise ValueError(f"channels={channels}: expected a multiple of 4, a sine and a cosine for each of two axes")

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, h, w, channels) to the same, for any h and w."""
        height, width, channels = tokens.shape[1:]
        columns = _waves(width, channels // 2, tokens).expand(height, -1, -1)
        rows = _waves(height, channels // 2, tokens)[:, None].expand(-1, width, -1)
        return tokens + torch.cat([columns, rows], -1).to(tokens.dtype)


def _waves(length: int, channels: int, like: Tensor) -> Tensor:
    """(length, channels): sines, then cosines, of the places along one axis."""
    precision = torch.promote_types(like.dtype, torch.float32)
    places = torch.arange(length, device=like.device, dtype=precision)
    half = channels // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=like.device, dtype=precision) / half)
    angles = places[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], -1)
