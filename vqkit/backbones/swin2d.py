"""Transformer blocks that attend inside of small windows of a map (Swin), for maps of any size.

Source: Liu et al. 2021 (Swin, arXiv:2103.14030), sec. 3.2, over frequency and time as in Gu, Diao 2024 (ESC,
arXiv:2404.19441), sec. 3. The second axis of a map is time, and may be cut anywhere; see `WindowAttention2d`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.transformer import TransformerBlock
from vqkit.unsaved_buffers import UnsavedBuffers


class WindowedBlocks2d(nn.Sequential):
    """`depth` blocks in turn on the windows of a grid and on those of the grid shifted by half a window.

    They take (B, H, W, channels) to the same.

    Args:
        channels: width.
        num_heads: must divide it.
        depth: number of blocks, at least 1.
        window_size: side of a window, in positions; even.
        mlp_ratio: width of the hidden layer relative to `channels`.
    """

    def __init__(self, channels: int, *, num_heads: int, depth: int, window_size: int, mlp_ratio: float) -> None:
        shifts = (0 if number % 2 == 0 else window_size // 2 for number in range(depth))
        super().__init__(
            *(
                TransformerBlock(
                    channels,
                    WindowAttention2d(channels, num_heads=num_heads, window_size=window_size, shift=shift),
                    mlp_ratio=mlp_ratio,
                )
                for shift in shifts
            )
        )


class WindowAttention2d(UnsavedBuffers):
    """Self-attention inside of windows of window_size x window_size positions, with a bias for each relative position.

    A map that no whole number of windows covers is filled with zeros at its lower and right edge for the time of the
    call. Along the first axis, whose size is the model's own, these take part in attention, as published. Along the
    second, time, they do not.

    Differs: the published model attends to the filling in time too, so that its last frames depend on how long the
    recording happens to be, modulo the window; where windows fit, as in its training, the results are the same.

    Args:
        channels: width.
        num_heads: must divide it.
        window_size: side of a window.
        shift: the grid of windows starts `shift` positions inside of the map; windows that its edge cuts off are
            smaller.
    """

    relative: Tensor

    def __init__(self, channels: int, *, num_heads: int, window_size: int, shift: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.shift = shift
        self.query_key_value = nn.Linear(channels, 3 * channels)
        self.output = nn.Linear(channels, channels)
        self.position_bias = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.position_bias, std=0.02)
        self.register_unsaved("relative", partial(_relative_positions, window_size))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, channels) to the same."""
        size, shift = self.window_size, self.shift
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
        rows, columns = x.shape[1] // size, x.shape[2] // size
        rolled = x.roll((-shift, -shift), dims=(1, 2)) if shift else x
        windows = rearrange(rolled, "b (r p) (c q) d -> (b r c) (p q) d", p=size, q=size)
        attended = self._attend(windows, self._allowed(height, width, x.device))
        x = rearrange(attended, "(b r c) (p q) d -> b (r p) (c q) d", r=rows, c=columns, p=size)
        x = x.roll((shift, shift), dims=(1, 2)) if shift else x
        return x[:, :height, :width]

    def _attend(self, windows: Tensor, allowed: Tensor | None) -> Tensor:
        """(B * windows, positions, channels) to the same; `allowed` (windows, positions, positions)."""
        maps = self.query_key_value(windows)
        query, key, value = rearrange(maps, "n p (three h d) -> three n h p d", three=3, h=self.num_heads)
        bias = self.position_bias[self.relative].permute(2, 0, 1)
        scores = query @ key.mT * query.shape[-1] ** -0.5 + bias
        if allowed is not None:
            apart = scores.unflatten(0, (-1, len(allowed)))
            scores = apart.masked_fill(~allowed.unsqueeze(1), -torch.inf).flatten(0, 1)
        attended = scores.softmax(-1).to(value.dtype) @ value
        return self.output(rearrange(attended, "n h p d -> n p (h d)"))

    def _allowed(self, height: int, width: int, device: torch.device) -> Tensor | None:
        """(windows, positions, positions) bool, which position may look at which; None where all may."""
        if not self.shift and width % self.window_size == 0:
            return None
        filled = height + -height % self.window_size
        down, across = self._together(filled, device), self._together(width, device)
        allowed = down[:, None, :, None, :, None] & across[None, :, None, :, None, :]
        return rearrange(allowed, "r c p q s t -> (r c) (p q) (s t)")

    def _together(self, length: int, device: torch.device) -> Tensor:
        """(windows, window_size, window_size) bool along one axis: not what lies across an edge of the map."""
        places = torch.arange(length + -length % self.window_size, device=device).roll(-self.shift)
        # The roll brings the first positions to the end, into the windows of the last ones and of the filling.
        parts = torch.where(places < length, (places < self.shift).long(), 2).unflatten(0, (-1, self.window_size))
        return parts.unsqueeze(-1) == parts.unsqueeze(-2)


def _relative_positions(window_size: int) -> Tensor:
    """(positions, positions) int64: the row of the bias table for each pair of positions of a window."""
    steps = torch.arange(window_size)
    offsets = steps[:, None] - steps + window_size - 1
    pairs = offsets[:, None, :, None] * (2 * window_size - 1) + offsets[None, :, None, :]
    return pairs.reshape(window_size**2, window_size**2)
