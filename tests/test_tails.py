"""Transposed convolutions that lack their last sample, as in DAC, and the end of the sound behind them."""

import math

import pytest
import torch
import torch.nn.functional as F

from vqkit import AudioTokenizer, Quantizer
from vqkit.backbones.conv1d import ConvDecoder1d, ConvEncoder1d
from vqkit.backbones.tails import DropLast1d, missing_at_end
from vqkit.backbones.temporal import Deconvolution1d

SIZES = {"dim": 6, "channels": 4, "dilations": (1, 3)}


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 8])
def test_a_layer_is_that_of_torch(stride: int) -> None:
    layer = Deconvolution1d(3, 2, 2 * stride, stride=stride, causal=False).double()
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    expected = F.conv_transpose1d(x, layer.weight(), layer.convolution.bias, stride, padding=math.ceil(stride / 2))
    found = layer(x)
    found = DropLast1d()(found) if stride % 2 else found
    assert expected.shape[-1] == 7 * stride - missing_at_end([stride])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("strides", "patch_size"), [((2, 4, 5, 8), 1), ((3, 5), 2), ((2, 4), 1)])
def test_the_sound_keeps_its_length_and_ends_in_zeros(strides: tuple[int, ...], patch_size: int) -> None:
    torch.manual_seed(0)
    options = SIZES | {"strides": strides, "patch_size": patch_size, "linear_path": False}
    decoder, whole = ConvDecoder1d(**options, drops_odd_last=True).double(), ConvDecoder1d(**options).double()
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    whole.load_state_dict(dict(zip(whole.state_dict(), decoder.state_dict().values(), strict=True)))
    latents = torch.randn(1, 6, 9, dtype=torch.float64)
    found, expected = decoder(latents)[0, 0], whole(latents)[0, 0]
    missing = {(2, 4, 5, 8): 8, (3, 5): 8, (2, 4): 0}[strides]
    assert found.shape == expected.shape == (9 * math.prod(strides) * patch_size,)
    assert int((found == 0).sum()) == missing and bool((found[len(found) - missing :] == 0).all())
    # The end changes what the last frames within reach of it hold, and nothing before.
    assert decoder.context == whole.context and whole.context is not None
    before = (9 - whole.context[1]) * decoder.downsampling_factor
    torch.testing.assert_close(found[:before], expected[:before], rtol=1e-12, atol=1e-12)
    assert bool(torch.allclose(found, expected)) == (missing == 0)


def test_blocks_give_the_same_sound() -> None:
    torch.manual_seed(0)
    sizes = {"dim": 6, "channels": 2, "strides": (2, 5), "dilations": (1,)}
    encoder, decoder = ConvEncoder1d(**sizes), ConvDecoder1d(**sizes, drops_odd_last=True)
    quantizer = Quantizer("vq", dim=6, codebook_size=8, channel_dim=1)
    codec = AudioTokenizer(encoder, quantizer, decoder, sample_rate=8000).double().eval()
    indices = torch.randint(8, (1, 40), generator=torch.Generator().manual_seed(1))
    blocks = list(codec.decode_blocks(indices.split(7, dim=1), frames_per_block=5))
    assert len(blocks) > 2
    torch.testing.assert_close(torch.cat(blocks, -1), codec.decode(indices), rtol=1e-10, atol=1e-10)


def test_a_causal_decoder_has_no_end_to_drop_at() -> None:
    with pytest.raises(ValueError, match="drops_odd_last=True with causal=True: expected one"):
        ConvDecoder1d(**SIZES, strides=(5,), causal=True, drops_odd_last=True)
