"""What all encoders and decoders of sound do; what only one family does is in a file of its own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vqkit import AudioTokenizer, Quantizer
from vqkit.backbones.activations import ELU
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.convnext1d import ConvNeXt1d
from vqkit.backbones.depthwise1d import DepthwiseDecoder1d, DepthwiseEncoder1d
from vqkit.backbones.encodec import SkipLSTM, TimeGroupNorm
from vqkit.backbones.frame_transformer import WindowedTransformer
from vqkit.backbones.protocol import properties_of
from vqkit.backbones.resampled import ResampledDecoder1d, ResampledEncoder1d
from vqkit.backbones.resnet1d import PositionNetwork, ResidualBlocks1d
from vqkit.backbones.streaming import streaming
from vqkit.backbones.vocos import VocosDecoder
from vqkit.saving.config import from_config, to_config

Build = Callable[[int], tuple[nn.Module, nn.Module]]
"""From the channels of the sound to an encoder and a decoder."""

CAUSAL_TRANSFORMER = partial(WindowedTransformer, num_layers=2, num_heads=2, context_frames=3)
TRANSFORMER = partial(CAUSAL_TRANSFORMER, causal=False)
SEANET: dict[str, Any] = {
    "dilations": (1,),
    "residual_kernel_size": 3,
    "compress": 2,
    "activation": ELU,
    "latent_kernel_size": 7,
    "padding_mode": "reflect",
    "convolved_skip": True,
}
LSTM = partial(SkipLSTM, num_layers=2)


class Everything(nn.Module):
    """A bottleneck that looks at everything and does not say so."""

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True)


def conv(**options: Any) -> Build:
    sizes = {"dim": 6, "channels": 4, "strides": (2, 3)} | options

    def build(channels: int) -> tuple[nn.Module, nn.Module]:
        return ConvEncoder1d(in_channels=channels, **sizes), ConvDecoder1d(out_channels=channels, **sizes)

    return build


def resampled(causal: bool, transformer: Callable[[int], nn.Module] | None) -> Build:
    inner, options = conv(dim=8, causal=causal, dilations=(1,), activation=ELU), {"transformer": transformer}

    def build(channels: int) -> tuple[nn.Module, nn.Module]:
        encoder, decoder = inner(channels)
        return ResampledEncoder1d(encoder, **options), ResampledDecoder1d(decoder, **options)

    return build


def depthwise(window_frames: int | None) -> Build:
    sizes: dict[str, Any] = {"channels": 16, "strides": (2, 3), "window_frames": window_frames}

    def build(channels: int) -> tuple[nn.Module, nn.Module]:
        decoder = DepthwiseDecoder1d(out_channels=channels, dim=64, **sizes)
        return DepthwiseEncoder1d(in_channels=channels, **sizes), decoder

    return build


def vocos(*blocks: Callable[[int], nn.Module], num_points: int = 40) -> Build:
    def build(channels: int) -> tuple[nn.Module, nn.Module]:
        encoder = ConvEncoder1d(dim=6, channels=4, strides=(2, 5))
        return encoder, VocosDecoder(dim=6, channels=8, hop_length=10, blocks=blocks, num_points=num_points)

    return build


CONVNEXT = partial(ConvNeXt1d, num_layers=2, kernel_size=5)
RESIDUAL = partial(ResidualBlocks1d, norm_groups=4)
EXACT: dict[str, Build] = {
    "plain": conv(),
    "causal": conv(causal=True),
    "bottlenecks": conv(strides=(5, 1, 3), dilations=(1, 2), residual_kernel_size=3, compress=2, activation=ELU),
    "even kernels": conv(strides=(7,), kernel_size=4, latent_kernel_size=2, residual_kernel_size=2, patch_size=3),
    "patches alone": conv(strides=(), patch_size=8, causal=True, linear_path=True),
    "linear path": conv(linear_path=True, max_channels=6, dilations=()),
    "odd strides": conv(strides=(3, 5), linear_path=True, causal=True),
    "causal transformer": conv(transformer=CAUSAL_TRANSFORMER, causal=True),
    "transformer": conv(transformer=TRANSFORMER, linear_path=True, patch_size=2),
    "resampled": resampled(False, None),
    "resampled, causal": resampled(True, None),
    "mimi": resampled(True, CAUSAL_TRANSFORMER),
    "mimi, centred": resampled(False, TRANSFORMER),
    "snac without attention": depthwise(None),
    "vocos of short windows": vocos(CONVNEXT, num_points=20),
    "vocos of 24 points": vocos(CONVNEXT, num_points=24),
    "vocos": vocos(CONVNEXT),
    "vocos with a transformer": vocos(TRANSFORMER, num_points=60),
}
"""Whose context is told exactly."""
BOUNDED: dict[str, Build] = {
    **EXACT,
    "mirrored": conv(**SEANET),
    "mirrored, causal": conv(**SEANET, causal=True),
    "snac": depthwise(3),
}
UNBOUNDED: dict[str, Build] = {
    "encodec": conv(**SEANET, causal=True, transformer=LSTM),
    "encodec for music": conv(**SEANET, transformer=LSTM, normalization=TimeGroupNorm),
    "wavtokenizer": vocos(partial(PositionNetwork, norm_groups=4), CONVNEXT),
    "x-codec 2": vocos(RESIDUAL, TRANSFORMER, RESIDUAL),
}
UNTOLD: dict[str, Build] = {
    "bottleneck": conv(transformer=Everything),
    "bottleneck, resampled": resampled(False, Everything),
}
"""With a part that does not say what it looks at."""
KINDS: dict[str, Build] = BOUNDED | UNBOUNDED
STEREO = [kind for kind in KINDS if "voco" not in kind and kind not in ("wavtokenizer", "x-codec 2")]


def shake(*modules: nn.Module, std: float = 0.3) -> None:
    """Move parameters away from their first values, so that every branch takes part."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=std)


