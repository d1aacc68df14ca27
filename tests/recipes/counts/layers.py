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


def token_heads(width: int, number: int) -> int:
    """Heads of `DinoDisc`: two convolutions along the patches, 1 and 9, each with group norm, and one to a logit."""
    inner = convolution(width, width, 1) + 9 * width**2 + width + 2 * norm(width)
    return number * (inner + linear(width, 1))


def bridge(dim: int, patch: int, *, width: int, blocks: int) -> int:
    """FVQ's: patches of a table of codes to tokens, blocks of a transformer whose norms have no weights, and back."""
    block = linear(width, 3 * width) + linear(width, width) + linear(width, 2 * width) + linear(2 * width, width)
    return linear(patch**2 * dim, width) + blocks * block + linear(width, patch**2 * dim)


def blur_patchgan(channels: int = 128) -> int:
    """1d-tokenizer's `NLayerDiscriminator`: three stages of a convolution, a blur and a group norm; a head of two."""
    widths = [channels, channels, 2 * channels, 4 * channels]
    stages = sum(convolution(before, after, 3) + norm(after) for before, after in itertools.pairwise(widths))
    return convolution(3, channels, 5) + stages + convolution(widths[-1], widths[-1], 1) + convolution(widths[-1], 1, 5)
