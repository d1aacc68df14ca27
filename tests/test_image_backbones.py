"""What all convolutional encoders and decoders of pictures do; what only one family does is in a file of its own."""

from typing import Any

import pytest
import torch
from torch import nn

from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.magvit2 import MAGVIT2Decoder, MAGVIT2Encoder
from vqkit.backbones.maskgit import MaskGITDecoder2d, MaskGITEncoder2d
from vqkit.saving.config import from_config, to_config

Options = dict[str, Any]

KINDS: dict[str, tuple[type, type]] = {
    "conv2d": (ConvEncoder2d, ConvDecoder2d),
    "magvit2": (MAGVIT2Encoder, MAGVIT2Decoder),
    "maskgit": (MaskGITEncoder2d, MaskGITDecoder2d),
}
SMALL: Options = {"dim": 6, "channels": 8, "norm_groups": 4, "num_res_blocks": 1}
CASES: list[tuple[str, Options]] = [
    ("conv2d", {"channel_multipliers": (1,)}),
    ("conv2d", {"channel_multipliers": (1, 2), "attention_factors": (1, 2)}),
    ("conv2d", {"channel_multipliers": (1, 1, 2), "patch_size": 2, "attention_factors": (8,)}),
    ("conv2d", {"channel_multipliers": (1,), "patch_size": 4, "linear_path": True}),
    (
        "conv2d",
        {"channel_multipliers": (1, 2), "attention_heads": 1, "middle_attention": True, "latent_kernel_size": 3},
    ),
    (
        "conv2d",
        {"channel_multipliers": (1,), "attention_factors": (1,), "middle_attention": False, "attention_heads": 2},
    ),
    ("conv2d", {"channel_multipliers": (1, 1), "latent_kernel_size": 1, "latent_channels": 9, "linear_path": True}),
    (
        "conv2d",
        {"channel_multipliers": (2, 1), "patch_size": 3, "linear_path": True, "num_res_blocks": 2, "dropout": 0.1},
    ),
    ("magvit2", {"channel_multipliers": (1, 2)}),
    ("magvit2", {"channel_multipliers": (1, 2), "adaptive_norm": False}),
    ("magvit2", {"channel_multipliers": (1,), "num_middle_blocks": 3}),
    (
        "magvit2",
        {"channel_multipliers": (2, 1, 3), "num_res_blocks": 2, "num_middle_blocks": 1, "dropout": 0.1}
        | {"adaptive_norm": False},
    ),
    ("maskgit", {"channel_multipliers": (1,)}),
    ("maskgit", {"channel_multipliers": (1, 2)}),
    ("maskgit", {"channel_multipliers": (2, 1, 3), "dropout": 0.1}),
]
TRACED: Options = {"channel_multipliers": (1, 1), "patch_size": 2, "attention_factors": (4,), "linear_path": True}


def build(kind: str, adaptive_norm: bool | None = None, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    encoder, decoder = KINDS[kind]
    own = {} if adaptive_norm is None else {"adaptive_norm": adaptive_norm}
    return encoder(**SMALL | options), decoder(**SMALL | options | own)


def shake(*modules: nn.Module) -> None:
    """Move parameters away from their zeros, so that every branch takes part."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_shapes_gradients_and_any_multiple_of_the_factor(kind: str, options: Options) -> None:
    encoder, decoder = build(kind, **options)
    shake(encoder, decoder)
    factor = encoder.downsampling_factor
    assert factor == decoder.downsampling_factor
    assert factor == options.get("patch_size", 1) * 2 ** (len(options["channel_multipliers"]) - 1)
    assert isinstance(decoder.get_submodule(decoder.output_layer), nn.Conv2d)
    images = torch.randn(2, 3, 2 * factor, 3 * factor, requires_grad=True)
    latents = encoder(images)
    assert latents.shape == (2, 6, 2, 3)
    reconstruction = decoder(latents)
    assert reconstruction.shape == images.shape
    reconstruction.square().sum().backward()
    assert images.grad is not None
    assert all(bool(parameter.grad.any()) for part in (encoder, decoder) for parameter in part.parameters())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 30, 32), "30 x 32 pixels cannot be divided by the downsampling factor 8: crop or pad"),
        ((1, 3, 32, 20), "32 x 20 pixels cannot be divided"),
        ((1, 1, 32, 32), r"images has shape \(1, 1, 32, 32\): expected \(B, 3, H, W\)"),
        ((3, 32, 32), r"add a batch axis with images\[None\]"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_images_that_do_not_fit_are_refused(kind: str, shape: tuple[int, ...], message: str) -> None:
    encoder, _ = build(kind, channel_multipliers=(1, 1, 1, 1))
    with pytest.raises(ValueError, match=message):
        encoder(torch.zeros(shape))


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_do_not_fit_are_refused(kind: str) -> None:
    _, decoder = build(kind)
    with pytest.raises(ValueError, match=r"latents has shape \(1, 4, 4, 6\): expected \(B, 6, h, w\)"):
        decoder(torch.zeros(1, 4, 4, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_groups": 3}, "norm_groups=3 does not divide the width 8"),
        ({"norm_eps": 0}, "norm_eps=0: expected a positive number"),
        ({"channel_multipliers": ()}, r"channel_multipliers=\(\)"),
        ({"channel_multipliers": (1, 0)}, r"channel_multipliers=\(1, 0\)"),
        ({"dim": 0}, "dim=0: expected a positive number"),
        ({"num_res_blocks": 0}, "num_res_blocks=0: expected a positive number"),
    ],
)
@pytest.mark.parametrize("part", [part for parts in KINDS.values() for part in parts])
def test_bad_sizes_are_refused(part: type, options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(**SMALL | options)


@pytest.mark.parametrize("kind", KINDS)
def test_latents_and_images_start_in_a_sane_range(kind: str) -> None:
    encoder, decoder = build(kind, dim=16, channels=32, channel_multipliers=(1, 2))
    latents = encoder(torch.rand(2, 3, 32, 32) * 2 - 1)
    assert 0.1 < latents.std() < 3
    assert 0.01 < decoder(latents).std() < 1


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_memory_format_and_lower_precision(kind: str, options: Options) -> None:
    encoder, decoder = (part.eval() for part in build(kind, **options))
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
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("conv2d", TRACED),
        *(pytest.param(kind, {"channel_multipliers": (1, 2)}, marks=pytest.mark.slow) for kind in KINDS),
    ],
)
def test_exports_with_a_dynamic_batch_and_compiles_in_one_graph(kind: str, options: Options) -> None:
    model = nn.Sequential(*build(kind, **options)).eval()
    shake(model)
    images, more = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(more), model(more))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_configuration_round_trip(kind: str, options: Options) -> None:
    encoder, decoder = (part.eval() for part in build(kind, **options))
    images = torch.rand(1, 3, 24, 24)
    latents = encoder(images)
    for part, given in ((encoder, images), (decoder, latents)):
        restored = from_config(to_config(part)).eval()
        assert to_config(restored) == to_config(part)
        restored.load_state_dict(part.state_dict())
        assert torch.equal(restored(given), part(given))