def build(kind: str, channels: int = 1) -> tuple[Any, Any]:
    """In float64 and eval mode."""
    torch.manual_seed(0)
    pair = nn.ModuleList((KINDS | UNTOLD)[kind](channels)).double().eval()
    shake(pair)
    encoder, decoder = pair
    return encoder, decoder


def codec_of(kind: str) -> AudioTokenizer:
    encoder, decoder = build(kind)
    quantizer = Quantizer("vq", dim=encoder.dim, codebook_size=16, channel_dim=1)
    return AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000).eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def looked_at(module: nn.Module, x: Tensor, first: int, last: int) -> tuple[int, int]:
    """First and last time step of x on which the outputs `first` to `last` depend."""
    x = x.requires_grad_()
    outputs = module(x)[..., first : last + 1]
    (gradient,) = torch.autograd.grad((outputs * torch.randn_like(outputs)).sum(), x)
    steps = gradient.abs().sum((0, 1)).nonzero()
    return int(steps[0]), int(steps[-1])


@pytest.mark.parametrize(("kind", "channels"), [(kind, 1) for kind in KINDS] + [(kind, 2) for kind in STEREO])
def test_shapes_gradients_and_configuration(kind: str, channels: int) -> None:
    encoder, decoder = build(kind, channels)
    factor, dim = encoder.downsampling_factor, encoder.dim
    assert (decoder.dim, decoder.downsampling_factor, encoder.channel_dim, decoder.channel_dim) == (dim, factor, 1, 1)
    assert (encoder.in_channels, decoder.out_channels) == (channels, channels)
    output, names = properties_of(decoder).output_layer, [name for name, _ in decoder.named_parameters()]
    assert output is None or [name for name in names if "linear." not in name][-1].startswith(f"{output}.")
    for frames in (3, 6):
        waves = noise(2, channels, frames * factor).requires_grad_()
        latents = encoder(waves)
        assert latents.shape == (2, dim, frames)
        assert decoder(latents).shape == waves.shape
    for part, given in ((encoder, waves), (decoder, latents)):
        again = from_config(to_config(part)).double().eval()
        again.load_state_dict(part.state_dict())
        assert torch.equal(again(given), part(given))
    decoder.train()(encoder(waves)).square().sum().backward()
    assert waves.grad is not None and waves.grad.isfinite().all()
    for part in (encoder, decoder):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.any()), name


