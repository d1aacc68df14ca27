"""Codecs of waveforms, from the lists of layers of their sources, weight norm folded."""

import warnings
from itertools import pairwise

import torch
from torch import nn

from tests.recipes.counts.layers import linear, norm


def convolution(before: int, after: int, taps: int, *, groups: int = 1) -> int:
    return before // groups * after * taps + after


def widths(channels: int, strides: tuple[int, ...]) -> list[int]:
    return [channels * 2**level for level in range(len(strides) + 1)]


def lstm(width: int, layers: int = 2) -> int:
    """Four gates, each of the input and of the state, with two biases."""
    return layers * 4 * (2 * width**2 + 2 * width)


def unit(width: int, taps: int, *, compress: int = 1, snake: bool = True, skip: bool = False) -> int:
    inner = width // compress
    layers = convolution(width, inner, taps) + convolution(inner, width, 1)
    return layers + snake * (width + inner) + skip * convolution(width, width, 1)


def seanet(
    channels: int, strides: tuple[int, ...], dim: int, taps: int, *, lstms: int = 0, skip: bool = False
) -> tuple[int, int]:
    """Both sides of EnCodec's SEANet: a unit of half the width at each stride, whose kernels are twice the stride."""
    wide = widths(channels, strides)
    both = sum(unit(width, 3, compress=2, snake=False, skip=skip) for width in wide[:-1]) + lstm(wide[-1], lstms)
    down = sum(convolution(*pair, 2 * stride) for pair, stride in zip(pairwise(wide), strides, strict=True))
    up = sum(convolution(b, a, 2 * stride) for (a, b), stride in zip(pairwise(wide), strides, strict=True))
    ends = convolution(1, channels, 7) + convolution(wide[-1], dim, taps)
    return ends + both + down, convolution(dim, wide[-1], taps) + both + up + convolution(channels, 1, 7)


def dac(channels: tuple[int, int], strides: tuple[int, ...], dims: tuple[int, int]) -> tuple[int, int]:
    """Both sides of DAC: three units at each width, and a Snake before each convolution but the first."""
    sizes = []
    for width, dim, latent_taps, decodes in ((channels[0], dims[0], 3, False), (channels[1], dims[1], 7, True)):
        wide = widths(width, strides)
        units = 3 * sum(unit(size, 7) for size in wide[:-1])
        pairs = zip(pairwise(wide), strides, strict=True)
        strided = sum(convolution(*(pair[::-1] if decodes else pair), 2 * stride) for pair, stride in pairs)
        snakes = sum(wide[1:] if decodes else wide[:-1]) + (wide[0] if decodes else wide[-1])
        ends = convolution(1, width, 7) if not decodes else convolution(width, 1, 7)
        latent = convolution(*((dim, wide[-1]) if decodes else (wide[-1], dim)), latent_taps)
        sizes.append(units + strided + snakes + ends + latent)
    return sizes[0], sizes[1]


def hifi(channels: tuple[int, int], strides: tuple[int, ...], dim: int, *, taps: int = 7) -> tuple[int, int]:
    """Both sides of NeMo's codec with DAC's units: one at each width, without Snake."""
    sizes = []
    for width, decodes in ((channels[0], False), (channels[1], True)):
        wide = widths(width, strides)
        units = sum(unit(size, taps, snake=False) for size in wide[:-1])
        pairs = zip(pairwise(wide), strides, strict=True)
        strided = sum(convolution(*(pair[::-1] if decodes else pair), 2 * stride) for pair, stride in pairs)
        ends = convolution(*((width, 1) if decodes else (1, width)), 7)
        latent = convolution(*((dim, wide[-1]) if decodes else (wide[-1], dim)), 7)
        sizes.append(units + strided + ends + latent)
    return sizes[0], sizes[1]


def esc(channels: tuple[int, ...], heads: tuple[int, ...]) -> tuple[int, int]:
    """Both sides of ESC-Base: two blocks at each scale, of windows of 4 x 4 patches, and linear maps between."""

    def blocks(width: int, number: int) -> int:
        attention = linear(width, 3 * width) + linear(width, width) + 7**2 * number
        return 2 * (norm(width) + attention + norm(width) + linear(width, 4 * width) + linear(4 * width, width))

    finest = blocks(channels[0], heads[0])
    encoder = convolution(2, channels[0], 3 * 2) + norm(channels[0]) + finest
    decoder = finest + convolution(channels[0], 6 * channels[0], 5**2) + convolution(channels[0], 2, 3**2)
    for (width, coarser), number in zip(pairwise(channels), heads, strict=True):
        encoder += blocks(width, number) + norm(2 * width) + linear(2 * width, coarser, bias=False)
        decoder += blocks(coarser, number) + norm(coarser) + linear(coarser, 2 * width, bias=False)
    return encoder, decoder


