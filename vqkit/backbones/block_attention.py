"""Attention within consecutive windows of frames, which share nothing, as in SNAC."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.frame_transformer import rotate
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.temporal import Interval


class BlockAttention1d(nn.Module):
    """x + attention(norm(x)), in which each frame sees those of its own window, with rotary positions.

    Windows are counted from the first frame. The last one of a recording may have fewer frames.

    Args:
        channels: width.
        window_frames: frames of a window.
        head_channels: of each head; an even divisor of `channels`.

    Source: Siuzdak et al. 2024 (SNAC, arXiv:2410.14411), sec. 3, "local windowed attention", and its released code:
    one layer, 64 channels for each head, positions as in `frame_transformer.rotate`.
    Differs: SNAC takes whole windows alone, and fills recordings up to them (`AudioTokenizer` does, too).

    Raises:
        ValueError: if a size is not positive or does not fit.
    """

    def __init__(self, channels: int, *, window_frames: int = 32, head_channels: int = 64) -> None:
        super().__init__()
        check_positive(channels=channels, window_frames=window_frames, head_channels=head_channels)
        if channels % head_channels or head_channels % 2:
            raise ValueError(f"head_channels={head_channels}: expected an even divisor of the width {channels}")
        self.window_frames = window_frames
        self.num_heads = channels // head_channels
        self.norm = nn.LayerNorm(channels)
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        frames = x.shape[-1]
        filled = F.pad(self.norm(x.mT), (0, 0, 0, -frames % self.window_frames))
        maps = rearrange(
            self.query_key_value(filled),
            "b (n w) (three h d) -> three (b n) h w d",
            three=3,
            w=self.window_frames,
            h=self.num_heads,
        )
        places = torch.arange(self.window_frames, device=x.device)
        windows = filled.shape[1] // self.window_frames
        starts = torch.arange(windows, device=x.device) * self.window_frames
        exists = (starts[:, None] + places < frames)[:, None, None].repeat(x.shape[0], 1, 1, 1)
        attended = F.scaled_dot_product_attention(
            rotate(maps[0], places), rotate(maps[1], places), maps[2], attn_mask=exists
        )
        joined = rearrange(attended, "(b n) h w d -> b (n w) (h d)", n=windows)
        return x + self.output(joined[:, :frames]).mT

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend, wherever windows begin."""
        return first - (self.window_frames - 1), last + (self.window_frames - 1)