@pytest.mark.parametrize("kind", EXACT)
def test_the_context_is_exact(kind: str) -> None:
    encoder, decoder = build(kind)
    factor = encoder.downsampling_factor
    before, after = encoder.context
    assert not encoder.causal or after == decoder.context[1] == 0
    frame = -(-before // factor) + 1
    waves, start = noise(1, 1, (frame + 2 + -(-after // factor)) * factor), frame * factor
    assert looked_at(encoder, waves, frame, frame) == (start - before, start + factor - 1 + after)
    before, after = decoder.context
    latents, start = noise(1, encoder.dim, before + after + 3), (before + 1) * factor
    assert looked_at(decoder, latents, start, start + factor - 1) == (1, before + 1 + after)


@pytest.mark.parametrize("kind", BOUNDED)
def test_blocks_give_what_the_whole_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents before they are rounded to codes, and sound: the context says what each depends on, also at the ends."""
    monkeypatch.setattr(AudioTokenizer, "_indices", lambda self, wave: self.encoder(wave).mT)
    monkeypatch.setattr(AudioTokenizer, "_sound", lambda self, latents: self.decoder(latents.mT))
    codec = codec_of(kind)
    factor = codec.downsampling_factor
    frames = 9 + max(sum(codec.encoder.context) // factor, sum(codec.decoder.context))
    wave = noise(1, 1, frames * factor)
    latents = codec.encode(wave)
    blocks = list(codec.encode_blocks(wave.split(2 * factor + 1, -1), frames_per_block=2))
    assert len(blocks) > 2
    torch.testing.assert_close(torch.cat(blocks, 1), latents)
    pieces = list(codec.decode_blocks(latents.split(5, 1), frames_per_block=2))
    assert len(pieces) > 2
    torch.testing.assert_close(torch.cat(pieces, -1), codec.decode(latents))


@pytest.mark.parametrize("kind", [*UNBOUNDED, *UNTOLD])
def test_without_a_bounded_context_there_are_no_blocks(kind: str) -> None:
    codec = codec_of(kind)
    assert codec.decoder.context is None and codec.latency == (6 / 8000 if codec.causal else None)
    with pytest.raises(ValueError, match="blocks need a bounded context, and this model has none"):
        list(codec.decode_blocks([torch.zeros(1, 4, dtype=torch.int64)]))
    if not isinstance(codec.decoder, VocosDecoder):  # whose encoder here is a plain one
        assert codec.encoder.context is None
        with pytest.raises(ValueError, match="blocks need a bounded context, and this model has none"):
            list(codec.encode_blocks([noise(1, 1, 4 * codec.downsampling_factor)]))
    if not codec.causal:
        later = noise(1, codec.encoder.dim, 60)
        moved = torch.cat([later[..., :-1], later[..., -1:] + 1], -1)
        first = slice(codec.downsampling_factor)
        assert not torch.equal(codec.decoder(later)[..., first], codec.decoder(moved)[..., first])


@pytest.mark.parametrize(
    "kind", ["plain", "mirrored", "mimi, centred", "snac", "encodec for music", "vocos", "wavtokenizer"]
)
def test_what_looks_ahead_does_not_stream(kind: str) -> None:
    codec = codec_of(kind)
    with pytest.raises(ValueError, match="streaming needs a causal encoder and decoder"), codec.streaming():
        pass
    with pytest.raises(ValueError, match=f"{type(codec.decoder).__name__} is not causal"), streaming(codec.decoder):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_recordings_are_finite(kind: str) -> None:
    encoder, decoder = KINDS[kind](1)
    time = torch.arange(12 * encoder.downsampling_factor)
    square = (time // 7 % 2) * 2.0 - 1
    for wave in (torch.zeros(len(time)), torch.ones(len(time)), square, 1e-6 * square, 1e4 * square):
        with torch.no_grad():
            assert bool(decoder(encoder(wave[None, None])).isfinite().all())


@pytest.mark.parametrize("kind", ["plain", "mimi", "snac"])
def test_waves_that_do_not_fit_are_refused(kind: str) -> None:
    encoder, _ = build(kind)
    factor = encoder.downsampling_factor
    for shape, message in (
        ((1, 2, factor), r"waves has shape \(1, 2, \d+\): expected \(B, 1, T\)"),
        ((1, factor), r"add a batch axis with waves\[None\]"),
        ((1, 1, factor + 1), f"{factor + 1} samples are no whole number of frames: pad or cut them .* factor {factor}"),
        ((1, 1, 0), r"waves has shape \(1, 1, 0\): expected \(B, 1, T\), T > 0"),
    ):
        with pytest.raises(ValueError, match=message):
            encoder(noise(*shape))


@pytest.mark.parametrize("kind", ["plain", "mimi", "snac", "vocos"])
def test_latents_that_do_not_fit_are_refused(kind: str) -> None:
    _, decoder = build(kind)
    message = rf"latents has shape .*: expected \(B, {decoder.dim}, (T|frames)\), (T|frames) > 0"
    for shape in ((1, decoder.dim - 1, 3), (decoder.dim, 3), (1, decoder.dim, 0)):
        with pytest.raises(ValueError, match=message):
            decoder(noise(*shape))
