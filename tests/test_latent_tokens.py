"""Latent tokens: their encoder and decoder, and what a tokenizer whose indices are (B, T) goes through.

The equations, written a second time, are in `tests/conversion/titok.py`.
"""

import copy
from functools import partial
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import vqkit.layouts as layouts
from tests.command_line.test_pictures import files_of, pixels_of, run
from tests.refusals import refused
from tests.trainers.tiny import LIGHTNING_REMARKS, Images, make_image_task, make_trainer
from vqkit import (
    Decode,
    Encode,
    PrefixQuantizer,
    Quantizer,
    ResidualQuantizer,
    Tiles,
    Tokenizer,
    TokenShards,
    TokenShardWriter,
)
from vqkit.backbones.conv2d import ConvDecoder2d
from vqkit.backbones.latent_tokens import CodeHead, LatentTokenDecoder, LatentTokenEncoder, PixelHead, TiTokEncoder
from vqkit.bitstream.codec import TokenCodec

pytestmark = LIGHTNING_REMARKS

SIZES = {"dim": 6, "num_tokens": 5, "image_size": 16, "patch_size": 4, "channels": 16, "depth": 1, "num_heads": 2}
PIXELS = {"dim": 7, "channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "patch_size": 4, "norm_groups": 4}


def code_head(**options) -> CodeHead:
    return CodeHead(**{"pixels": ConvDecoder2d(**PIXELS), "channels": 16, "codebook_size": 12} | options)


def make(head: nn.Module | None = None, quantizer=None, **options) -> Tokenizer:
    torch.manual_seed(0)
    head = head or PixelHead(channels=16, patch_size=4)
    quantizer = quantizer or Quantizer("vq", dim=6, codebook_size=32, normalize=True)
    decoder = LatentTokenDecoder(head=head, **SIZES | options)
    return Tokenizer(LatentTokenEncoder(**SIZES), quantizer, decoder)


def pictures(number: int = 3, size: int = 16) -> Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("head", [None, code_head])
def test_shapes_gradients_prefixes_and_the_saved_model(head, tmp_path) -> None:
    tokenizer = make(head and head(), context_tokens=2)
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.3)  # residual branches of convolutions start at zero
    images = pictures()
    indices = tokenizer.encode(images)
    assert indices.shape == (3, 5)
    output = tokenizer(images)
    assert output.reconstruction.shape == images.shape and torch.equal(output.quantizer.indices, indices)
    (output.reconstruction.square().sum() + output.quantizer.loss).backward()
    assert all(bool(parameter.grad.any()) for parameter in tokenizer.parameters())
    tokenizer.eval().save_pretrained(tmp_path)
    loaded = Tokenizer.from_pretrained(tmp_path)
    drawn = [loaded.decode(indices[:, :number]) for number in range(1, 6)]
    assert all(part.shape == images.shape for part in drawn)
    assert all(not torch.equal(part, drawn[-1]) for part in drawn[:-1])
    torch.testing.assert_close(drawn[-1], tokenizer.decode(indices), rtol=0, atol=0)


def test_a_latent_has_the_channels_of_its_token_and_in_titok_those_of_all() -> None:
    tokens = torch.arange(2 * 5 * 16, dtype=torch.float32).reshape(2, 5, 16)
    for kind in (LatentTokenEncoder, TiTokEncoder):
        encoder = kind(**SIZES | {"dim": 16})
        nn.init.eye_(encoder.projection.weight)
        for sample, latents in zip(tokens, encoder.project(tokens), strict=True):
            row = sample.flatten()
            own = [row[token::5] for token in range(5)] if kind is TiTokEncoder else list(sample)
            assert torch.equal(latents, torch.stack(own))


