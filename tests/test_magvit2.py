from functools import partial

import pytest
import torch
from torch import nn

from tests.test_image_backbones import SMALL, shake
from tests.test_image_backbones import build as build_kind
from vqkit.backbones.layers2d import group_norms
from vqkit.backbones.magvit2 import AdaptiveGroupNorm2d, MAGVIT2Decoder, MAGVIT2Encoder, SubpixelUpsample2d

build = partial(build_kind, "magvit2", channel_multipliers=(1, 2))


def blocks_of(module: nn.Module) -> int:
    return sum(name.endswith("branch.6.weight") for name, _ in module.named_parameters())


@pytest.mark.parametrize(("blocks", "middle", "expected"), [(1, None, 3), (1, 3, 5), (2, 1, 5)])
def test_as_many_blocks_in_the_decoder_as_in_the_encoder(blocks: int, middle: int | None, expected: int) -> None:
    parts = build(num_res_blocks=blocks, num_middle_blocks=middle)
    assert [blocks_of(part) for part in parts] == [expected, expected]


@pytest.mark.parametrize("kind", [MAGVIT2Encoder, MAGVIT2Decoder])
def test_no_block_in_the_middle_is_refused(kind: type) -> None:
    with pytest.raises(ValueError, match="num_middle_blocks=0: expected a positive number"):
        kind(**SMALL, num_middle_blocks=0)


def test_residual_blocks_and_the_first_convolution_have_no_bias() -> None:
    for part in build(channel_multipliers=(1, 2, 2)):
        for name, layer in part.named_modules():
            if isinstance(layer, nn.Conv2d):
                alone = name.count(".") == 1 or name.endswith("convolution")  # `layers.3`, not one inside of a block
                first = name == "layers.0" and isinstance(part, MAGVIT2Encoder)
                assert (layer.bias is not None) == (alone and not first), name


def test_a_stride_is_padded_on_all_sides() -> None:
    """A kernel of one tap in its middle takes every other pixel, beginning with the first."""
    encoder, _ = build()
    (stride,) = (layer for layer in encoder.layers if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2))
    with torch.no_grad():
        stride.weight.zero_()[range(8), range(8), 1, 1] = 1
        stride.bias.zero_()
    x = torch.randn(2, 8, 6, 4)
    torch.testing.assert_close(stride(x), x[:, :, ::2, ::2], rtol=0, atol=0)


def test_upsampling_makes_two_by_two_pixels_of_four_channels() -> None:
    layer = SubpixelUpsample2d(3)
    with torch.no_grad():
        layer.convolution.weight.zero_()
        layer.convolution.bias.copy_(torch.arange(12.0))
    doubled = layer(torch.randn(1, 3, 2, 2))
    expected = torch.arange(12.0).view(3, 2, 2).repeat(1, 2, 2)
    torch.testing.assert_close(doubled[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [(3, 5), (1, 1)])
def test_the_adaptive_norm_is_that_of_its_equation(size: tuple[int, int]) -> None:
    norm = AdaptiveGroupNorm2d(8, 5, groups=4, eps=1e-6).double()
    x, latents = torch.randn(2, 8, 7, 3).double(), torch.randn(2, 5, *size).double()
    plain = group_norms(4, 1e-6)(8).double()
    torch.testing.assert_close(norm(x, latents), plain(x), rtol=0, atol=1e-14)  # as it starts
    shake(norm)
    places = latents.flatten(2)
    variance = places.var(-1) if places.shape[-1] > 1 else torch.zeros(2, 5).double()
    gain = (variance + 1e-6).sqrt() @ norm.gain.weight.T + norm.gain.bias
    shift = places.mean(-1) @ norm.shift.weight.T + norm.shift.bias
    expected = gain[:, :, None, None] * plain(x) + shift[:, :, None, None]
    # Sums of some twenty products of numbers up to about 3, each rounded by 1e-16.
    torch.testing.assert_close(norm(x, latents), expected, rtol=0, atol=1e-13)