def free(module: nn.Module) -> int:
    """Numbers without the lengths of filters that weight norm adds, under either of its names."""
    lengths = (".weight_g", ".original0")
    return sum(parameter.numel() for name, parameter in module.named_parameters() if not name.endswith(lengths))


def mimi() -> dict[str, int]:
    """The class of transformers: its defaults are the release, but for 31 acoustic levels, of which 7 are here."""
    from transformers import MimiConfig, MimiModel

    with torch.device("meta"):
        model = MimiModel(MimiConfig())
    sides = free(model.encoder), free(model.decoder)
    return parts(sides, 8 * 2048 * 256 + 4 * 512 * 256, stft())


def snac() -> dict[str, int]:
    """The class of the package, with the sizes of the released 24 kHz model."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
        from snac import SNAC
    sizes = {"encoder_dim": 48, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 1024, "decoder_rates": [8, 8, 4, 2]}
    with torch.device("meta"):
        model = SNAC(24000, **sizes, attn_window_size=None, codebook_size=4096, codebook_dim=8, vq_strides=[4, 2, 1])
    return parts((free(model.encoder), free(model.decoder)), free(model.quantizer), periods() + stft(3, bands=5))


def factorized(dim: int, codes: int, code_dim: int = 8) -> int:
    return codes * code_dim + convolution(dim, code_dim, 1) + convolution(code_dim, dim, 1)


def periods(number: int = 5) -> int:
    wide = (1, 32, 128, 512, 1024, 1024)
    return number * (sum(convolution(*pair, 5) for pair in pairwise(wide)) + convolution(1024, 1, 3))


def scales(number: int = 3) -> int:
    wide, groups = (128, 128, 256, 512, 1024, 1024), (4, 16, 16, 16, 16)
    grouped = sum(convolution(*pair, 41, groups=group) for pair, group in zip(pairwise(wide), groups, strict=True))
    return number * (convolution(1, 128, 15) + grouped + convolution(1024, 1024, 5) + convolution(1024, 1, 3))


def stft(number: int = 5, *, bands: int = 1) -> int:
    """EnCodec's for each window, or DAC's with layers for each band; 3 x 9 and 3 x 3 taps."""
    band = convolution(2, 32, 27) + 3 * convolution(32, 32, 27) + convolution(32, 32, 9)
    return number * (bands * band + convolution(32, 1, 9))


def parts(sides: tuple[int, int], quantizer: int, discriminators: int) -> dict[str, int]:
    return {"encoder": sides[0], "quantizer": quantizer, "decoder": sides[1], "discriminators": discriminators}


def of_dac(strides: list[int], levels: int) -> dict[str, int]:
    """The class of transformers, whose defaults are the other sizes of the releases."""
    from transformers import DacConfig, DacModel

    with torch.device("meta"):
        model = DacModel(DacConfig(downsampling_ratios=strides, n_codebooks=levels))
    return parts((free(model.encoder), free(model.decoder)), free(model.quantizer), periods() + stft(3, bands=5))


CHANNELS, HEADS = (45, 72, 96, 144, 192, 384), (3, 6, 12, 24, 24)
COUNTS = {
    "speechtokenizer_16khz": parts(
        seanet(64, (2, 4, 5, 8), 1024, 7, lstms=2, skip=True), 8 * 1024**2, periods() + scales() + stft()
    ),
    "dualcodec_24khz": parts(
        dac((32, 48), (4, 5, 6, 8, 2), (2048, 2048)),
        factorized(1024, 16384) + 7 * factorized(1024, 4096) + 1024**2,
        periods() + stft(3, bands=5),
    ),
    "dac_16khz": of_dac([2, 4, 5, 8], 12),
    "dac_24khz": of_dac([2, 4, 5, 8], 32),
    "dac_44khz": of_dac([2, 4, 8, 8], 9),
    "snac_24khz": snac(),
    "mimi_24khz": mimi(),
    "esc_16khz": dict(
        zip(
            ("encoder", "quantizer", "decoder"),
            (
                esc(CHANNELS, HEADS)[0],
                3 * sum(factorized(dim, 1024) for dim in (512, 512, 512, 768, 1024, 1536)),
                esc(CHANNELS, HEADS)[1],
            ),
            strict=True,
        )
    ),
    "nanocodec_22khz": parts(hifi((48, 32), (2, 2, 4, 8, 8), 32), 0, periods() + stft()),
    "encodec_24khz": parts(seanet(32, (2, 4, 5, 8), 128, 7, lstms=2, skip=True), 32 * 1024 * 128, stft()),
    "simvq_single_24khz": parts(
        seanet(32, (2, 4, 5, 8), 512, 7), 65536 * 512 + convolution(512, 512, 1), periods() + stft(3, bands=5)
    ),
}

STATED = {"esc_16khz": 8, "snac_24khz": 20}
