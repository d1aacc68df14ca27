"""What holds for all convolutional encoders and decoders of images: shapes, gradients, precisions, tracing, saving."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from tests.backbones import shake
from tests.few import few
from vqkit import LFQ, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.backbones.magvit2 import MAGVIT2Decoder, MAGVIT2Encoder
from vqkit.backbones.maskgit import MaskGITDecoder2d, MaskGITEncoder2d
from vqkit.backbones.protocol import properties_of
from vqkit.saving.config import from_config, to_config

SMALL: dict[str, Any] = {"dim": 6, "channels": 8, "norm_groups": 4, "num_res_blocks": 1, "channel_multipliers": (1, 2)}
KINDS: dict[str, tuple[Any, Any]] = {
    "conv": (ConvEncoder2d, ConvDecoder2d),
    "magvit2": (MAGVIT2Encoder, MAGVIT2Decoder),
    "magvit2 without adaptive norms": (MAGVIT2Encoder, partial(MAGVIT2Decoder, adaptive_norm=False)),
    "maskgit": (MaskGITEncoder2d, MaskGITDecoder2d),
}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "conv": [
        {"channel_multipliers": (1,)},
        {"channel_multipliers": (1, 2), "attention_factors": (1, 2)},
        {"channel_multipliers": (1, 1, 2), "patch_size": 2, "attention_factors": (8,)},
        {"channel_multipliers": (1,), "patch_size": 4, "linear_path": True},
        {"channel_multipliers": (1, 2), "attention_heads": 1, "middle_attention": True, "latent_kernel_size": 3},
        {"channel_multipliers": (1,), "attention_factors": (1,), "middle_attention": False, "attention_heads": 2},
        {"channel_multipliers": (1, 1), "latent_kernel_size": 1, "latent_channels": 9, "linear_path": True},
        {"channel_multipliers": (2, 1), "patch_size": 3, "linear_path": True, "num_res_blocks": 2, "dropout": 0.1},
    ],
    "magvit2": [
        {},
        {"channel_multipliers": (1,), "num_middle_blocks": 3},
        {"channel_multipliers": (2, 1, 3), "num_res_blocks": 2, "num_middle_blocks": 1, "dropout": 0.1},
    ],
    "maskgit": [
        {"channel_multipliers": (1,)},
        {"channel_multipliers": (1, 2), "dropout": 0.1},
        {"channel_multipliers": (2, 1, 3)},
    ],
}
SHAPES["magvit2 without adaptive norms"] = SHAPES["magvit2"]
TRACED = {"conv": {"channel_multipliers": (1, 1), "patch_size": 2, "attention_factors": (4,), "linear_path": True}}

each = pytest.mark.parametrize("kind", KINDS)
each_shape = pytest.mark.parametrize(("kind", "options"), [(kind, some) for kind in KINDS for some in SHAPES[kind]])


def build(kind: str, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    encoder, decoder = (part(**SMALL | options) for part in KINDS[kind])
    shake(encoder, decoder, std=0.1)
    return encoder, decoder


@each_shape
def test_shapes_gradients_and_any_multiple_of_the_factor(kind: str, options: dict[str, Any]) -> None:
    encoder, decoder = build(kind, **options)
    levels = len((SMALL | options)["channel_multipliers"])
    factor = properties_of(encoder).downsampling_factor
    assert factor == properties_of(decoder).downsampling_factor == options.get("patch_size", 1) * 2 ** (levels - 1)
    images = torch.randn(2, 3, 2 * factor, 3 * factor, requires_grad=True)
    latents = encoder(images)
    assert latents.shape == (2, 6, 2, 3)
    reconstruction = decoder(latents)
    assert reconstruction.shape == images.shape
    reconstruction.square().sum().backward()
    assert images.grad is not None
    assert all(bool(parameter.grad.any()) for part in (encoder, decoder) for parameter in part.parameters())


@each_shape
def test_memory_format_and_low_precision(kind: str, options: dict[str, Any]) -> None:
    encoder, decoder = (part.eval() for part in build(kind, **options))
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


@pytest.mark.parametrize("kind", few([*KINDS], "conv"))
def test_exports_with_a_dynamic_batch_and_compiles_in_one_graph(kind: str) -> None:
    model = nn.Sequential(*build(kind, **TRACED.get(kind, {}))).eval()
    images, more = torch.randn(2, 3, 16, 16), torch.randn(3, 3, 16, 16)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.testing.assert_close(program.module()(more), model(more))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images))


@each
def test_the_configuration_builds_it_again_and_a_tokenizer_is_saved_and_loaded(kind: str, tmp_path) -> None:
    parts = build(kind, **SHAPES[kind][2])
    for part in parts:
        restored = from_config(to_config(part))
        assert to_config(restored) == to_config(part)
        restored.load_state_dict(part.state_dict())
    tokenizer = Tokenizer(parts[0], LFQ(6, channel_dim=1), parts[1]).eval()
    tokenizer.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 8, 24) * 2 - 1
    loaded = Tokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).reconstruction, tokenizer(images).reconstruction)


@each
def test_inputs_that_do_not_fit_are_refused(kind: str) -> None:
    encoder, decoder = build(kind)
    for part, shape, message in (
        (encoder, (1, 3, 31, 32), "31 x 32 pixels cannot be divided by the downsampling factor 2: crop or pad"),
        (encoder, (1, 3, 32, 31), "32 x 31 pixels cannot be divided"),
        (encoder, (1, 1, 32, 32), r"images has shape \(1, 1, 32, 32\): expected \(B, 3, H, W\)"),
        (encoder, (3, 32, 32), r"add a batch axis with images\[None\]"),
        (decoder, (1, 4, 4, 6), r"latents has shape \(1, 4, 4, 6\): expected \(B, 6, h, w\)"),
    ):
        with pytest.raises(ValueError, match=message):
            part(torch.zeros(shape))


@each
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
def test_bad_sizes_are_refused(kind: str, options: dict[str, Any], message: str) -> None:
    for part in KINDS[kind]:
        with pytest.raises(ValueError, match=message):
            part(**SMALL | options)
