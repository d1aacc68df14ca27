"""A transformer over frames that looks a fixed number of them back, as in Mimi before its quantizer.

Attention goes block by block: a block of queries sees the keys of its own window only, so that time and memory grow
linearly with the length. Rotary positions are counted from the start of the recording, and their angles are formed in
double precision, so that a stream may run for years: on the host where the device has none. A stream keeps keys that
are turned already.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.sizes import check_positive
from vqkit.backbones.streaming import StreamingLayer
from vqkit.backbones.temporal import Interval
from vqkit.precision import widest_dtype
from vqkit.saving.config import Configured


class WindowedTransformer(Configured, nn.Module):
    """Pre-norm transformer with rotary positions, LayerScale and a window; for `ConvEncoder1d(transformer=...)`.

    Args:
        channels: width C.
        num_layers: layers, each with attention and a network of two linear maps and GELU.
        num_heads: must divide C into an even number of channels per head.
        context_frames: how many frames before its own (and as many after it, unless causal) a frame attends to, in
            each layer.
        causal: whether it attends to earlier frames only.
        expansion: inner width of the network, relative to C.
        layer_scale: first value of the trainable factors of all branches; small, so that training starts close to no
            transformer.

    Attributes:
        causal: as given.

    Raises:
        ValueError: if a size is not positive or does not fit.

    Source: Defossez et al. 2024, "Moshi" (arXiv:2410.00037), section 3.3.1: 8 layers, 8 heads, LayerScale 0.01, GELU,
    causal, a context of 250 frames (`context_frames=249`: they count the own frame).
    Differs: in `ConvEncoder1d` it stands at the widest convolution, not behind the projection to the latents, whose
    `dim` may be small; `ResampledEncoder1d` (`vqkit.backbones.resampled`) has it where theirs is.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_layers: int = 8,
        num_heads: int = 8,
        context_frames: int = 249,
        causal: bool = True,
        expansion: int = 4,
        layer_scale: float = 0.01,
    ) -> None:
        super().__init__()
        check_positive(num_layers=num_layers, num_heads=num_heads, expansion=expansion)
        if context_frames < 0:
            raise ValueError(f"context_frames={context_frames}: expected 0 or more frames")
        if channels % (2 * num_heads):
            raise ValueError(
                f"num_heads={num_heads} does not split {channels} channels into heads of an even size: choose a divisor"
                f" of {channels // 2}"
            )
        self.causal = causal
        self.before = context_frames
        self.after = 0 if causal else context_frames
        self.layers = nn.ModuleList(
            TransformerLayer(channels, num_heads, self.before, self.after, expansion, layer_scale)
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T) to the same."""
        frames = x.mT
        for layer in self.layers:
            frames = layer(frames)
        return frames.mT

    def reach(self, first: int, last: int) -> Interval:
        """Inputs on which the outputs `first` to `last` depend."""
        return first - len(self.layers) * self.before, last + len(self.layers) * self.after


class TransformerLayer(nn.Module):
    """x + scale attention(norm(x)), then x + scale network(norm(x)); (B, T, C) to the same."""

    def __init__(
        self, channels: int, num_heads: int, before: int, after: int, expansion: int, layer_scale: float
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = WindowedAttention(channels, num_heads, before, after)
        self.attention_scale = nn.Parameter(torch.full((channels,), layer_scale))
        self.network = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels, bias=False),
            nn.GELU(),
            nn.Linear(expansion * channels, channels, bias=False),
        )
        self.network_scale = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        x = x + self.attention_scale * self.attention(self.attention_norm(x))
        return x + self.network_scale * self.network(x)


class WindowedAttention(StreamingLayer):
    """Self-attention of each frame to those around it; in a stream the keys and values of the window are kept."""

    def __init__(self, channels: int, num_heads: int, before: int, after: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.causal = after == 0
        self.before = before
        self.after = after
        self.query_key_value = nn.Linear(channels, 3 * channels, bias=False)
        self.output = nn.Linear(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) to the same."""
        frames = x.shape[1]
        seen = 0 if self.stream is None else self.stream.seen
        known = min(seen, self.before)
        # Every query of the last block, also of those that are cut off again, sees a frame then: no row is all masked.
        exporting = torch.compiler.is_exporting()  # for all lengths at once, of which none is told apart
        block = self.before + 1 if exporting else min(self.before + 1, frames)
        blocks = (frames + block - 1) // block  # never of a negative number: runtimes of ONNX round it towards zero
        # One block of a recording, or of a first chunk, sees no frames but its own.
        alone = not exporting and blocks == 1 and not known
        before, after = (0, 0) if alone else (self.before, self.after)
        missing = blocks * block - frames
        maps = rearrange(self.query_key_value(x), "b t (three h d) -> three b h t d", three=3, h=self.num_heads)
        queries, keys = rotate(maps[:2], torch.arange(frames, device=x.device) + seen)
        keys_values = torch.stack([keys, maps[2]])
        kept = self.preceded(keys_values, self.before, after=self.after, dim=-2)
        windows = F.pad(keys_values if alone else kept, (0, 0, 0, missing)).unfold(-2, block + before + after, block).mT
        asked = F.pad(queries, (0, 0, 0, missing)).unflatten(2, (blocks, block))
        query, key, value = (rearrange(part, "b h n s d -> (b n) h s d") for part in (asked, *windows))
        positions = torch.arange(-before, block + after, device=x.device)
        mask = self._mask(positions, known, frames, block).repeat(x.shape[0], 1, 1, 1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        joined = rearrange(attended, "(b n) h s d -> b (n s) (h d)", n=blocks)
        return self.output(joined[:, :frames])

    def _mask(self, positions: Tensor, known: int, frames: int, block: int) -> Tensor:
        """Which key a query sees, (blocks, 1, block, window); `known` frames of a stream came before these `frames`.

        Args:
            positions: of the keys, the first query being at 0.
            known: see above.
            frames: see above.
            block: queries in a block.
        """
        offsets = positions - torch.arange(block, device=positions.device)[:, None]
        near = (offsets >= -self.before) & (offsets <= self.after)
        starts = torch.arange(0, frames, block, device=positions.device)
        frame = starts[:, None] + positions
        return near & ((frame >= -known) & (frame < frames))[:, None, None]


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotary positions: pairs of channels turned by angles that grow with the position.

    Args:
        x: (..., T, D), D even.
        positions: (T,).

    Source: Su et al. 2021 (arXiv:2104.09864), section 3.2, with the pairs (i, i + D / 2).
    """
    half = x.shape[-1] // 2
    # In float32 the angles of positions that are a million apart would be off by 0.06.
    device = x.device if widest_dtype(x.device) == torch.float64 else torch.device("cpu")
    frequencies = 10_000.0 ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
    angles = positions.to(device)[:, None] * frequencies
    first, second = x[..., :half], x[..., half:]
    table = torch.promote_types(x.dtype, torch.float32)
    cosines, sines = (part.to(table).to(x.device) for part in (angles.cos(), angles.sin()))
    return torch.cat([first * cosines - second * sines, first * sines + second * cosines], -1).to(x.dtype)