def test_logits_are_read_by_the_teachers_codes_and_decoder() -> None:
    decoder = make(code_head()).decoder
    tokens = decoder.patch_tokens(torch.randn(2, 5, 6))
    logits = decoder.head.logits(tokens)
    assert logits.shape == (2, 12, 4, 4)
    nn.init.zeros_(decoder.head.to_logits[2].weight)
    nn.init.constant_(decoder.head.to_logits[2].bias, -100.0)
    decoder.head.to_logits[2].bias.detach()[3] = 100.0
    chosen = decoder.head.codes.weight[3].reshape(1, -1, 1, 1).expand(2, -1, 4, 4)
    torch.testing.assert_close(decoder.head(tokens), decoder.head.pixels(chosen.contiguous()))


test_what_does_not_fit_is_refused = refused(
    (lambda: make().encode(pictures(size=20)), "images of 20 x 20 pixels: expected 16 x 16, the one size"),
    (lambda: make().encode(torch.zeros(1, 1, 16, 16)), r"images has shape \(1, 1, 16, 16\): expected \(B, 3,"),
    (lambda: make().encode(torch.zeros(3, 16, 16)), r"images has shape \(3, 16, 16\): expected \(B, 3,"),
    (lambda: make().decode(torch.zeros(1, 6, dtype=torch.int64)), r"\(1, 6, 6\): expected \(B, n, 6\), .* of 5"),
    (lambda: make().decode(torch.zeros(1, 0, dtype=torch.int64)), r"\(1, 0, 6\): expected \(B, n, 6\)"),
    (lambda: LatentTokenEncoder(**SIZES | {"patch_size": 5}), "image_size=16: expected a multiple of patch_size=5"),
    (lambda: LatentTokenEncoder(**SIZES | {"num_tokens": 0}), "num_tokens=0"),
    (lambda: LatentTokenEncoder(**SIZES | {"num_heads": 3}), "num_heads=3"),
    (lambda: LatentTokenEncoder(**SIZES | {"depth": 0}), "depth=0"),
    (lambda: make(context_tokens=-1), "context_tokens=-1: expected 0 or more"),
    (lambda: make(PixelHead(channels=8, patch_size=4)), "head=PixelHead has channels=8: expected 16"),
    (lambda: make(PixelHead(channels=16)), "head=PixelHead has downsampling_factor=16: expected 4"),
    (lambda: code_head(pixels=nn.Conv2d(7, 3, 1)), "pixels=Conv2d has dim=None and channel_dim=None: expected"),
    (lambda: code_head(codebook_size=0), "codebook_size=0"),
    (lambda: make(quantizer=Quantizer("vq", dim=6, codebook_size=8, channel_dim=1)), "encoder.channel_dim=-1 and"),
    (lambda: Tiles(32).encode(make(), pictures(size=32)), "takes pictures of 16 x 16 pixels, .* no grid of patches"),
)


def test_prefixes_are_trained_and_decoded_with_a_mask_token_behind() -> None:
    tokens = partial(Quantizer, "vq", dim=6, codebook_size=32, normalize=True)
    tokenizer = make(quantizer=PrefixQuantizer(tokens, mask_token=True))
    output = tokenizer(pictures(8))
    lengths = (output.quantizer.indices >= 0).sum(1)
    assert len(lengths.unique()) > 1
    tokenizer.eval()
    indices = tokenizer.encode(pictures(8))
    cut = tokenizer.quantizer.prefix(indices, lengths)
    torch.testing.assert_close(tokenizer.decode(cut), output.reconstruction, rtol=0, atol=1e-5)
    assert tokenizer.decode(indices[:, :2]).shape == (8, 3, 16, 16)


def test_levels_of_each_token_are_a_last_axis() -> None:
    stage = partial(Quantizer, "vq", dim=6, codebook_size=32)
    tokenizer = make(quantizer=ResidualQuantizer(stage, 2)).eval()
    indices = tokenizer.encode(pictures())
    assert indices.shape == (3, 5, 2)
    assert tokenizer.decode(indices[:, :4, :1]).shape == (3, 3, 16, 16)


