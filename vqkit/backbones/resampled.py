"""Fewer latents than an encoder of sound has frames: a transformer at its rate and a learned resampling, as in Mimi.

    audio -> encoder -> transformer -> convolution of stride s -> latents
    latents -> transposed convolution of stride s -> transformer -> decoder -> audio

Attention sees s frames for each latent, and the quantizer s times fewer latents. Encoder, transformer and decoder are
any that say of themselves what they look at (`vqkit.backbones.protocol`, `reach`), and so does the whole: it streams
where they are causal, and runs block by block where their context is bounded.

Source: Défossez et al. 2024 (Moshi, arXiv:2410.00037), section 3.3, and its released code: a causal `ConvEncoder1d` and
`ConvDecoder1d` of dim 512 at 25 Hz, `WindowedTransformer`, and a stride of 2.
Differs: filters have weight norm here unless `normalization` says otherwise; those of Mimi have none.
"""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vqkit.backbones.protocol import check_causal, check_waves, check_whole_frames, properties_of
from vqkit.backbones.sizes import check_positive
from vqkit.backbones.temporal import Convolution1d, Deconvolution1d, Interval, Normalization, TemporalSequence
from vqkit.backbones.weight_norm import WeightNormed


class _Resampled1d(WeightNormed, nn.Module):
    """What encoder and decoder say of themselves, by what the module `name` that they wrap says."""

    channel_dim = 1

    def __init__(self, name: str, module: nn.Module, stride: int) -> None:
        super().__init__()
        check_positive(stride=stride)
        own = properties_of(module)
        if own.dim is None or own.downsampling_factor is None or own.channel_dim not in (None, 1):
            raise ValueError(
                f"{name}={type(module).__name__} has dim={own.dim}, downsampling_factor={own.downsampling_factor} and"
                f" channel_dim={own.channel_dim}: expected a backbone of sound that has the first two, and channels in"
                " axis 1, such as those of vqkit.backbones.conv1d"
            )
        self.causal = bool(own.causal)
        self.dim = own.dim
        self.downsampling_factor = stride * own.downsampling_factor
        self.frames_per_window = math.lcm(own.frames_per_window, stride) // stride
        self.first_frames = math.ceil(own.first_frames / stride)

    def _transformer(self, build: Callable[[int], nn.Module] | None) -> nn.Module:
        if build is None:
            return TemporalSequence()
        module = build(self.dim)
        check_causal(self.causal, module)
        return module


class ResampledEncoder1d(_Resampled1d):
    """An encoder of sound, a transformer over its frames, and a convolution of 2 s taps and stride s, without bias.

    The convolution looks one stride back, or half of one to each side if it is not causal. In front of the first frame
    stands that frame again, not zeros: after the transformer a frame of zeros is like no other.

    Args:
        encoder: from audio (B, C, T) to frames (B, dim, T / f'), with the attributes `dim` and `downsampling_factor`
            f'; such as `ConvEncoder1d`.
        stride: s, frames that become one latent.
        transformer: builds a module (B, dim, frames) -> the same; None: none.
        normalization: of the convolution of stride s: `PlainFilters`, as in Mimi, or None for weight norm.

    Attributes are those of `vqkit.backbones.protocol.BackboneProperties`, of latents where these speak of
    frames: the `downsampling_factor` is f = s f'. `context` is None, too, if encoder or transformer do not tell.

    Raises:
        ValueError: `stride` is not positive, the encoder lacks an attribute, or it is causal and the transformer is
            not; in `forward` if T is not a positive multiple of f.

    Examples:
        >>> encoder = ResampledEncoder1d(ConvEncoder1d(dim=16, channels=8, strides=(4, 5), causal=True), stride=2)
        >>> encoder(torch.randn(1, 1, 400)).shape
        torch.Size([1, 16, 10])
    """

    def __init__(
        self,
        encoder: nn.Module,
        *,
        stride: int = 2,
        transformer: Callable[[int], nn.Module] | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__("encoder", encoder, stride)
        own = properties_of(encoder)
        self.in_channels = own.in_channels
        self.encoder = encoder
        self.transformer = self._transformer(transformer)
        self.downsample = Convolution1d(
            self.dim,
            self.dim,
            2 * stride,
            stride=stride,
            causal=self.causal,
            padding_mode="replicate",
            normalization=normalization,
            bias=False,
        )
        self.context = self._context(own.context, self.downsampling_factor // stride)

    def forward(self, waves: Tensor) -> Tensor:
        """Latents (B, dim, T / f) of audio (B, C, T) in [-1, 1]."""
        check_waves(waves, self.in_channels)
        check_whole_frames(waves, self.downsampling_factor)
        return self.downsample(self.transformer(self.encoder(waves)))

    def _context(self, inner: tuple[int, int] | None, hop_length: int) -> tuple[int, int] | None:
        reached = _reach([self.transformer, self.downsample], 0, 0)
        if inner is None or reached is None:
            return None
        first, last = reached
        return inner[0] - first * hop_length, inner[1] + (last + 1) * hop_length - self.downsampling_factor


class ResampledDecoder1d(_Resampled1d):
    """The mirror of `ResampledEncoder1d`: a transposed convolution, a transformer, and a decoder.

    The transposed convolution has 2 s taps for each channel and does not mix them, as in the released weights.

    Args:
        decoder: from frames (B, dim, frames) to audio (B, C, frames * f'), with the attributes `dim` and
            `downsampling_factor` f'; such as `ConvDecoder1d`.
        stride: s, frames for each latent.
        transformer: builds a module (B, dim, frames) -> the same; None: none.
        normalization: as in the encoder.

    The others are those of `ResampledEncoder1d`.

    Raises:
        ValueError: as for `ResampledEncoder1d`; in `forward` if the latents have another shape.
    """

    def __init__(
        self,
        decoder: nn.Module,
        *,
        stride: int = 2,
        transformer: Callable[[int], nn.Module] | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        super().__init__("decoder", decoder, stride)
        own = properties_of(decoder)
        self.out_channels = own.out_channels
        self.output_layer = None if own.output_layer is None else f"decoder.{own.output_layer}"
        self.upsample = Deconvolution1d(
            self.dim,
            self.dim,
            2 * stride,
            stride=stride,
            causal=self.causal,
            normalization=normalization,
            groups=self.dim,
            bias=False,
        )
        self.transformer = self._transformer(transformer)
        self.decoder = decoder
        self.context = self._context(own.context, stride)

    def forward(self, latents: Tensor) -> Tensor:
        """Audio (B, C, T f), about in [-1, 1] and not clipped, of latents (B, dim, T)."""
        if latents.ndim != 3 or latents.shape[1] != self.dim or not latents.shape[-1]:
            raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {self.dim}, T), T > 0")
        return self.decoder(self.transformer(self.upsample(latents)))

    def _context(self, inner: tuple[int, int] | None, stride: int) -> tuple[int, int] | None:
        if inner is None:
            return None
        reached = _reach([self.upsample, self.transformer], -inner[0], stride - 1 + inner[1])
        return None if reached is None else (-reached[0], reached[1])


def _reach(layers: Sequence[nn.Module], first: int, last: int) -> Interval | None:
    """Inputs of the layers on which outputs `first` to `last` depend; None without bound, or if one does not tell."""
    reached: Interval | None = (first, last)
    for layer in reversed(layers):
        reach = getattr(layer, "reach", None)
        reached = None if reach is None or reached is None else reach(*reached)
    return reached
