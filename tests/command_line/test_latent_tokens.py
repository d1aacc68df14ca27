"""`python -m vqkit` on one-dimensional tokens: prefixes, and pictures that are cut to the one size."""

from functools import partial

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

from tests.command_line.test_pictures import drawn, picture, pixels_of, run
from tests.test_latent_tokens import make
from tests.trainers.tiny import make_tokenizer
from vqkit import PrefixQuantizer, Quantizer
from vqkit.bitstream.codec import TokenCodec

SIDE, TOKENS = 16, 5


def ordered():
    """Any prefix of whose tokens decodes with -1 behind it."""
    return PrefixQuantizer(partial(Quantizer, "vq", dim=6, codebook_size=32))


@pytest.fixture
def saved(tmp_path, request):
    """A tokenizer of pictures of 16 x 16 pixels as five tokens, and its folder."""
    tokenizer = make(quantizer=getattr(request, "param", lambda: None)())
    for parameter in tokenizer.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokenizer.eval().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer", tokenizer


def values(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255 * 2 - 1


@pytest.mark.parametrize(
    "saved",
    [pytest.param(lambda: None, id="cut"), pytest.param(ordered, id="filled", marks=pytest.mark.slow)],
    indirect=True,
)
def test_a_prefix_is_decoded_of_all_tokens_and_of_a_file_that_holds_no_more(saved, tmp_path) -> None:
    folder, tokenizer = saved
    source, words = picture(tmp_path / "a.png", SIDE, SIDE), ("--tokenizer", folder)
    indices = tokenizer.encode(values(pixels_of(source)))
    first = indices[:, :2]
    if isinstance(tokenizer.quantizer, PrefixQuantizer):
        first = tokenizer.quantizer.prefix(indices, 2)
    assert run("encode", *words, source, tmp_path / "all.vqk") == 0
    assert run("decode", *words, "--tokens", 2, tmp_path / "all.vqk", tmp_path / "two.png") == 0
    assert run("encode", *words, "--tokens", 2, source, tmp_path / "two.vqk") == 0
    assert run("decode", *words, tmp_path / "two.vqk", tmp_path / "again.png") == 0
    assert torch.equal(TokenCodec.of(tokenizer).unpack((tmp_path / "two.vqk").read_bytes()).indices, first)
    for name in ("two", "again"):
        assert numpy.array_equal(pixels_of(tmp_path / f"{name}.png"), drawn(tokenizer, first))
    assert not torch.equal(tokenizer.decode(first), tokenizer.decode(indices))


def test_so_many_tokens_there_are_not_and_other_tokens_are_places(saved, tmp_path, capsys) -> None:
    folder, _ = saved
    source = picture(tmp_path / "a.png", SIDE, SIDE)
    assert run("encode", "--tokenizer", folder, "--tokens", 6, source, tmp_path / "a.vqk") == 1
    assert f"--tokens 6: expected 1 to {TOKENS}, the tokens of one sample" in capsys.readouterr().err
    make_tokenizer().save_pretrained(tmp_path / "places")
    for command in ("encode", "decode"):
        assert run(command, "--tokenizer", tmp_path / "places", "--tokens", 2, source, tmp_path / "a.vqk") == 2
        assert "--tokens: expected a tokenizer of latent tokens" in capsys.readouterr().err


def test_pictures_are_cut_to_the_size_of_the_tokenizer(saved, tmp_path, capsys) -> None:
    folder, tokenizer = saved
    words = ("encode", "--tokenizer", folder)
    wide, coded = picture(tmp_path / "wide.png", SIDE, 24), tmp_path / "a.vqk"
    assert run(*words, wide, coded) == 1 and "alone; give --crop, or resize it" in capsys.readouterr().err
    assert run(*words, "--crop", wide, coded) == 0
    expected = tokenizer.encode(values(pixels_of(wide)[:, 4:20]))
    assert torch.equal(TokenCodec.of(tokenizer).unpack(coded.read_bytes()).indices, expected)
    assert run("decode", "--tokenizer", folder, coded, tmp_path / "again.png") == 0
    with Image.open(tmp_path / "again.png") as image:
        assert image.size == (SIDE, SIDE)
    assert run(*words, "--crop", picture(tmp_path / "large.png", 35, 70), tmp_path / "large.vqk") == 0
    assert run(*words, "--crop", picture(tmp_path / "small.png", 12, 24), tmp_path / "small.vqk") == 1
    assert "has 24 x 12 pixels: this tokenizer takes pictures of 16 x 16 alone; enlarge it" in capsys.readouterr().err
    make_tokenizer().save_pretrained(tmp_path / "any")
    assert run("encode", "--tokenizer", tmp_path / "any", "--crop", wide, tmp_path / "b.vqk") == 2
    assert "--crop: this tokenizer names no one size" in capsys.readouterr().err
