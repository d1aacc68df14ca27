"""ESC's encoder and decoder: windowed attention over the complex spectrum of speech, with a latent at each scale.

Source: Gu, Diao 2024, "ESC: Efficient Speech Coding with Cross-Scale Residual Vector Quantized Transformers"
(arXiv:2404.19441), sec. 3 and figure 1, with the sizes of the released training code.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from vqkit.backbones.complex_spectrum import ComplexSpectrum
from vqkit.backbones.protocol import check_waves, check_whole_frames
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.swin2d import WindowedBlocks2d
from vqkit.saving.config import Configured


class ESCBackbone(Configured, nn.Module, ABC):
    """What encoder and decoder have in common: their sizes. The defaults are ESC-Base; ESC-Large has `depth=4`.

    Spectra are cut into patches, which are merged in pairs along frequency from scale to scale; in time, nothing is
    merged. For the quantizers, the patches of a frame are laid one after another, in the order (time, channel,
    frequency). The sizes are made for 16 kHz: spectra each 5 ms, patches of 10 ms, frames of 20 ms.

    Args:
        audio_channels: 1 for mono, 2 for stereo.
        channels: width at each scale, that nearest to the spectrum first.
        num_heads: attention heads, of the encoder before each merging, of the decoder after each splitting; one less
            than `channels`.
        depth: windowed blocks before each merging and splitting, and as many at the scale of the patches.
        window_size: side of a window of attention, in patches; even.
        mlp_ratio: hidden width of the blocks relative to their width.
        num_frequencies: of the spectrum, from 0 to half the sample rate.
        window_length: of the Hann window, in samples.
        hop_length: samples from one spectrum to the next.
        patch_size: frequencies and spectra that make a patch.
        patches_per_frame: patches, one after another in time, that make a frame of the latents.

    Attributes are those of `vqkit.backbones.protocol.BackboneProperties`, and `dims`, of a scale width * rows of
    patches * patches_per_frame, without the finest.

    Raises:
        ValueError: sizes do not fit together.
    """

    channel_dim = 1
    causal = False

    def __init__(
        self,
        *,
        audio_channels: int = 1,
        channels: Sequence[int] = (45, 72, 96, 144, 192, 384),
        num_heads: Sequence[int] = (3, 6, 12, 24, 24),
        depth: int = 2,
        window_size: int = 4,
        mlp_ratio: float = 4.0,
        num_frequencies: int = 192,
        window_length: int = 320,
        hop_length: int = 80,
        patch_size: tuple[int, int] = (3, 2),
        patches_per_frame: int = 2,
    ) -> None:
        super().__init__()
        check_positive(audio_channels=audio_channels, depth=depth, patches_per_frame=patches_per_frame)
        _check_scales(channels, num_heads, num_frequencies, patch_size[0])
        if window_size < 2 or window_size % 2:
            raise ValueError(f"window_size={window_size}: expected an even number, since every other grid is shifted")
        self.in_channels = self.out_channels = audio_channels
        self.channels = tuple(channels)
        self.num_heads = tuple(num_heads)
        self.depth = depth
        self.window_size = window_size
        self.mlp_ratio = mlp_ratio
        self.patch_size = (patch_size[0], patch_size[1])
        self.patches_per_frame = patches_per_frame
        self.rows = tuple(num_frequencies // patch_size[0] // 2**scale for scale in range(len(channels)))
        sizes = zip(self.channels, self.rows, strict=True)
        self.dims = tuple(width * rows * patches_per_frame for width, rows in sizes)[:0:-1]
        self.downsampling_factor = hop_length * patch_size[1] * patches_per_frame
        self.frames_per_window = math.lcm(window_size, patches_per_frame) // patches_per_frame
        self.spectrum = ComplexSpectrum(num_frequencies, window_length=window_length, hop_length=hop_length)
        if self.downsampling_factor < num_frequencies:
            raise ValueError(
                f"a frame has {self.downsampling_factor} samples (hop_length * patch_size[1] * patches_per_frame), and "
                f"the shortest recording is one frame: expected at least num_frequencies={num_frequencies}"
            )
        self._build()

    @abstractmethod
    def _build(self) -> None:
        """Make the layers."""

    def _blocks(self, width: int, num_heads: int) -> WindowedBlocks2d:
        return WindowedBlocks2d(
            width, num_heads=num_heads, depth=self.depth, window_size=self.window_size, mlp_ratio=self.mlp_ratio
        )

    def _frames_around(self, margin: int) -> tuple[int, int]:
        """Frames before and after one on which it depends, through all blocks and `margin` more patches.

        The first block reaches to the end of a window, and each further one half a window beyond. Before, whole windows
        are counted, so that a recording that is cut there has its windows where they were.
        """
        blocks = len(self.channels) * self.depth
        patches = margin + self.window_size - 1 + (blocks - 1) * (self.window_size // 2)
        frames = -(-patches // self.patches_per_frame)
        return -(-frames // self.frames_per_window) * self.frames_per_window, frames


class ESCEncoder(ESCBackbone):
    """Waveforms (B, C, T) to latents at each scale but the finest, coarsest first: [(B, dims[i], T / f)].

    See `ESCBackbone` for arguments and attributes; here `context` counts samples.

    Raises:
        ValueError: in `forward`, if T is not a multiple of the downsampling factor f.

    Examples:
        >>> latents = ESCEncoder()(torch.randn(1, 1, 3200))
        >>> [tuple(scale.shape) for scale in latents]
        [(1, 1536, 10), (1, 1536, 10), (1, 2304, 10), (1, 3072, 10), (1, 4608, 10)]
    """

    def _build(self) -> None:
        self.patches = nn.Conv2d(2 * self.in_channels, self.channels[0], self.patch_size, stride=self.patch_size)
        self.norm = nn.LayerNorm(self.channels[0])
        self.first = self._blocks(self.channels[0], self.num_heads[0])
        widths = zip(self.channels[:-1], self.channels[1:], self.num_heads, strict=True)
        self.scales = nn.ModuleList(
            nn.Sequential(self._blocks(width, heads), FrequencyMerging(width, next_width))
            for width, next_width, heads in widths
        )
        # Half of the spectrum's window, in patches.
        patch_length = self.downsampling_factor // self.patches_per_frame
        before, after = self._frames_around(margin=-(-self.spectrum.window_length // (2 * patch_length)))
        self.context = (before * self.downsampling_factor, after * self.downsampling_factor)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Latents of `wave` (B, C, T) in [-1, 1]."""
        check_waves(wave, self.in_channels)
        check_whole_frames(wave, self.downsampling_factor)
        planes = self.spectrum.analyse(wave).to(self.patches.weight.dtype)
        x = self.norm(rearrange(self.patches(planes), "b c h w -> b h w c"))
        x = self.first(x)
        latents = []
        for scale in self.scales:
            x = scale(x)
            latents.append(_to_frames(x, self.patches_per_frame))
        return latents[::-1]


