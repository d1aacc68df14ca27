"""benchmarks/token_coders.py on one small picture: its figures follow from files of these very sizes."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from benchmarks import token_coders
from vqkit import Quantizer, Tokenizer
from vqkit.backbones.conv2d import ConvDecoder2d, ConvEncoder2d
from vqkit.bitstream import CODERS, Picture, TokenCodec


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved tokenizer of 4 bits for 4 x 4 pixels."""
    torch.manual_seed(0)
    size = {"dim": 8, "channels": 8, "channel_multipliers": [1], "num_res_blocks": 1, "patch_size": 4, "norm_groups": 4}
    quantizer = Quantizer("vq", dim=8, codebook_size=16, channel_dim=1)
    Tokenizer(ConvEncoder2d(**size), quantizer, ConvDecoder2d(**size)).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def test_bits_a_pixel_of_each_coder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pictures").mkdir()
    pixels = numpy.arange(30 * 41 * 3, dtype=numpy.uint8).reshape(30, 41, 3)
    Image.fromarray(pixels).save(tmp_path / "pictures/one.png")
    monkeypatch.setattr(token_coders, "in_own_process", lambda function, *arguments: 2**21)
    output = tmp_path / "table.md"
    token_coders.main([str(folder), "--pictures", str(tmp_path / "pictures"), "--rounds", "1", "--output", str(output)])
    lines = [line.strip("| \n").split(" | ") for line in output.read_text().splitlines() if line.startswith("| ")]
    row = dict(zip(lines[0], lines[1], strict=True))
    tokenizer = Tokenizer.from_pretrained(folder)
    indices = token_coders.Pictures(tokenizer, batch_size=1).encode([pixels])[0].indices
    assert indices.shape == (1, 8, 11)
    assert row["nominal"] == f"{8 * 11 * 4 / (30 * 41):.4f}"
    for name in CODERS:
        packed = TokenCodec.of(tokenizer).pack(indices, extent=Picture(30, 41), coder=name)
        assert row[name] == f"{8 * len(packed.content) / (30 * 41):.4f}"
    assert lines[2][1:] == lines[3][1:] == lines[1][1:]
    assert lines[-1][-1] == "2.0" and float(lines[-1][1].replace(",", "")) > 0
    assert str(tmp_path.parent) not in output.read_text()


def test_folder_without_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        token_coders.main([str(folder), "--pictures", str(folder)])
    assert "has no pictures: expected a folder with some" in capsys.readouterr().err
