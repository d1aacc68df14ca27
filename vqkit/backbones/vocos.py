"""Vocos: a decoder that works at the rate of the frames, and draws the sound by an inverse Fourier transform.

Source: Siuzdak 2023 (arXiv:2306.00814). It is the decoder of WavTokenizer (Ji et al. 2024, arXiv:2408.16532) and, with
a transformer in the place of the ConvNeXt blocks, of X-Codec 2 (Ye et al. 2025, arXiv:2502.04128).
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vqkit.backbones.complex_spectrum import InverseSTFT
from vqkit.backbones.convnext1d import NORM_EPS, ConvNeXt1d, start
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.temporal import Interval
from vqkit.saving.config import Configured

LARGEST_MAGNITUDE = 100.0
"""Of a frequency of a spectrum."""
EMBEDDING_TAPS = 7


class VocosDecoder(Configured, nn.Module):
    """Latents (B, dim, frames) to audio (B, 1, frames * hop_length): a convolution, blocks, a norm and `ISTFTHead`.

    It looks at frames on both sides, so that it does not stream. Whether it runs block by block is told by `context`.

    Args:
        dim: channels of the latents; the quantizer's `dim`.
        channels: width of the blocks.
        hop_length: f, samples for each frame, the downsampling factor of the encoder; even.
        num_points: of the Fourier transform, even and at least 2 f; None: 4 f.
        blocks: each builds from a width a module (B, width, frames) -> the same. Vocos has `ConvNeXt1d` alone,
            WavTokenizer `PositionNetwork` before it.

    Attributes are those of `vqkit.backbones.protocol.BackboneProperties`; `context` is None, too, if a
    block does not tell (it has no `reach`).

    Raises:
        ValueError: if a size is not positive or does not fit.

    Source: Siuzdak 2023 (Vocos, arXiv:2306.00814), section 3; 512 channels, and 768 in WavTokenizer.

    Examples:
        >>> import torch
        >>> decoder = VocosDecoder(dim=8, channels=16, hop_length=10)
        >>> decoder(torch.randn(1, 8, 5)).shape, decoder.context
        (torch.Size([1, 1, 50]), (29, 29))
    """

    channel_dim = 1
    out_channels = 1
    causal = False

    def __init__(
        self,
        *,
        dim: int,
        channels: int = 512,
        hop_length: int,
        num_points: int | None = None,
        blocks: Sequence[Callable[[int], nn.Module]] = (ConvNeXt1d,),
    ) -> None:
        super().__init__()
        check_positive(dim=dim, channels=channels, hop_length=hop_length)
        self.dim = dim
        self.downsampling_factor = hop_length
        self.embedding = nn.Conv1d(dim, channels, EMBEDDING_TAPS, padding=EMBEDDING_TAPS // 2)
        start(self.embedding)
        self.blocks = nn.Sequential(*(block(channels) for block in blocks))
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.head = ISTFTHead(channels, hop_length, 4 * hop_length if num_points is None else num_points)
        self.context = self._context()

    def forward(self, latents: Tensor) -> Tensor:
        """Audio (B, 1, frames * f), float32 or wider, about in [-1, 1] and not clipped, of latents (B, dim, frames)."""
        if latents.ndim != 3 or latents.shape[1] != self.dim or not latents.shape[-1]:
            raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {self.dim}, frames), frames > 0")
        frames = self.blocks(self.embedding(latents))
        return self.head(self.norm(frames.mT))

    def _context(self) -> tuple[int, int] | None:
        reach: Interval | None = self.head.reach(0, 0)
        for block in reversed(self.blocks):
            reach_of = getattr(block, "reach", None)
            reach = None if reach is None or reach_of is None else reach_of(*reach)
        return None if reach is None else (EMBEDDING_TAPS // 2 - reach[0], EMBEDDING_TAPS // 2 + reach[1])


class ISTFTHead(nn.Module):
    """Frames to sound: logarithms of magnitudes and phases by a linear map, and an inverse Fourier transform of them.

    Spectrum k is centred on the middle of hop k.

    Args:
        channels: width of the frames.
        hop_length: samples for each frame.
        num_points: of the transform, at least twice the hop; both are even.

    Raises:
        ValueError: if the sizes do not fit.

    Source: Siuzdak 2023 (Vocos, arXiv:2306.00814), section 3.3, and its released code, whose padding is "same" and
    which cuts magnitudes off at 100.
    Differs: their logarithm is cut off, not what overflows in its place, so that gradients stay finite.
    """

    def __init__(self, channels: int, hop_length: int, num_points: int) -> None:
        super().__init__()
        # The first and the last samples have the edge of one window alone, where at less overlap it is nearly nothing.
        if num_points < 2 * hop_length or hop_length % 2 or num_points % 2:
            raise ValueError(
                f"num_points={num_points}, hop_length={hop_length}: expected even numbers, and at least twice the hop, "
                "such as four times"
            )
        self.hop_length = hop_length
        self.num_points = num_points
        self.lead = (num_points - hop_length) // 2
        self.linear = nn.Linear(channels, num_points + 2)
        self.inverse = InverseSTFT(num_points, window_length=num_points, hop_length=hop_length, first_sample=self.lead)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, channels) to (B, 1, T * hop_length)."""
        logarithms, phases = self.linear(frames).mT.to(self.inverse.window.dtype).chunk(2, dim=1)
        magnitudes = logarithms.clamp(max=math.log(LARGEST_MAGNITUDE)).exp()
        return self.inverse(magnitudes * phases.cos(), magnitudes * phases.sin()).unsqueeze(1)

    def reach(self, first: int, last: int) -> Interval:
        """Frames on which the samples of the frames `first` to `last` depend."""
        samples = first * self.hop_length, (last + 1) * self.hop_length - 1
        earliest = -((self.num_points - 1 - self.lead - samples[0]) // self.hop_length)
        return earliest, (samples[1] + self.lead) // self.hop_length
