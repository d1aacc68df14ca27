"""`python -m vqkit draw`: what a sheet shows of a code is what stands where the code stands."""

import numpy
import pytest
import soundfile
import torch

from tests.command_line.test_pictures import FACTOR, padded, picture, pixels_of, run, saved, shown  # noqa: F401  # a fixture
from tests.command_line.test_recordings import clip, make_causal
from vqkit import MultiScaleQuantizer, Quantizer, Tokenizer
from vqkit.command_line.draw import PictureCells
from vqkit.command_line.pictures import Pictures
from vqkit.inspect.sheets import CELL, GAP, PAPER, TITLE, picture_cell, sound_cell
from vqkit.inspect.sheets import clip as clip_of

STEP = CELL + GAP


def strip_of(sheet, row, column):
    """A cell of the only code of a sheet."""
    top, left = TITLE + row * STEP, GAP + column * STEP
    return sheet[top : top + CELL, left : left + CELL]


def test_places_of_a_code_as_they_are_and_as_they_are_decoded(saved, tmp_path, capsys) -> None:  # noqa: F811
    folder, tokenizer = saved
    paths = [picture(tmp_path / f"in/{name}.png", seed=number) for number, name in enumerate("ab")]
    pixels = [pixels_of(path) for path in paths]
    grids = [tokenizer.encode(torch.from_numpy(image)[None]) for image in map(values, pixels)]
    codes, counts = torch.cat([grid.flatten() for grid in grids]).unique(return_counts=True)
    code, count = int(codes[counts.argmax()]), int(counts.max())
    target = tmp_path / "sheet.png"
    assert run("draw", "--tokenizer", folder, "--code", code, "--columns", count, tmp_path / "in", target) == 0
    said = capsys.readouterr().out
    held = sum(bool((grid == code).any()) for grid in grids)
    assert f"code {code}: {count:,} of {sum(grid.numel() for grid in grids):,} tokens" in said
    assert f"in {held} of 2 files" in said
    sheet = pixels_of(target)
    column = 0
    for image, grid in zip(pixels, grids, strict=True):
        for row, place in (grid[0] == code).nonzero().tolist():
            box = (row * FACTOR, place * FACTOR, (row + 1) * FACTOR, (place + 1) * FACTOR)
            assert numpy.array_equal(strip_of(sheet, 0, column), picture_cell(image, box))
            assert numpy.array_equal(strip_of(sheet, 1, column), picture_cell(shown(tokenizer, image), box))
            column += 1
    assert column == count
    again = tmp_path / "again.png"
    assert run("draw", "--tokenizer", folder, "--code", code, "--columns", count, tmp_path / "in", again) == 0
    assert again.read_bytes() == target.read_bytes()
    assert run("draw", "--tokenizer", folder, paths[0], again) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 3  # several codes, those that are used most


def values(pixels):
    return padded(pixels)[0].numpy()


@pytest.mark.parametrize("ending", ["png", pytest.param("wav", marks=pytest.mark.slow)])
def test_a_code_of_a_level_of_sound(tmp_path, ending, capsys) -> None:
    codec = make_causal()
    codec.save_pretrained(tmp_path / "codec")
    source = clip(tmp_path / "a.flac", 1.5)
    wave = torch.from_numpy(soundfile.read(source, dtype="float32")[0])
    with torch.no_grad():
        indices = codec.encode(wave[None, None])
        decoded = codec.decode(indices, length=len(wave))[0, 0]
    level = indices[0, :, 1]
    code, target = int(level.mode().values), tmp_path / f"sheet.{ending}"
    places = (level == code).nonzero().flatten().tolist()
    words = ["--code", code, "--level", 1, "--columns", 100]
    assert run("draw", "--tokenizer", tmp_path / "codec", *words, source, target) == 0
    assert f"code {code}: {len(places)} of {len(level)} tokens" in capsys.readouterr().out
    hop = codec.downsampling_factor
    sheet = pixels_of(target) if ending == "png" else None
    for column, place in enumerate(places):
        span = (place * hop, (place + 1) * hop)
        for row, sound in enumerate((wave, decoded)):
            if ending == "png":
                cell = strip_of(sheet, row, column).astype(int)
                # Decoded block by block: a shade may round the other way.
                assert abs(cell - sound_cell(sound, span, 8000)).max() <= 1
            else:
                heard = torch.from_numpy(soundfile.read(target, dtype="float32")[0])
                expected = clip_of(sound, span, 8000)[0].clamp(-1, 1)
                length = len(expected) + 1200
                found = heard[(2 * column + row) * length :][: len(expected)]
                torch.testing.assert_close(found, expected, rtol=0, atol=2**-14)  # 16 bits
                assert not heard[(2 * column + row) * length + len(expected) :][:1200].any()


