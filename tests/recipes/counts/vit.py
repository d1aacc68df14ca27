"""Vision transformers, from the lists of layers of their papers and releases."""

import itertools

from tests.recipes.counts.layers import convolution, linear, norm


def transformer(width: int, depth: int, hidden: int) -> int:
    """Blocks and the norm behind them, all with biases."""
    attention = norm(width) + linear(width, 3 * width) + linear(width, width)
    return depth * (attention + norm(width) + linear(width, hidden) + linear(hidden, width)) + norm(width)


def stylegan2(side: int = 256, base: int = 32768, most: int = 512) -> int:
    """The residual discriminator: a map of the colours, blocks down to 4 pixels, and the head behind the deviation."""
    widths = []
    while side >= 4:
        widths.append(min(base // side, most))
        side //= 2
    total = convolution(3, widths[0], 1)
    for before, after in itertools.pairwise(widths):
        total += (
            convolution(before, before, 3) + convolution(before, after, 3) + convolution(before, after, 1, bias=False)
        )
    last = widths[-1]
    return total + convolution(last + 1, last, 3) + linear(16 * last, last) + linear(last, 1)


def vit_vqgan(width: int, depth: int, hidden: int, *, code_dim: int = 32, codes: int = 8192) -> dict[str, int]:
    """Patches of 8 x 8 on a grid of 32 x 32; two linear maps with tanh at both ends; factorized codes."""
    positions = 32 * 32 * width
    return {
        "encoder": convolution(3, width, 8) + positions + transformer(width, depth, hidden)
        + linear(width, hidden) + linear(hidden, width),
        "quantizer": linear(width, code_dim) + codes * code_dim + linear(code_dim, width),
        "decoder": positions + transformer(width, depth, hidden) + linear(width, hidden) + linear(hidden, 8 * 8 * 3),
        "discriminators": stylegan2(),
    }  # fmt: skip


def bsq_vit(bits: int) -> dict[str, int]:
    """The release: no bias of the patches, a norm in front of the blocks, and an output by a layer 3072 wide."""
    width, positions = 768, 32 * 32 * 768
    blocks = norm(width) + transformer(width, 12, 3072)
    return {
        "encoder": convolution(3, width, 8, bias=False) + positions + blocks + linear(width, bits),
        "quantizer": 0,
        "decoder": linear(bits, width) + positions + blocks + linear(width, 3072) + linear(3072, 8 * 8 * 3),
        "discriminators": stylegan2(),
    }


def vitamin_large() -> int:
    """ViTamin-L without class token, positions and classes: two stages of mobile convolutions, 31 gated blocks."""

    def mobile(before: int, after: int) -> int:
        hidden = 4 * after
        inner = convolution(before, hidden, 1) + hidden * 9 + hidden + convolution(hidden, after, 1)
        return norm(before) + inner + (convolution(before, after, 1) if before != after else 0)

    stem = convolution(3, 160, 3) + norm(160) + convolution(160, 160, 3)
    stages = 2 * mobile(160, 160) + mobile(160, 320) + 3 * mobile(320, 320)
    down = norm(320) + convolution(320, 1024, 3)
    gated = norm(1024) + 2 * linear(1024, 2048) + linear(2048, 1024)
    block = norm(1024) + linear(1024, 3 * 1024) + linear(1024, 1024) + norm(1024) + gated
    return stem + stages + down + 31 * block + norm(1024)


def attention_projection(before: int, after: int) -> int:
    """UniTok's map by attention: shortcut, attention without bias of the keys, and gated maps twice as wide."""
    width = max(before, after)
    attention = norm(before) + linear(before, 3 * width, bias=False) + 2 * width + linear(after, after)
    gated = 2 * norm(after) + 2 * linear(after, 2 * after) + linear(2 * after, after)
    return norm(before) + linear(before, after) + attention + gated


def projected(channels: int = 384, heads: int = 4, kernel: int = 9) -> int:
    """Heads of a frozen transformer: rings of convolutions, group norms, logits."""
    head = linear(channels, channels) + norm(channels) + kernel * channels**2 + channels + norm(channels)
    return heads * (head + linear(channels, 1))


COUNTS = {
    "vit_vqgan": vit_vqgan(768, 12, 3072),
    "bsq_vit": bsq_vit(18),
    "unitok": {
        "encoder": vitamin_large(),
        "quantizer": attention_projection(1024, 64) + 8 * 4096 * 8 + attention_projection(64, 1024),
        "decoder": 16 * 16 * 1024 + transformer(1024, 31, 2048) + linear(1024, 16 * 16 * 3),
        "discriminators": projected(),
    },
}