class ESCDecoder(ESCBackbone):
    """The mirror of `ESCEncoder`: `blocks[i]` takes latents of scale i to those of scale i + 1, `head` to a waveform.

    Called as a whole, it decodes the coarsest latents (B, dims[0], frames) to (B, C, frames * f) by themselves. See
    `ESCBackbone` for arguments and attributes; here `context` counts frames.
    """

    def _build(self) -> None:
        widths = list(zip(self.channels[:0:-1], self.channels[-2::-1], self.num_heads[::-1], strict=True))
        self.blocks = nn.ModuleList(
            _OnFrames(
                nn.Sequential(self._blocks(width, heads), FrequencySplitting(width, next_width)),
                rows=rows,
                patches_per_frame=self.patches_per_frame,
            )
            for (width, next_width, heads), rows in zip(widths, self.rows[:0:-1], strict=True)
        )
        self.last = self._blocks(self.channels[0], self.num_heads[0])
        self.expansion = nn.Conv2d(self.channels[0], self.channels[0] * math.prod(self.patch_size), 5, padding=2)
        self.planes = nn.Conv2d(self.channels[0], 2 * self.out_channels, 3, padding=1)
        # From a sample back to the spectra that overlap there, through both convolutions, to patches.
        spectra = -(-self.spectrum.window_length // (2 * self.spectrum.hop_length)) + 1
        self.context = self._frames_around(margin=2 + -(-spectra // self.patch_size[1]))

    def head(self, latents: Tensor) -> Tensor:
        """The waveform (B, C, frames * f) of what the last block gives, (B, channels, frames)."""
        x = self.last(_to_map(latents, self.rows[0], self.patches_per_frame))
        x = self.expansion(rearrange(x, "b h w c -> b c h w"))
        p, q = self.patch_size
        return self.spectrum.synthesise(self.planes(rearrange(x, "b (p q c) h w -> b c (h p) (w q)", p=p, q=q)))

    def forward(self, latents: Tensor) -> Tensor:
        """(B, dims[0], frames) to (B, C, frames * f), about in [-1, 1] and not clipped."""
        if latents.ndim != 3 or latents.shape[1] != self.dims[0]:
            raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {self.dims[0]}, frames)")
        for block in self.blocks:
            latents = block(latents)
        return self.head(latents)


class FrequencyMerging(nn.Sequential):
    """Pairs of neighbouring rows side by side, normed, and a linear map: (B, H, W, in) to (B, H / 2, W, out).

    Args:
        in_channels: width before.
        out_channels: width after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.LayerNorm(2 * in_channels), nn.Linear(2 * in_channels, out_channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, H / 2, W, out_channels)."""
        return super().forward(rearrange(x, "b (h two) w c -> b h w (two c)", two=2))


class FrequencySplitting(nn.Sequential):
    """A norm and a linear map to two rows for each: (B, H, W, in) to (B, 2 H, W, out).

    Args:
        in_channels: width before.
        out_channels: width after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(nn.LayerNorm(in_channels), nn.Linear(in_channels, 2 * out_channels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, in_channels) to (B, 2 H, W, out_channels)."""
        return rearrange(super().forward(x), "b h w (two c) -> b (h two) w c", two=2)


class _OnFrames(nn.Module):
    """Layers of maps (B, H, W, channels), for latents (B, dim, frames)."""

    def __init__(self, layers: nn.Module, *, rows: int, patches_per_frame: int) -> None:
        super().__init__()
        self.layers = layers
        self.rows = rows
        self.patches_per_frame = patches_per_frame

    def forward(self, latents: Tensor) -> Tensor:
        x = _to_map(latents, self.rows, self.patches_per_frame)
        return _to_frames(self.layers(x), self.patches_per_frame)


def _to_frames(x: Tensor, patches_per_frame: int) -> Tensor:
    """(B, H, W, C) to (B, patches_per_frame * C * H, W / patches_per_frame)."""
    return rearrange(x, "b h (t o) c -> b (o c h) t", o=patches_per_frame)


def _to_map(latents: Tensor, rows: int, patches_per_frame: int) -> Tensor:
    """The inverse of `_to_frames`, with H = rows."""
    return rearrange(latents, "b (o c h) t -> b h (t o) c", o=patches_per_frame, h=rows).contiguous()


def _check_scales(channels: Sequence[int], num_heads: Sequence[int], num_frequencies: int, patch_rows: int) -> None:
    if len(channels) < 2 or min(channels) < 1:
        raise ValueError(f"channels={channels!r}: expected a positive width for each of at least 2 scales")
    if len(num_heads) != len(channels) - 1 or min(num_heads) < 1:
        raise ValueError(
            f"num_heads={num_heads!r}: expected one positive number less than channels has, {len(channels) - 1}"
        )
    # The encoder attends in the width before a merging, the decoder in that before a splitting.
    for heads, width, coarser in zip(num_heads, channels[:-1], channels[1:], strict=True):
        if width % heads or coarser % heads:
            raise ValueError(
                f"num_heads={num_heads!r}: {heads} heads do not divide the widths {width} and {coarser} of their two "
                "scales"
            )
    halvings = 2 ** (len(channels) - 1)
    if num_frequencies < 1 or num_frequencies % (patch_rows * halvings):
        raise ValueError(
            f"num_frequencies={num_frequencies}: expected a multiple of {patch_rows} * {halvings}, the frequencies of "
            f"a patch times the halvings between {len(channels)} scales"
        )