def test_what_cannot_be_drawn_is_said(saved, tmp_path, capsys) -> None:  # noqa: F811
    folder, tokenizer = saved
    source, target = picture(tmp_path / "a.png"), tmp_path / "sheet.png"
    used = set(tokenizer.encode(torch.from_numpy(values(pixels_of(source)))[None]).flatten().tolist())
    size = tokenizer.quantizer.codebook_size
    unused = min(set(range(size)) - used)
    for words, message in (
        (("--code", size), f"--code {size}: expected 0 to {size - 1}"),
        (("--code", unused), f"--code {unused}: stands nowhere in these 1 files"),
        (("--level", 1), "--level 1: expected 0 to 0"),
    ):
        assert run("draw", "--tokenizer", folder, *words, source, target) == 2
        assert message in capsys.readouterr().err
    assert run("draw", "--tokenizer", folder, source, tmp_path / "sheet.vqk") == 2
    assert "expected a format that Pillow writes" in capsys.readouterr().err and not target.exists()


def test_a_scale_of_several_has_larger_places(saved, tmp_path) -> None:  # noqa: F811
    _, tokenizer = saved
    stage = Quantizer("vq", dim=tokenizer.quantizer.dim, codebook_size=8)
    quantizer = MultiScaleQuantizer(lambda: stage, [1, 2, 4], channel_dim=1)
    scales = Tokenizer(tokenizer.encoder, quantizer, tokenizer.decoder).eval()
    image = numpy.zeros((16, 16, 3), dtype=numpy.uint8)
    image[8:, :8] = (0, 200, 0)
    cell = PictureCells(Pictures(scales, batch_size=1)).cell(image, (1, 0), (2, 2))
    inside = cell[CELL // 2 + 3 : CELL - 3, 3 : CELL // 2 - 3]
    assert (inside == (0, 200, 0)).all() and not cell[3 : CELL // 2 - 3, CELL // 2 + 3 : CELL - 3].any()


@pytest.mark.parametrize("place", [(0, 0), (3, 5), (7, 9)])
def test_a_cell_has_the_token_in_its_frame(place: tuple[int, int]) -> None:
    image = numpy.full((8 * 4, 10 * 4, 3), 90, dtype=numpy.uint8)
    top, left = (4 * number for number in place)
    image[top : top + 4, left : left + 4] = (10, 20, 30)
    cell = picture_cell(image, (top, left, top + 4, left + 4))
    framed = (cell == (255, 60, 40)).all(-1).nonzero()
    inside = cell[framed[0].min() + 1 : framed[0].max() - 1, framed[1].min() + 1 : framed[1].max() - 1]
    assert inside.size and (inside == (10, 20, 30)).all()
    assert not ((cell == PAPER).all(-1).any() and place == (3, 5))


def test_a_token_far_beyond_a_small_picture_has_a_cell() -> None:
    assert picture_cell(numpy.zeros((5, 5, 3), dtype=numpy.uint8), (24, 24, 32, 32)).shape == (CELL, CELL, 3)


def test_a_spectrogram_has_its_token_in_the_middle_and_zeros_beyond_the_ends() -> None:
    time = torch.arange(8000) / 8000
    tone = torch.sin(2 * torch.pi * 1000 * time) * ((time > 0.4) & (time < 0.6))
    cell = sound_cell(tone, (3920, 4080), 8000)
    shade = cell.mean(-1)
    row = CELL - 1 - round(1000 / (8000 / 512 * 128) * CELL)  # 1 kHz among the bands that are shown
    assert shade[row, CELL // 4 : 3 * CELL // 4].max() < 255 and shade[row, : CELL // 6].min() > 200
    heard, span = clip_of(torch.ones(100), (0, 10), 8000)
    assert span == (1995, 2005) and torch.equal(heard.nonzero().flatten(), torch.arange(1995, 2095))