def test_indices_are_sequences_in_shards_files_and_layouts(tmp_path) -> None:
    tokenizer = make().eval()
    indices = tokenizer.encode(pictures())
    writer = TokenShardWriter(tmp_path, tokenizer.quantizer)
    writer.add(indices, ["a", "b", "c"])
    writer.close()
    shards = TokenShards(tmp_path)
    assert torch.equal(torch.stack([torch.as_tensor(shards[number]["indices"]) for number in range(3)]), indices)
    codec = TokenCodec.of(tokenizer)
    assert torch.equal(codec.unpack(codec.pack(indices).content).indices, indices)
    layout, vocabulary = layouts.flat(5).framed(["bos"]), layouts.Vocabulary.flat([32])
    assert torch.equal(layout.unpack(layout.pack(indices, vocabulary), vocabulary), indices)


def picture(path: Path, height: int, width: int) -> Path:
    pixels = numpy.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_command_takes_pictures_of_its_size_and_refuses_others(tmp_path, capsys) -> None:
    tokenizer = make().eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "photos").mkdir()
    right = picture(tmp_path / "photos/right.png", 16, 16)
    picture(tmp_path / "photos/wide.png", 16, 24)
    assert run("encode", "--tokenizer", tmp_path / "tokenizer", tmp_path / "photos", tmp_path / "coded") == 1
    said = capsys.readouterr()
    assert (
        "wide.png: has 24 x 16 pixels: this tokenizer takes pictures of 16 x 16 alone; give --crop, or resize it"
        in said.err
    )
    assert "1 of 2 files" in said.out and files_of(tmp_path / "coded") == ["right.vqk"]
    assert run("decode", "--tokenizer", tmp_path / "tokenizer", tmp_path / "coded", tmp_path / "again") == 0
    data = torch.from_numpy(pixels_of(right)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    drawn = tokenizer.decode(tokenizer.encode(data))[0].detach()
    expected = (((drawn + 1) / 2).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    assert numpy.array_equal(pixels_of(tmp_path / "again/right.png"), expected)


def test_a_task_trains_measures_and_refuses_other_resolutions() -> None:
    tokenizer = make()
    before = copy.deepcopy(tokenizer.state_dict())
    task = make_image_task(tokenizer)
    trainer = make_trainer(max_steps=2)
    trainer.fit(task, datamodule=Images(4))
    assert all(
        not torch.equal(value, before[name]) for name, value in tokenizer.encoder.state_dict(prefix="encoder.").items()
    )
    data = Images(4)
    data.resolution = 32
    with pytest.raises(ValueError, match=r"data\.resolution=32: the encoder takes 16 x 16 pixels alone"):
        make_trainer(max_steps=1).fit(make_image_task(make()), datamodule=data)


def test_low_precision_and_autocast_are_near(tmp_path) -> None:
    tokenizer = make(code_head()).eval()
    latents = tokenizer.encoder(pictures())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        near = tokenizer.encoder(pictures())
    # Layer norms keep numbers about 1; each of some ten roundings to 8 bits of mantissa moves them by 2^-8 or less.
    assert (near - latents).abs().max() < 10 * 2**-8 * latents.abs().max()
    low = make(code_head()).bfloat16().eval()
    assert low.decode(low.encode(pictures())).dtype == torch.bfloat16


@pytest.mark.slow
def test_it_is_exported_and_compiled(tmp_path) -> None:
    from tests.test_exporting import File  # skips where there is no ONNX Runtime

    tokenizer, images = make(code_head()).eval(), pictures()
    indices = tokenizer.encode(images)
    for module, example, others in (
        (Encode(tokenizer), images, [images[:1], images]),
        (Decode(tokenizer), indices, [indices[:1], indices]),
    ):
        written = File(module, example, tmp_path / "model.onnx")
        for x in others:
            torch.testing.assert_close(written(x), module(x), rtol=0, atol=1e-4)
    compiled = torch.compile(tokenizer, fullgraph=True)
    torch.testing.assert_close(compiled(images).reconstruction, tokenizer(images).reconstruction, rtol=0, atol=1e-4)
