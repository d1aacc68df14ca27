"""The interface between a tokenizer and its encoder or decoder."""

from dataclasses import dataclass, fields

from torch import Tensor, nn


@dataclass(frozen=True)
class BackboneProperties:
    """Attributes by which an encoder or a decoder describes itself; each of them may be missing.

    `Tokenizer` runs any module, and compares what is there. `AudioTokenizer` needs `downsampling_factor`,
    `CrossScaleTokenizer` also `dims`.

    Attributes:
        dim: channels of the latents; None: not compared with the quantizer's.
        channel_dim: their channel axis; None: not compared with the quantizer's.
        dims: channels of the latents at each scale, coarsest first, where there are several.
        in_channels: C of what an encoder takes.
        out_channels: C of what a decoder gives; None: that of the encoder.
        downsampling_factor: samples for each frame.
        image_size: side of the square images that an encoder takes and of which all tokens see all; None: not told, or
            any size that can be divided into patches.
        causal: whether nothing depends on what comes later; None: not told, and not taken to be so.
        context: inputs before and after its own on which an output depends, in samples for an encoder and in frames
            for a decoder; None: without bound.
        output_layer: name of the layer of a decoder, beside a linear path if it has one, whose output is the
            reconstruction; None: not told.
        fills_frames: whether an encoder takes any number of samples, and fills the last frame itself.
        first_frames: how many the first chunk of a stream has to hold.
        frames_per_window: a recording can be cut, with its context, at each multiple of so many frames.
        fills_windows: whether an encoder sees zeros behind a recording that ends within a window; otherwise that window
            has fewer frames.
    """

    dim: int | None = None
    channel_dim: int | None = None
    dims: tuple[int, ...] = ()
    in_channels: int = 1
    out_channels: int | None = None
    downsampling_factor: int | None = None
    image_size: int | None = None
    causal: bool | None = None
    context: tuple[int, int] | None = None
    output_layer: str | None = None
    fills_frames: bool = False
    first_frames: int = 1
    frames_per_window: int = 1
    fills_windows: bool = False


def properties_of(module: nn.Module) -> BackboneProperties:
    """Those that `module` has, and the defaults of the others."""
    names = [field.name for field in fields(BackboneProperties) if hasattr(module, field.name)]
    return BackboneProperties(**{name: getattr(module, name) for name in names})


def check_causal(causal: bool, transformer: nn.Module) -> None:
    """Refuse a transformer, or what is in its place, that looks ahead in a causal backbone.

    Args:
        causal: whether the backbone is.
        transformer: with the attribute `causal`; without it, it is taken to look ahead.

    Raises:
        ValueError: the backbone is causal and the transformer is not.
    """
    if causal and not properties_of(transformer).causal:
        raise ValueError(
            f"causal=True with a transformer that is not ({type(transformer).__name__}.causal is not True): build it"
            " with causal=True, or the backbone with causal=False"
        )


def check_waves(waves: Tensor, in_channels: int) -> None:
    """Refuse sound of another shape.

    Args:
        waves: expected (B, in_channels, T), T > 0.
        in_channels: of the encoder.

    Raises:
        ValueError: it is of another shape.
    """
    if waves.ndim != 3 or waves.shape[1] != in_channels or not waves.shape[2]:
        raise ValueError(
            f"waves has shape {tuple(waves.shape)}: expected (B, {in_channels}, T), T > 0; for one recording add a"
            " batch axis with waves[None], for another number of channels set in_channels"
        )


def check_whole_frames(waves: Tensor, downsampling_factor: int) -> None:
    """Refuse sound that ends inside a frame.

    Args:
        waves: (..., T).
        downsampling_factor: samples for each frame.

    Raises:
        ValueError: T is no multiple of the factor.
    """
    if waves.shape[-1] % downsampling_factor:
        raise ValueError(
            f"waves of {waves.shape[-1]} samples are no whole number of frames: pad or cut them to a positive multiple"
            f" of the downsampling factor {downsampling_factor}"
        )
