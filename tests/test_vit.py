"""Vision transformers: the equations a second time, published counts, sizes, and what runs them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from vqkit import Decode, Encode, Quantizer, Tiles, Tokenizer
from vqkit.backbones.activations import GELU, Tanh
from vqkit.backbones.positions import InterpolatedPositions, LearnedPositions, SinCosPositions
from vqkit.backbones.transformer import SelfAttention, TransformerBlock
from vqkit.backbones.vit import PatchEmbedding, ViTDecoder, ViTEncoder
from vqkit.saving.config import from_config, to_config

SMALL: dict[str, Any] = {"dim": 6, "image_size": 16, "patch_size": 4, "channels": 16, "depth": 2, "num_heads": 2}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bsq": {"input_norm": True, "head_channels": 24, "norm_eps": 1e-5},
    "tanh": {"activation": Tanh, "query_key_value_bias": False, "positions": SinCosPositions, "mlp_ratio": 1.5},
    "same width": {"dim": 16, "positions": InterpolatedPositions, "depth": 1},
}


def build(**options: Any) -> tuple[ViTEncoder, ViTDecoder]:
    torch.manual_seed(0)
    options = SMALL | options
    return ViTEncoder(**options).double(), ViTDecoder(**options).double()


def shake(*modules: nn.Module) -> None:
    """Move parameters away from zeros and ones, so that every one takes part."""
    for module in modules:
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)


def norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    return centred / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def transformed(x: Tensor, blocks: nn.Sequential) -> Tensor:
    """Tokens (B, T, C) through norms and blocks, written out."""
    for block in blocks:
        if isinstance(block, nn.LayerNorm):
            x = norm(x, block)
            continue
        assert isinstance(block, TransformerBlock)
        attention = block.attention
        assert isinstance(attention, SelfAttention)
        query, key, value = attention.query_key_value(norm(x, block.attention_norm)).chunk(3, dim=-1)
        size = x.shape[-1] // attention.num_heads
        heads = []
        for head in range(attention.num_heads):
            own = slice(head * size, (head + 1) * size)
            scores = query[..., own] @ key[..., own].mT / math.sqrt(size)
            heads.append((scores.exp() / scores.exp().sum(-1, keepdim=True)) @ value[..., own])
        x = x + attention.output(torch.cat(heads, -1))
        before, first, activation, second = block.mlp
        assert isinstance(before, nn.LayerNorm)
        hidden = first(norm(x, before))
        if isinstance(activation, GELU):
            hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        else:
            hidden = (hidden.exp() - (-hidden).exp()) / (hidden.exp() + (-hidden).exp())
        x = x + second(hidden)
    return x


def waves(height: int, width: int, channels: int) -> Tensor:
    table = torch.empty(height, width, channels, dtype=torch.float64)
    quarter = channels // 4
    for row in range(height):
        for column in range(width):
            for number in range(quarter):
                frequency = 10_000 ** (-number / quarter)
                for half, place in enumerate((column, row)):
                    table[row, column, 2 * half * quarter + number] = math.sin(place * frequency)
                    table[row, column, (2 * half + 1) * quarter + number] = math.cos(place * frequency)
    return table


def cubic(distance: float, a: float = -0.75) -> float:
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def positions_of(part: nn.Module, height: int, width: int, channels: int) -> Tensor:
    return waves(height, width, channels) if isinstance(part, SinCosPositions) else part.get_parameter("table")


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_equations(options: dict[str, Any]) -> None:
    encoder, decoder = build(**options)
    shake(encoder, decoder)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    projection = encoder.patches.projection
    tokens = torch.stack(
        [
            (projection.weight * images[:, None, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]).sum((2, 3, 4))
            for row in range(4)
            for column in range(4)
        ],
        1,
    )
    if projection.bias is not None:
        tokens = tokens + projection.bias
    tokens = tokens + positions_of(encoder.positions, 4, 4, 16).flatten(0, 1)
    expected = encoder.head(transformed(tokens, encoder.blocks)).mT.unflatten(2, (4, 4))
    latents = encoder(images)
    # Sums of at most 48 products in float64, of numbers of order one.
    torch.testing.assert_close(latents, expected, rtol=1e-10, atol=1e-10)

    tokens = decoder.input(latents.flatten(2).mT) + positions_of(decoder.positions, 4, 4, 16).flatten(0, 1)
    patches = decoder.head(transformed(tokens, decoder.blocks)).unflatten(2, (3, 4, 4))
    expected = torch.empty_like(images)
    for token in range(16):
        row, column = divmod(token, 4)
        expected[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = patches[:, token]
    reconstruction = decoder(latents)
    torch.testing.assert_close(reconstruction, expected, rtol=1e-10, atol=1e-10)

    reconstruction.square().sum().backward()
    assert images.grad is not None
    for part in (encoder, decoder):
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_configuration_round_trip(options: dict[str, Any]) -> None:
    encoder, decoder = build(**options)
    images = torch.rand(1, 3, 16, 16).double()
    for part, given in ((encoder, images), (decoder, encoder(images))):
        again = from_config(to_config(part)).double()
        assert to_config(again) == to_config(part)
        again.load_state_dict(part.state_dict())
        assert torch.equal(again(given), part(given))


def test_waves_go_on_and_learned_tables_are_resized() -> None:
    for positions in (SinCosPositions, InterpolatedPositions):
        encoder, decoder = build(positions=positions)
        images = torch.randn(1, 3, 8, 24, dtype=torch.float64)
        assert decoder(encoder(images)).shape == images.shape
    zeros = torch.zeros(1, 3, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(SinCosPositions(16, (1, 1))(zeros)[0], waves(3, 5, 16), rtol=0, atol=1e-14)


def test_interpolated_positions() -> None:
    part = InterpolatedPositions(4, (4, 4)).double()
    zeros = torch.zeros(1, 4, 4, 4, dtype=torch.float64)
    assert torch.equal(part(zeros)[0], part.table)
    with torch.no_grad():
        part.table.fill_(0.5)
    # The weights of an interpolation sum to one, so that a constant table stays one.
    other = part(torch.zeros(1, 7, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(other, torch.full_like(other, 0.5))
    ramp = torch.arange(4.0, dtype=torch.float64)
    with torch.no_grad():
        part.table.copy_(ramp[:, None, None].expand_as(part.table))
    larger = part(torch.zeros(1, 8, 4, 4, dtype=torch.float64))[0, :, 0, 0]
    # Of rows twice as many, the fourth has its centre a quarter behind the second of four: Keys' kernel with a = -0.75.
    expected = sum(cubic(row - 1.25) * row for row in range(4))
    torch.testing.assert_close(larger[3].item(), expected)
    LearnedPositions(4, (4, 4)).load_state_dict(part.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 18}, "image_size=18: expected a multiple of patch_size=4"),
        ({"num_heads": 3}, "num_heads=3: expected a divisor of the width 16"),
        ({"num_heads": 0}, "num_heads=0: expected a divisor of the width 16"),
        ({"depth": 0}, "depth=0: expected a positive number"),
        ({"patch_size": 0}, "patch_size=0: expected a positive number"),
        ({"dim": -1}, "dim=-1: expected a positive number"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
        ({"norm_eps": 0.0}, "norm_eps=0.0"),
        ({"head_channels": 0}, "head_channels=0: expected a positive number"),
        ({"channels": 6, "positions": SinCosPositions}, "channels=6: expected a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    for part in (ViTEncoder, ViTDecoder):
        with pytest.raises(ValueError, match=message):
            part(**SMALL | options)


test_images_that_do_not_fit_are_refused = refused(
    ((1, 3, 15, 16), "15 x 16 pixels cannot be divided into patches of 4: crop or pad"),
    ((1, 1, 16, 16), r"images has shape \(1, 1, 16, 16\): expected \(B, 3, H, W\)"),
    ((3, 16, 16), r"add a batch axis with images\[None\]"),
    ((1, 3, 16, 20), "a grid of 4 x 5 patches: positions were learned for 4 x 4; resize or crop"),
    by=lambda shape: ViTEncoder(**SMALL)(torch.zeros(shape)),
)


test_latents_that_do_not_fit_are_refused = refused(
    ((1, 4, 4, 6), r"latents has shape \(1, 4, 4, 6\): expected \(B, 6, h, w\)"),
    ((1, 6, 5, 4), "a grid of 5 x 4 patches: positions were learned for 4 x 4"),
    by=lambda shape: ViTDecoder(**SMALL)(torch.zeros(shape)),
)


def test_starting_values() -> None:
    encoder = ViTEncoder(dim=64, image_size=32, channels=64, depth=1, num_heads=1)
    for layer in encoder.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            # Of at least 4,096 normal numbers of standard deviation 0.02: its error is below 0.02 / sqrt(2 * 4096) each
            assert abs(layer.weight.std().item() - 0.02) < 5 * 0.02 / math.sqrt(2 * layer.weight.numel())
            assert layer.bias is not None
            assert not layer.bias.any()
    assert isinstance(encoder.patches, PatchEmbedding)


def tokenizer_of(**options: Any) -> Tokenizer:
    torch.manual_seed(0)
    options = SMALL | options
    parts = ViTEncoder(**options), ViTDecoder(**options)
    shake(*parts)
    return Tokenizer(parts[0], Quantizer("vq", dim=6, codebook_size=8, channel_dim=1), parts[1]).eval()


def test_larger_pictures_are_tiles_of_the_size_of_the_training() -> None:
    tokenizer = tokenizer_of()
    images = torch.rand(1, 3, 16, 32) * 2 - 1
    with pytest.raises(ValueError, match="a grid of 4 x 8 patches: positions were learned for 4 x 4"):
        tokenizer.encode(images)
    tiles = Tiles(16)
    indices = tiles.encode(tokenizer, images)
    assert torch.equal(indices, torch.cat([tokenizer.encode(part) for part in images.split(16, -1)], -1))
    decoded = torch.cat([tokenizer.decode(part.contiguous()) for part in indices.split(4, -1)], -1)
    # Each tile is one batch of one on both sides; a sum of float32 may take another order on memory of other strides.
    torch.testing.assert_close(tiles.decode(tokenizer, indices), decoded)
    with pytest.raises(ValueError, match="a grid of 2 x 4 patches: positions were learned for 4 x 4"):
        tiles.encode(tokenizer, images[:, :, :8])


@pytest.mark.slow
def test_compiles_in_one_graph_and_exports() -> None:
    for options in (SHAPES["bsq"], SHAPES["tanh"]):
        model = nn.Sequential(*build(**options)).float().eval()
        shake(model)
        images = torch.randn(2, 3, 16, 16)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(images), model(images))
        program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        more = torch.randn(3, 3, 16, 16)
        torch.testing.assert_close(program.module()(more), model(more))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bsq", "tanh"])
def test_onnx(name: str, tmp_path: Path) -> None:
    from tests.test_exporting import File  # skips where there is no ONNX Runtime

    tokenizer = tokenizer_of(**SHAPES[name])
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    found = File(Encode(tokenizer), images, tmp_path / "encode.onnx")(images)
    expected = tokenizer.encode(images)
    # A latent within rounding of the border between two codes may go to the other one.
    assert (found == expected).double().mean() > 0.9
    decoded = File(Decode(tokenizer), expected, tmp_path / "decode.onnx")(expected)
    torch.testing.assert_close(decoded, tokenizer.decode(expected), rtol=1e-3, atol=1e-3)


def test_autocast_and_bfloat16() -> None:
    """Two blocks in 8 bits of mantissa: norms in between keep errors of 2^-8 from growing by more than their number."""
    encoder, decoder = (part.float() for part in build(**SHAPES["bsq"]))
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = encoder(images)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoder(images)
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 32 * 2**-8 * expected.norm()
        assert decoder.bfloat16()(found).dtype == torch.bfloat16
