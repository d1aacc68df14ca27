from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from tests.test_conv2d import shake
from vqkit import LFQ, Tokenizer
from vqkit.backbones.layers2d import group_norms
from vqkit.backbones.magvit2 import AdaptiveGroupNorm2d, MAGVIT2Decoder, MAGVIT2Encoder, SubpixelUpsample2d
from vqkit.backbones.protocol import properties_of
from vqkit.saving.config import from_config, to_config

SMALL: dict[str, Any] = {"dim": 6, "channels": 8, "norm_groups": 4, "num_res_blocks": 1, "channel_multipliers": (1, 2)}
SHAPES: list[dict[str, Any]] = [
    {},
    {"channel_multipliers": (1,), "num_middle_blocks": 3},
    {"channel_multipliers": (2, 1, 3), "num_res_blocks": 2, "num_middle_blocks": 1, "dropout": 0.1},
]


def build(adaptive_norm: bool = True, **options: Any) -> tuple[MAGVIT2Encoder, MAGVIT2Decoder]:
    torch.manual_seed(0)
    options = SMALL | options
    return MAGVIT2Encoder(**options), MAGVIT2Decoder(adaptive_norm=adaptive_norm, **options)


def blocks_of(module: nn.Module) -> int:
    return sum(name.endswith("branch.6.weight") for name, _ in module.named_parameters())


@pytest.mark.parametrize("adaptive_norm", [True, False])
@pytest.mark.parametrize("options", SHAPES)
def test_shapes_gradients_and_any_multiple_of_the_factor(options: dict[str, Any], adaptive_norm: bool) -> None:
    encoder, decoder = build(adaptive_norm, **options)
    options = SMALL | options
    shake(encoder, decoder)
    levels = len(options["channel_multipliers"])
    factor = properties_of(encoder).downsampling_factor
    assert factor == properties_of(decoder).downsampling_factor == 2 ** (levels - 1)
    middle = options.get("num_middle_blocks", options["num_res_blocks"])
    assert blocks_of(encoder) == blocks_of(decoder) == options["num_res_blocks"] * levels + middle
    assert isinstance(decoder.get_submodule(decoder.output_layer), nn.Conv2d)
    images = torch.randn(2, 3, 2 * factor, 3 * factor, requires_grad=True)
    latents = encoder(images)
    assert latents.shape == (2, 6, 2, 3)
    reconstruction = decoder(latents)
    assert reconstruction.shape == images.shape
    reconstruction.square().sum().backward()
    assert images.grad is not None
    assert all(bool(parameter.grad.any()) for part in (encoder, decoder) for parameter in part.parameters())


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


test_images_that_do_not_fit_are_refused = refused(
    ((1, 3, 31, 32), "31 x 32 pixels cannot be divided by the downsampling factor 2: crop or pad"),
    ((1, 1, 32, 32), r"images has shape \(1, 1, 32, 32\): expected \(B, 3, H, W\)"),
    ((3, 32, 32), r"add a batch axis with images\[None\]"),
    by=lambda shape: build()[0](torch.zeros(shape)),
)


def test_latents_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents has shape \(1, 4, 4, 6\): expected \(B, 6, h, w\)"):
        build()[1](torch.zeros(1, 4, 4, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_groups": 3}, "norm_groups=3 does not divide the width 8"),
        ({"norm_eps": 0}, "norm_eps=0: expected a positive number"),
        ({"channel_multipliers": ()}, r"channel_multipliers=\(\)"),
        ({"dim": 0}, "dim=0: expected a positive number"),
        ({"num_res_blocks": 0}, "num_res_blocks=0: expected a positive number"),
        ({"num_middle_blocks": 0}, "num_middle_blocks=0: expected a positive number"),
    ],
)
@pytest.mark.parametrize("kind", [MAGVIT2Encoder, MAGVIT2Decoder])
def test_bad_sizes_are_refused(kind: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**SMALL | options)


def test_latents_and_images_start_in_a_sane_range() -> None:
    encoder, decoder = build(dim=16, channels=32)
    latents = encoder(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert 0.1 < latents.std() < 3
    assert 0.01 < decoder(latents.sign()).std() < 1


def test_memory_format_and_autocast() -> None:
    encoder, decoder = (part.eval() for part in build())
    shake(encoder, decoder)
    images = torch.rand(2, 3, 24, 24) * 2 - 1
    with torch.no_grad():
        expected = decoder(encoder(images))
        with torch.autocast("cpu", torch.bfloat16):
            lowered = decoder(encoder(images))
        encoder.to(memory_format=torch.channels_last), decoder.to(memory_format=torch.channels_last)
        last = decoder(encoder(images.to(memory_format=torch.channels_last)))
        whole = decoder.bfloat16()(encoder.bfloat16()(images.bfloat16()))
    torch.testing.assert_close(last, expected, atol=1e-4, rtol=1e-4)
    for found in (lowered, whole):
        assert (found.float() - expected).square().mean() < 1e-3 * expected.var()


@pytest.mark.slow
def test_exports_with_a_dynamic_batch_and_compiles_in_one_graph() -> None:
    model = nn.Sequential(*build()).eval()
    shake(model)
    images, more = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(more), model(more))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


def test_configuration_round_trip() -> None:
    for part in build(adaptive_norm=False, num_middle_blocks=2):
        restored = from_config(to_config(part))
        assert to_config(restored) == to_config(part)
        restored.load_state_dict(part.state_dict())


def test_a_tokenizer_is_saved_and_loaded(tmp_path) -> None:
    encoder, decoder = build()
    shake(encoder, decoder)
    tokenizer = Tokenizer(encoder, LFQ(6, channel_dim=1), decoder).eval()
    tokenizer.save_pretrained(tmp_path)
    images: Tensor = torch.rand(2, 3, 8, 12) * 2 - 1
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).reconstruction, tokenizer(images).reconstruction)
