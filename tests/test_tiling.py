"""Pictures that a tokenizer encodes and decodes tile by tile."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from vqkit import FSQ, Quantizer, ResidualQuantizer, Tiles, Tokenizer


class Patches(nn.Conv2d):
    """Patches of 4 x 4 pixels, each seen with `margin` pixels around it."""

    downsampling_factor = 4

    def __init__(self, margin: int) -> None:
        super().__init__(3, 3, 4 + 2 * margin, stride=4, padding=margin)


class Picture(nn.Module):
    """Each patch in the colours of its code."""

    def forward(self, z: Tensor) -> Tensor:
        return z.repeat_interleave(4, -1).repeat_interleave(4, -2)


def tokenizer(margin: int, quantizer: nn.Module | None = None) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(Patches(margin), quantizer or FSQ([8, 8, 8], channel_dim=1), Picture()).eval()


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (24, 16), (60, 36), (12, 100), (4, 20)], ids=str)
@pytest.mark.parametrize(("margin", "overlap"), [(0, 0), (4, 4)])
def test_tokens_of_tiles_are_those_of_the_whole_picture(size, margin, overlap):
    whole, tiles = tokenizer(margin), Tiles(16, overlap=overlap)
    images = picture(*size)
    expected = whole.encode(images)
    tokens = tiles.encode(whole, images)
    assert expected.shape == (2, size[0] // 4, size[1] // 4) and len(expected.unique()) > 4
    assert torch.equal(tokens, expected)
    assert torch.equal(tiles.decode(whole, tokens), whole.decode(tokens))


def test_no_tile_is_larger_than_its_size_and_every_token_has_its_overlap():
    seen = []
    whole = tokenizer(0)
    whole.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    Tiles(16, overlap=4).encode(whole, picture(60, 16))
    assert seen == [(16, 16)] * 7  # steps of 8 pixels: 0, 8, ..., 40 and the last one back at 44
    for start, end, first, last in Tiles(16, overlap=4)._spans(15, 4):
        assert end - start == 4 and (first - start >= 1 or start == 0) and (end - last >= 1 or end == 15)


def test_a_smaller_overlap_than_the_network_sees_leaves_seams():
    whole, images = tokenizer(4), picture(32, 32)
    assert not torch.equal(Tiles(16).encode(whole, images), whole.encode(images))


def test_levels_are_kept():
    stage = partial(Quantizer, "ema", dim=3, codebook_size=16)
    residual = tokenizer(0, ResidualQuantizer(stage, 2, channel_dim=1))
    images = picture(24, 40)
    tokens = Tiles(16).encode(residual, images)
    assert tokens.shape == (2, 6, 10, 2) and torch.equal(tokens, residual.encode(images))
    assert torch.equal(Tiles(8).decode(residual, tokens), residual.decode(tokens))


class Enlarged(Picture):
    """Twice the size of what was encoded."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z).repeat_interleave(2, -1).repeat_interleave(2, -2)


def enlarging() -> Tokenizer:
    return Tokenizer(Patches(0), FSQ([8, 8, 8], channel_dim=1), Enlarged())


class Sequence(Patches):
    """Tokens in a row."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flatten(2)


test_what_cannot_be_joined_is_refused = refused(
    (lambda: Tiles(0), "size=0: expected at least 1"),
    (lambda: Tiles(16, overlap=8), "overlap=8: expected .* less than half of size=16"),
    (lambda: Tiles(18).encode(tokenizer(0), picture(36, 36)), "tiles size=18: expected a multiple of .*, 4"),
    (lambda: Tiles(16, overlap=2).encode(tokenizer(0), picture(36, 36)), "tiles overlap=2: expected a multiple"),
    (lambda: Tiles(16).encode(tokenizer(0), picture(30, 36)), "images of 36x30 pixels: expected multiples of 4"),
    (
        lambda: Tiles(16).encode(Tokenizer(Sequence(0), FSQ([8, 8, 8], channel_dim=1), Picture()), picture(32, 32)),
        r"has tokens of shape \(16,\): only tokens that are a grid",
    ),
    (
        lambda: Tiles(16).encode(
            Tokenizer(nn.Conv2d(3, 3, 4, 4), FSQ([8, 8, 8], channel_dim=1), Picture()), picture(8, 8)
        ),
        "encoder=Conv2d has no downsampling_factor, by which",
    ),
    (
        lambda: Tiles(16).decode(enlarging(), torch.zeros(1, 8, 8, dtype=torch.int64)),
        r"a tile of 4 x 4 patches is decoded to shape \(1, 3, 32, 32\): expected 16 x 16 pixels",
    ),
    (
        lambda: Tiles(16).decode(tokenizer(0), torch.zeros(1, 8, dtype=torch.int64)),
        r"indices has shape \(1, 8\): expected a grid of patches, \(B, h, w\)",
    ),
)
