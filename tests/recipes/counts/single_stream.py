"""Codecs of one codebook, from the lists of layers of their released code, weight norm folded."""

from itertools import pairwise

from tests.recipes.counts.layers import linear
from tests.recipes.counts.sound import convolution, dac, factorized, lstm, parts, periods, seanet, stft, widths


def norm(width: int) -> int:
    return 2 * width


def residual_block(width: int) -> int:
    """Two group norms, and two convolutions of three taps."""
    return 2 * (norm(width) + convolution(width, width, 3))


def vocos(dim: int, width: int, points: int, blocks: int) -> int:
    """A convolution of seven taps, the blocks, a norm, and the map to magnitudes and phases."""
    return convolution(dim, width, 7) + blocks + norm(width) + linear(width, points + 2)


def position_network(width: int) -> int:
    attention = norm(width) + 4 * convolution(width, width, 1)
    return 4 * residual_block(width) + attention + norm(width)


def convnext(width: int, layers: int) -> int:
    """Seven taps of each channel, a norm, three times the width and back, a factor of each channel; a norm before."""
    block = convolution(width, width, 7, groups=width) + norm(width) + linear(width, 3 * width)
    return norm(width) + layers * (block + linear(3 * width, width) + width)


def transformer(width: int, layers: int) -> int:
    """Two norms, queries, keys, values and their output, four times the width and back, and a factor of each branch."""
    return layers * (2 * norm(width) + 4 * width**2 + 8 * width**2 + 2 * width)


def second_snakes(channels: int, strides: tuple[int, ...]) -> tuple[int, int]:
    """What Snakes of two numbers for each channel have more than DAC's, on both sides."""
    wide = widths(channels, strides)
    units = 3 * 2 * sum(wide[:-1])
    return units + sum(wide), units + sum(wide[1:]) + wide[0]


def bigcodec(strides: tuple[int, ...], *, lstms: int) -> tuple[int, int]:
    sides = zip(dac((48, 48), strides, (1024, 1024)), second_snakes(48, strides), strict=True)
    first, second = (plain + snakes + lstm(widths(48, strides)[-1], lstms) for plain, snakes in sides)
    return first, second


def narrow_periods() -> int:
    """HiFi-GAN's of half the width."""
    wide = (1, 16, 64, 256, 512, 512)
    return 5 * (sum(convolution(*pair, 5) for pair in pairwise(wide)) + convolution(512, 1, 3))


WAVTOKENIZER = (
    seanet(32, (2, 4, 5, 8), 512, 7, lstms=2, skip=True)[0],
    vocos(512, 768, 4 * 320, position_network(768) + convnext(768, 12)),
)
XCODEC2 = (
    bigcodec((2, 2, 4, 4, 5), lstms=0)[0],
    vocos(1024, 1024, 4 * 320, 4 * residual_block(1024) + transformer(1024, 12)),
)
COUNTS = {
    "wavtokenizer_24khz": parts(WAVTOKENIZER, 4096 * 512, periods() + stft(3, bands=5)),
    "bigcodec_16khz": parts(bigcodec((2, 2, 2, 5, 5), lstms=2), factorized(1024, 8192), narrow_periods() + stft(5)),
    "xcodec2_16khz": parts(XCODEC2, convolution(1024, 8, 1) + convolution(8, 1024, 1), narrow_periods() + stft(8)),
}
STATED = {"bigcodec_16khz": 159}
