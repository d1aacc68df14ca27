"""Parameters of layers."""

import itertools


def convolution(before: int, after: int, size: int, *, bias: bool = True) -> int:
    return before * after * size**2 + after * bias


def linear(before: int, after: int, *, bias: bool = True) -> int:
    return convolution(before, after, 1, bias=bias)


def norm(width: int) -> int:
    """Gains and shifts."""
    return 2 * width


def patchgan(channels: int = 64) -> int:
    """`NLayerDiscriminator` of three strided layers, with batch norm behind all but the first and the last."""
    widths = [channels, 2 * channels, 4 * channels, 8 * channels]
    inner = sum(convolution(before, after, 4, bias=False) + norm(after) for before, after in itertools.pairwise(widths))
    return convolution(3, channels, 4) + inner + convolution(widths[-1], 1, 4)


def blur_patchgan(channels: int = 128) -> int:
    """1d-tokenizer's `NLayerDiscriminator`: three stages of a convolution, a blur and a group norm; a head of two."""
    widths = [channels, channels, 2 * channels, 4 * channels]
    stages = sum(convolution(before, after, 3) + norm(after) for before, after in itertools.pairwise(widths))
    return convolution(3, channels, 5) + stages + convolution(widths[-1], widths[-1], 1) + convolution(widths[-1], 1, 5)
