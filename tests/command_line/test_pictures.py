"""`python -m vqkit` on pictures: sizes, kinds, folders, second runs, what fails, and what the lines say."""

import math
import os
import subprocess
import sys
from functools import partial

import numpy
import pytest
import torch
from PIL import Image

from tests.trainers.tiny import BACKBONE, make_tokenizer
from vqkit import MultiScaleQuantizer, Quantizer, ResidualQuantizer, Tokenizer
from vqkit.backbones.conv2d import ConvEncoder2d
from vqkit.bitstream.codec import TokenCodec
from vqkit.bitstream.container import Picture, inspect
from vqkit.command_line.main import main

FACTOR = 4


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tokenizer of small pictures, and its folder."""
    tokenizer = make_tokenizer()
    tokenizer.initialize([torch.rand(4, 3, 32, 32) * 2 - 1], samples=256)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder, tokenizer.eval()


def picture(path, height=18, width=23, mode="RGB", seed=0, **options):
    pixels = numpy.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=numpy.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def run(*words):
    return main([str(word) for word in words])


def padded(pixels):
    """(H, W, 3) uint8 to (1, 3, H', W') in [-1, 1], the last row and column repeated to multiples of the factor."""
    height, width = (-(-side // FACTOR) * FACTOR for side in pixels.shape[:2])
    rows, columns = (
        numpy.minimum(numpy.arange(n), side - 1) for n, side in ((height, len(pixels)), (width, len(pixels[0])))
    )
    return torch.from_numpy(pixels[rows][:, columns]).permute(2, 0, 1)[None].float() / 255 * 2 - 1


def shown(tokenizer, pixels):
    """What a reader of the tokens sees, (H, W, 3) uint8."""
    return drawn(tokenizer, tokenizer.encode(padded(pixels)))[: len(pixels), : len(pixels[0])]


def drawn(tokenizer, indices):
    """(1, h, w) to (H, W, 3) uint8."""
    image = tokenizer.decode(indices)[0].detach()
    return (((image + 1) / 2).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def pixels_of(path):
    with Image.open(path) as image:
        return numpy.array(image.convert("RGB"))


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_and_back_with_names_and_sizes(saved, tmp_path, capsys):
    folder, tokenizer = saved
    source, coded, again = tmp_path / "photos", tmp_path / "coded", tmp_path / "again"
    picture(source / "a.png")
    picture(source / "deep/er/b.v2.jpg", 16, 16)
    picture(source / "deep/pixel.bmp", 1, 1)
    (source / "notes.txt").write_text("no picture")
    assert run("encode", "--tokenizer", folder, source, coded) == 0
    assert files_of(coded) == ["a.vqk", "deep/er/b.v2.vqk", "deep/pixel.vqk"]
    assert run("decode", "--tokenizer", folder, coded, again) == 0
    assert files_of(again) == ["a.png", "deep/er/b.v2.png", "deep/pixel.png"]
    for before, after in (
        ("a.png", "a.png"),
        ("deep/er/b.v2.jpg", "deep/er/b.v2.png"),
        ("deep/pixel.bmp", "deep/pixel.png"),
    ):
        original = pixels_of(source / before)
        assert numpy.array_equal(pixels_of(again / after), shown(tokenizer, original)), after
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"3 of 3 files -> {coded}: ") and "bits/pixel (nominal " in said[0]


def upright(image):
    """What a person sees of a picture with the orientation 6: a quarter turn clockwise."""
    return numpy.rot90(numpy.asarray(image), -1)


KINDS = {
    "grey": (lambda path: picture(path, mode="L"), lambda image: numpy.asarray(image.convert("RGB"))),
    "turned": (
        lambda path: picture(path, exif=orientation(6)),
        lambda image: upright(image.convert("RGB")),
    ),
    "clear": (
        lambda path: Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(path),
        lambda image: numpy.full((8, 8, 3), 255, numpy.uint8),
    ),
    "deep": (
        lambda path: Image.fromarray(numpy.full((8, 8), 257 * 100, numpy.uint16)).save(path),
        lambda image: numpy.full((8, 8, 3), 100, numpy.uint8),
    ),
}


def orientation(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_pictures_are_read_as_they_are_shown(saved, tmp_path, kind):
    folder, tokenizer = saved
    write, seen = KINDS[kind]
    write(tmp_path / "a.png")
    assert run("encode", "--tokenizer", folder, tmp_path / "a.png", tmp_path / "a.vqk") == 0
    assert run("decode", "--tokenizer", folder, tmp_path / "a.vqk", tmp_path / "again.png") == 0
    with Image.open(tmp_path / "a.png") as image:
        expected = shown(tokenizer, numpy.ascontiguousarray(seen(image)))
    assert numpy.array_equal(pixels_of(tmp_path / "again.png"), expected)


def test_large_pictures_run_tile_by_tile(saved, tmp_path, monkeypatch):
    folder, _ = saved
    picture(tmp_path / "a.png", 40, 50)
    sizes = []
    monkeypatch.setattr(Tokenizer, "_check_values", lambda self, data, **options: sizes.append(tuple(data.shape[-2:])))
    words = ("--tokenizer", folder, "--tile-size", 24, "--overlap", 4)
    assert run("encode", *words, tmp_path / "a.png", tmp_path / "a.vqk") == 0
    assert len(sizes) == 2 * 3 and {side for size in sizes for side in size} == {24}
    assert run("decode", *words, tmp_path / "a.vqk", tmp_path / "b.png") == 0
    assert pixels_of(tmp_path / "b.png").shape == (40, 50, 3)
    sizes.clear()
    assert run("encode", "--tokenizer", folder, tmp_path / "a.png", tmp_path / "whole.vqk") == 0
    assert sizes == [(40, 52)]


def test_pictures_of_one_size_run_together_and_a_batch_that_fails_one_by_one(saved, tmp_path, monkeypatch, capsys):
    folder, _ = saved
    source = tmp_path / "photos"
    for name in "abcde":
        picture(source / f"{name}.png", 18 if name != "d" else 30, seed=ord(name))
    sizes, encode = [], Tokenizer.encode

    def counted(self, data):
        sizes.append(len(data))
        if len(data) == limit:
            raise RuntimeError("out of memory")
        return encode(self, data)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    limit = None
    assert run("encode", "--tokenizer", folder, "--batch-size", 2, source, tmp_path / "two") == 0
    assert sizes == [2, 1, 1, 1]  # a b, c, d of another size, e
    sizes.clear()
    limit = 2
    assert run("encode", "--tokenizer", folder, "--batch-size", 2, source, tmp_path / "one") == 0
    assert sizes == [2, 1, 1, 1, 1, 1] and files_of(tmp_path / "one") == [f"{name}.vqk" for name in "abcde"]
    limit = 1
    assert run("encode", "--tokenizer", folder, source, tmp_path / "none") == 1
    assert capsys.readouterr().err.count("out of memory") == 5 and not (tmp_path / "none").exists()


def test_a_second_run_leaves_out_what_is_whole(saved, tmp_path, capsys):
    folder, _ = saved
    source, coded = tmp_path / "photos", tmp_path / "coded"
    for name in "abc":
        picture(source / f"{name}.png", seed=ord(name))
    words = ("encode", "--tokenizer", folder, source, coded)
    assert run(*words) == 0
    first = {name: (coded / f"{name}.vqk").stat().st_ino for name in "abc"}
    content = (coded / "b.vqk").read_bytes()
    (coded / "b.vqk").write_bytes(content[:-1])
    os.utime(source / "c.png", (2**31, 2**31))
    capsys.readouterr()
    assert run(*words) == 0
    assert capsys.readouterr().out.startswith("2 of 3 files, 1 were there already -> ")
    second = {name: (coded / f"{name}.vqk").stat().st_ino for name in "abc"}
    assert first["a"] == second["a"] and (coded / "b.vqk").read_bytes() == content
    assert first["c"] != second["c"]
    # Decoded files are replaced only where that is asked for.
    (tmp_path / "again").mkdir()
    (tmp_path / "again/a.png").write_text("my own")
    assert run("decode", "--tokenizer", folder, coded, tmp_path / "again") == 0
    assert (tmp_path / "again/a.png").read_text() == "my own" and len(files_of(tmp_path / "again")) == 3
    assert run("decode", "--tokenizer", folder, "--overwrite", coded, tmp_path / "again") == 0
    assert pixels_of(tmp_path / "again/a.png").shape == (18, 23, 3)


@pytest.fixture
def others(tmp_path):
    tokenizer = make_tokenizer(Quantizer("ema", dim=8, codebook_size=32, channel_dim=1))
    tokenizer.save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_what_another_tokenizer_made_is_neither_replaced_nor_decoded(saved, others, tmp_path, capsys):
    folder, _ = saved
    source = picture(tmp_path / "a.png")
    assert run("encode", "--tokenizer", others, source, tmp_path / "a.vqk") == 0
    before = (tmp_path / "a.vqk").read_bytes()
    assert run("encode", "--tokenizer", folder, source, tmp_path / "a.vqk") == 2
    assert f"{tmp_path / 'a.vqk'} was made by another tokenizer: give another target" in capsys.readouterr().err
    assert run("decode", "--tokenizer", folder, tmp_path / "a.vqk", tmp_path / "b.png") == 1
    assert capsys.readouterr().err.startswith(f"{tmp_path / 'a.vqk'}: ") and not (tmp_path / "b.png").exists()
    assert (tmp_path / "a.vqk").read_bytes() == before
    assert run("encode", "--tokenizer", folder, "--overwrite", source, tmp_path / "a.vqk") == 0
    (tmp_path / "d.vqk").write_bytes(before[:40])
    assert run("encode", "--tokenizer", folder, source, tmp_path / "d.vqk") == 2
    assert f"{tmp_path / 'd.vqk'} was made by another tokenizer" in capsys.readouterr().err
    (tmp_path / "c.vqk").write_text("my own notes")
    assert run("encode", "--tokenizer", folder, source, tmp_path / "c.vqk") == 2
    assert "is there and holds no indices" in capsys.readouterr().err


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(saved, tmp_path, capsys):
    folder, _ = saved
    source, coded = tmp_path / "photos", tmp_path / "coded"
    picture(source / "a.png")
    picture(source / "a.bmp", seed=1)
    whole = picture(source / "cut.png").read_bytes()
    (source / "cut.png").write_bytes(whole[: len(whole) // 2])
    os.mkfifo(source / "pipe.png")
    picture(source / "z.png")
    assert run("encode", "--tokenizer", folder, source, coded) == 1
    assert files_of(coded) == ["a.vqk", "z.vqk"]
    out, said = capsys.readouterr()
    assert out.startswith("2 of 5 files, 3 could not be used -> ")
    for line in (
        f"{source / 'pipe.png'}: not a plain file",
        f"{source / 'a.png'}: would become a.vqk, as a.bmp: rename one",
        f"{source / 'cut.png'}: cannot be read",
    ):
        assert line in said
    (coded / "z.vqk").write_bytes((coded / "z.vqk").read_bytes()[:-1])
    assert run("decode", "--tokenizer", folder, coded, tmp_path / "again") == 1
    assert files_of(tmp_path / "again") == ["a.png"] and f"{coded / 'z.vqk'}: " in capsys.readouterr().err


def test_commands_that_cannot_be_done(saved, tmp_path, capsys):
    folder, _ = saved
    source = picture(tmp_path / "photos/a.png").parent
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for words, reason in (
        ((tmp_path / "nowhere", tmp_path / "x"), f"{tmp_path / 'nowhere'}: there is no such file or folder"),
        ((tmp_path / "empty", tmp_path / "x"), f"{tmp_path / 'empty'} holds no file that can be used, and 0 others"),
        ((source, source), f"{source} lies in {source}: give a folder outside of it"),
        ((source, source / "coded"), f"{source / 'coded'} lies in {source}"),
        ((source, tmp_path / "file"), f"{tmp_path / 'file'}: expected a folder"),
        ((source / "a.png", source), f"{source}: expected a file in a folder that is there"),
        ((source / "a.png", tmp_path / "no/a.vqk"), f"{tmp_path / 'no/a.vqk'}: expected a file in a folder"),
        ((source / "a.png", source / "a.png"), f"{source / 'a.png'}: source and target are one file"),
        (
            ("--overlap", 3, source, tmp_path / "x"),
            "tiles overlap=3: expected a multiple of the downsampling factor, 4",
        ),
    ):
        assert run("encode", "--tokenizer", folder, *words) == 2, words
        assert reason in capsys.readouterr().err
    assert run("encode", "--tokenizer", tmp_path / "nowhere", source, tmp_path / "x") == 2
    for option in (("--device", "nothing"), ("--batch-size", "0"), ("--coder", "best")):
        with pytest.raises(SystemExit) as caught:
            run("encode", "--tokenizer", folder, *option, source, tmp_path / "x")
        assert caught.value.code == 2 and f"argument {option[0]}: " in capsys.readouterr().err
    run("encode", "--tokenizer", folder, source, tmp_path / "coded")
    for words, reason in (
        *(
            (
                ("--ending", ending, tmp_path / "coded", tmp_path / "x"),
                f"a.{ending}: expected a format that Pillow writes",
            )
            for ending in ("xyz", "ico", "icns", "pdf", "xbm", "hdf")
        ),
        (
            (tmp_path / "coded/a.vqk", tmp_path / "b.mp3"),
            "b.mp3: expected a format that Pillow writes in colour and in any size, such as b.png",
        ),
    ):
        assert run("decode", "--tokenizer", folder, *words) == 2
        assert reason in capsys.readouterr().err
    assert run("decode", "--tokenizer", folder, "--levels", 1, tmp_path / "coded", tmp_path / "x") == 1
    assert "--levels 1: this tokenizer has one codebook and no levels" in capsys.readouterr().err
    assert files_of(tmp_path / "photos") == ["a.png"] and not (tmp_path / "x").exists()


class OwnEncoder(ConvEncoder2d):
    """Of a user."""


def test_parts_of_ones_own_are_allowed_by_name(tmp_path, capsys):
    tokenizer = make_tokenizer()
    Tokenizer(OwnEncoder(**BACKBONE), tokenizer.quantizer, tokenizer.decoder).save_pretrained(tmp_path / "own")
    words = ("--tokenizer", tmp_path / "own", picture(tmp_path / "a.png"), tmp_path / "a.vqk")
    assert run("encode", *words) == 2
    assert "OwnEncoder" in capsys.readouterr().err
    assert run("encode", "--allow", "tests", *words) == 0


@pytest.mark.parametrize("kind", ["stages", "scales"])
def test_first_levels(tmp_path, kind, capsys):
    stage = partial(Quantizer, "ema", dim=8, codebook_size=16)
    build = partial(ResidualQuantizer, stage, 3) if kind == "stages" else partial(MultiScaleQuantizer, stage, [1, 2, 4])
    tokenizer = make_tokenizer(build(channel_dim=1)).eval()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    source = picture(tmp_path / "a.png", 16, 16)
    words = ("--tokenizer", tmp_path / "tokenizer")
    assert run("encode", *words, source, tmp_path / "a.vqk") == 0
    assert run("decode", *words, "--levels", 2, tmp_path / "a.vqk", tmp_path / "two.png") == 0
    indices = tokenizer.encode(padded(pixels_of(source)))
    first = indices[..., :2] if kind == "stages" else indices[:, :5]
    assert numpy.array_equal(pixels_of(tmp_path / "two.png"), drawn(tokenizer, first))
    if kind == "scales":
        assert run("decode", *words, "--levels", 4, tmp_path / "a.vqk", tmp_path / "four.png") == 1
        assert "--levels 4: expected 1 to 3" in capsys.readouterr().err


def test_what_is_whole_of_a_damaged_file_is_decoded_where_that_is_asked_for(saved, tmp_path, capsys):
    folder, tokenizer = saved
    pixels = numpy.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=numpy.uint8)
    indices = tokenizer.encode(padded(pixels))
    packed = TokenCodec.of(tokenizer).pack(indices, extent=Picture(64, 64), packet_cells=16 * 4)
    data = bytearray(packed.content)
    data[packed.header.offsets()[1]] ^= 1  # in the second of four packets of four rows
    (tmp_path / "a.vqk").write_bytes(data)
    words = ("--tokenizer", folder, tmp_path / "a.vqk")
    assert run("decode", *words, tmp_path / "refused.png") == 1
    assert "rows 4 to 7" in capsys.readouterr().err and not (tmp_path / "refused.png").exists()
    lost = indices.clone()
    lost[:, 4:8] = -1
    nearest = indices.clone()
    nearest[:, 4:6], nearest[:, 6:8] = indices[:, 3:4], indices[:, 8:9]
    for option, expected in ((("--partial",), lost), (("--conceal", "nearest"), nearest)):
        assert run("decode", *option, *words, tmp_path / f"{len(option)}.png") == 0
        assert "decoded without 1 of its packets: " in capsys.readouterr().err
        assert numpy.array_equal(pixels_of(tmp_path / f"{len(option)}.png"), drawn(tokenizer, expected))
    assert run("decode", "--conceal", "mean", *words, tmp_path / "mean.png") == 0


def test_an_interruption_leaves_whole_files(saved, tmp_path, monkeypatch, capsys):
    folder, _ = saved
    source, coded = tmp_path / "photos", tmp_path / "coded"
    for name in "abc":
        picture(source / f"{name}.png", seed=ord(name))
    encode, calls = Tokenizer.encode, []

    def interrupted(self, data):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(self, data)

    monkeypatch.setattr(Tokenizer, "encode", interrupted)
    assert run("encode", "--tokenizer", folder, source, coded) == 130
    assert files_of(coded) == ["a.vqk"] and "goes on from there" in capsys.readouterr().err
    assert run("encode", "--tokenizer", folder, source, coded) == 0
    assert files_of(coded) == ["a.vqk", "b.vqk", "c.vqk"] and len(calls) == 4


@pytest.mark.parametrize(
    ("shape", "held"), [((2, 4, 4), "2 samples"), ((0, 4, 4), "0 samples"), ((5,), "single vectors")]
)
def test_files_of_other_than_one_picture_are_refused(saved, tmp_path, capsys, shape, held):
    """Two files of two samples in one batch: the second became the other sample of the first."""
    folder, tokenizer = saved
    (tmp_path / "coded").mkdir()
    for name in "ab":
        packed = TokenCodec.of(tokenizer).pack(torch.zeros(shape, dtype=torch.int64), extent=Picture(16, 16))
        (tmp_path / f"coded/{name}.vqk").write_bytes(packed.content)
    assert run("decode", "--tokenizer", folder, "--batch-size", 2, tmp_path / "coded", tmp_path / "again") == 1
    assert capsys.readouterr().err.count(f"holds {held}, expected one") == 2 and not (tmp_path / "again").exists()


@pytest.mark.parametrize("words", [("rate",), ("encode", "--overwrite")])
def test_an_interruption_promises_no_more_than_is_so(saved, tmp_path, monkeypatch, capsys, words):
    def interrupted(self, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "encode", interrupted)
    targets = () if words == ("rate",) else (tmp_path / "a.vqk",)
    assert run(*words, "--tokenizer", saved[0], picture(tmp_path / "a.png"), *targets) == 130
    said = capsys.readouterr().err
    assert "interrupted" in said and "goes on" not in said


def test_a_limit_of_pixels_is_an_option(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vqkit.media.pictures.MAX_PIXELS", 100)
    words = ("rate", "--tokenizer", saved[0], picture(tmp_path / "a.png"))
    assert run(*words) == 1
    assert "more than max_pixels=100 pixels: raise it where you trust the file" in capsys.readouterr().err
    assert run(*words, "--max-pixels", 1000) == 0


def test_pictures_of_values_that_are_not_numbers_are_refused(saved, tmp_path, monkeypatch, capsys):
    """They were grey."""
    folder, _ = saved
    assert run("encode", "--tokenizer", folder, picture(tmp_path / "a.png"), tmp_path / "a.vqk") == 0
    monkeypatch.setattr(Tokenizer, "decode", lambda self, indices: torch.full((1, 3, 20, 24), math.nan))
    assert run("decode", "--tokenizer", folder, tmp_path / "a.vqk", tmp_path / "b.png") == 1
    assert "values that are not numbers" in capsys.readouterr().err and not (tmp_path / "b.png").exists()


@pytest.mark.slow
def test_info_works_where_the_readers_are_not_installed(saved, tmp_path):
    """`numpy` is of the extra too."""
    assert run("encode", "--tokenizer", saved[0], picture(tmp_path / "a.png"), tmp_path / "a.vqk") == 0
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('numpy', 'PIL', 'soundfile', 'soxr')));"
        "from vqkit.command_line.main import main; print(main(sys.argv[1:]))"
    )
    for words, status, said in (
        (["info", "a.vqk"], "0", "23 x 18 pixels"),
        (
            ["rate", "--tokenizer", str(saved[0]), "a.png"],
            "2",
            "error: needs the package numpy: pip install 'vqkit[media]'",
        ),
    ):
        found = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": os.getcwd()},
        )
        assert found.stdout.split()[-1] == status and said in found.stdout + found.stderr


def test_rates_are_those_of_the_files(saved, tmp_path, capsys):
    folder, tokenizer = saved
    source, coded = tmp_path / "photos", tmp_path / "coded"
    picture(source / "a.png", 30, 42)
    picture(source / "b.png", 16, 16, seed=1)
    assert run("encode", "--tokenizer", folder, source, coded) == 0
    capsys.readouterr()
    assert run("rate", "--tokenizer", folder, source) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and "bits/pixel" in lines[0]
    sums = numpy.zeros(4)
    for line, name in zip(lines[1:3], "ab", strict=True):
        pixels = pixels_of(source / f"{name}.png")
        indices, count = tokenizer.encode(padded(pixels)), pixels.shape[0] * pixels.shape[1]
        shares = torch.bincount(indices.flatten()).double() / indices.numel()
        entropy = -float(torch.special.xlogy(shares, shares).sum()) / math.log(2)
        size = (coded / f"{name}.vqk").stat().st_size
        bits = numpy.array([4 * indices.numel(), entropy * indices.numel(), 8 * size])
        sums += [*bits, count]
        figures = line.replace(",", "").split()
        assert numpy.allclose([float(figure) for figure in figures[:3]], bits / count, rtol=0, atol=5.01e-5)
        assert int(figures[5]) == size and line.endswith(f"{name}.png")
        assert int(figures[3]) == inspect((coded / f"{name}.vqk").read_bytes()).start
    totals = [float(figure) for figure in lines[3].split()[:3]]
    assert numpy.allclose(totals, sums[:3] / sums[3], rtol=0, atol=5.01e-5)


@pytest.mark.slow
def test_info_needs_neither_tokenizer_nor_readers(saved, tmp_path, capsys):
    folder, tokenizer = saved
    assert run("encode", "--tokenizer", folder, picture(tmp_path / "a.png"), tmp_path / "a.vqk") == 0
    data = (tmp_path / "a.vqk").read_bytes()
    code = (
        "import sys; from vqkit.command_line.main import main; status = main(['info', 'a.vqk']); "
        "print(sorted({'PIL', 'soundfile', 'soxr'} & set(sys.modules)), status)"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    ).stdout
    for part in (
        "23 x 18 pixels",
        TokenCodec.of(tokenizer).fingerprint.hex(),
        "5 x 6 indices of 16 codes",
        f"{len(data):,}, of which {inspect(data).start:,} header",
        f"{8 * len(data) / (18 * 23):.4f} bits/pixel, nominal {4 * 30 / (18 * 23):.4f}",
        "[] 0",
    ):
        assert part in found, found
    (tmp_path / "cut.vqk").write_bytes(data[:-1])
    (tmp_path / "none.vqk").write_text("none")
    capsys.readouterr()
    assert run("info", tmp_path) == 1
    out, said = capsys.readouterr()
    assert out.count("DAMAGED") == 1 and f"{tmp_path / 'none.vqk'}: begins with" in said
