"""Image files as data: which are used, what a crop is, and what evaluation sees."""

import io
import re
import struct
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from tests.refusals import refused
from tests.trainers.pictures import draw_pictures
from tests.trainers.test_folder_data import IMAGES, names, stream
from trainers.image import files
from vqkit.media import pictures


def photo(path: Path, *, size=(64, 48), mode="RGB", seed=0, **options) -> Path:
    """A smooth picture of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, **options)
    return path


# ---- formats


def test_every_kind_of_image_is_read_as_rgb(tmp_path):
    photo(tmp_path / "plain.jpg")
    photo(tmp_path / "deep" / "er" / "grün 写真.PNG", seed=1)
    photo(tmp_path / "gray.jpg", mode="L")
    photo(tmp_path / "cmyk.jpg", mode="CMYK")
    photo(tmp_path / "palette.gif", mode="P")
    photo(tmp_path / "bits.tiff", mode="1")
    photo(tmp_path / "alpha.png", mode="RGBA")
    photo(tmp_path / "small.webp")
    deep = (numpy.linspace(0, 65535, 64 * 48).reshape(48, 64)).astype(numpy.uint16)
    Image.fromarray(deep).save(tmp_path / "sixteen.png")
    frames = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "notes.txt").write_text("not an image, and not meant to be one")
    images = IMAGES.make(tmp_path)
    images.setup("predict")
    batches = list(images.predict_dataloader())
    assert images.skipped == {}
    assert names(batches) == sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*") if path.suffix != ".txt"
    )
    for batch in batches:
        assert batch["image"].shape[1:] == (3, 32, 32)
        assert batch["image"].dtype == torch.float32
        assert batch["image"].abs().max() <= 1


def pixels(path: Path, shorter_side: int = 1000) -> numpy.ndarray:
    return pictures.read(path, shorter_side=shorter_side)


# ---- what the numbers mean


def tiff(path: Path, values: numpy.ndarray, *, extra: tuple[int, ...] = (), white_is_zero: bool = False) -> Path:
    """A plain TIFF of (height, width[, bands]), of the array's type, with `extra` samples after the colours."""
    height, width, bands = (*values.shape, 1)[:3]
    photometric = 0 if white_is_zero else 1 if bands - len(extra) < 3 else 2
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags = {256: [width], 257: [height], 258: [8 * values.itemsize] * bands, 259: [1], 262: [photometric], 273: [0]}
    tags |= {277: [bands], 278: [height], 279: [values.nbytes], 338: list(extra), 339: [kind] * bands}
    tags = {tag: entry for tag, entry in tags.items() if entry}
    place = 14 + 12 * len(tags)
    tags[273] = [place + sum(2 * len(entry) for entry in tags.values() if len(entry) > 2)]
    entries, behind = b"", b""
    for tag, entry in tags.items():
        packed = struct.pack(f"<{len(entry)}H", *entry)
        entries += struct.pack("<HHI", tag, 3, len(entry))
        if len(packed) <= 4:
            entries += packed.ljust(4, b"\0")
        else:
            entries += struct.pack("<I", place + len(behind))
            behind += packed
    header = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(header + entries + bytes(4) + behind + values.tobytes())
    return path


RAMP = numpy.linspace(0, 1, 256).reshape(16, 16)
GREYS = numpy.arange(256).reshape(16, 16)


def png(path: Path, values: numpy.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


GREY_FILES = {
    "16 bits": (lambda path: png(path, (RAMP * 65535).astype("u2")), None),
    "12 bits in 16": (lambda path: png(path, (RAMP * 4095).round().astype("u2")), 4095),
    "16 bits of TIFF": (lambda path: tiff(path, (RAMP * 65535).astype("u2")), None),
    "12 bits in 16 of TIFF, white is 0": (
        lambda path: tiff(path, 4095 - (RAMP * 4095).round().astype("u2"), white_is_zero=True),
        4095,
    ),
    "signed 16 bits": (lambda path: tiff(path, (RAMP * 32767).astype("i2")), None),
    "32 bits": (lambda path: tiff(path, (RAMP * 65535).astype("u4")), 65535),
    "floats": (lambda path: tiff(path, RAMP.astype("f4")), 1.0),
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_all_levels_of_grey_are_read_whatever_the_type(name, tmp_path):
    write, white = GREY_FILES[name]
    read = pictures.read(write(tmp_path / ("a.png" if "TIFF" not in name else "a.tif")), shorter_side=99, white=white)
    assert numpy.abs(read - GREYS[..., None].astype(int)).max() <= 1 and len(numpy.unique(read)) >= 255


UNCLEAR = {
    "floats": (lambda path: tiff(path, RAMP.astype("f4")), None, "give the value as white"),
    "not a number": (lambda path: tiff(path, RAMP.astype("f4") * numpy.nan), 1, "values from nan to nan"),
    "32 bits": (lambda path: tiff(path, (RAMP * 65535).astype("u4")), None, "integers of 32 bits.* give the value"),
    "negative": (lambda path: tiff(path, (RAMP * 999 - 500).astype("i2")), None, "values from -500 to 499, expected 0"),
    "signed 8 bits": (lambda path: tiff(path, (RAMP * 99).astype("i1")), None, "signed values of 8 bits"),
    "beyond white": (lambda path: png(path, (RAMP * 5000).astype("u2")), 4095, "values from 0 to 5000, .*white=4095"),
    "colour": (lambda path: tiff(path, numpy.zeros((4, 4, 3), "u2")), 4095, "white=4095 cannot be used: convert"),
    "five bands": (lambda path: tiff(path, numpy.zeros((4, 4, 5), "u1"), extra=(0, 0)), None, "5 bands"),
    "five bands, one opacity": (lambda path: tiff(path, numpy.zeros((4, 4, 5), "u1"), extra=(2, 0)), None, "5 bands"),
    "two bands": (lambda path: tiff(path, numpy.zeros((4, 4, 2), "u1")), None, "Pillow can identify"),
    "FITS": (lambda path: fits(path), None, "numbers of FITS"),
}


def fits(path: Path) -> None:
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2"]
    cards += [
        "NAXIS1  =                    4",
        "NAXIS2  =                    4",
        "BZERO   =                32768",
        "END",
    ]
    path.write_bytes("".join(f"{card:80}" for card in cards).ljust(2880).encode() + bytes(2880))


@pytest.mark.parametrize("name", UNCLEAR)
def test_numbers_without_a_known_meaning_are_left_out_with_the_reason(name, tmp_path):
    write, white, message = UNCLEAR[name]
    write(tmp_path / ("a.fits" if name == "FITS" else "a.tif" if name != "beyond white" else "a.png"))
    (path,) = tmp_path.iterdir()
    with pytest.raises(ValueError, match=message):
        pictures.read(path, shorter_side=99, white=white)
    found = files.scan(tmp_path, min_size=1, white=white)
    assert len(found.files) + len(found.skipped) == 1  # either the header tells, or reading the numbers does


@pytest.mark.parametrize(("extra", "opaque"), [((), True), ((0,), True), ((1,), False), ((2,), False)])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_a_fourth_band_of_tiff_is_opacity_only_if_the_file_says_so(kind, extra, opaque, tmp_path):
    values = numpy.zeros((4, 4, 4), kind)
    assert (pixels(tiff(tmp_path / "a.tif", values, extra=extra)) == (0 if opaque else 255)).all()


@pytest.mark.parametrize(("types", "opaque"), [(None, True), ((0, 0, 0, 65535), True), ((0, 0, 0, 1), False)])
def test_a_fourth_band_of_jpeg_2000_is_opacity_only_if_the_file_says_so(types, opaque, tmp_path):
    written = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(written, "JPEG2000", irreversible=False)
    content = re.sub(rb"\0\0\0.cdef.{26}", b"", written.getvalue(), flags=re.DOTALL)
    start = content.index(b"jp2h") - 4
    (length,) = struct.unpack_from(">I", content, start)
    if len(content) < len(written.getvalue()):
        length -= len(written.getvalue()) - len(content)
    channels = b"" if types is None else struct.pack(">I4sH", 34, b"cdef", 4)
    for number, kind in enumerate(types or ()):
        channels += struct.pack(">3H", number, kind, 0 if kind else number + 1)
    header = struct.pack(">I", length + len(channels)) + content[start + 4 : start + length] + channels
    (tmp_path / "a.jp2").write_bytes(content[:start] + header + content[start + length :])
    assert (pixels(tmp_path / "a.jp2") == (0 if opaque else 255)).all()


def big_endian(path: Path, values: numpy.ndarray) -> None:
    """A TIFF that Pillow reads in its mode I;16B."""
    Image.frombuffer("I;16B", values.shape[::-1], values.astype(">u2").tobytes(), "raw", "I;16B", 0, 1).save(path)


TWELVE_BITS = "is 4095, and 65535 .*white=4095, or white=65535"


@pytest.mark.parametrize(
    ("name", "write", "greatest", "message"),
    [
        ("png", png, 4095, TWELVE_BITS),
        ("png", png, 40000, ""),
        ("tif", tiff, 4095, TWELVE_BITS),
        ("tif", big_endian, 4095, TWELVE_BITS),
        ("tif", lambda path, values: tiff(path, values.astype("i2")), 4095, "is 4095, and 32767 .*white=4095"),
        ("tif", lambda path, values: tiff(path, numpy.stack(3 * [values], 2)), 4096, "is 4112, and 65535"),
    ],
    ids=["png", "png whole", "tiff", "tiff big-endian", "tiff signed", "tiff colour"],
)
def test_a_folder_that_uses_a_part_of_16_bits_is_named_with_the_value_to_give(name, write, greatest, message, tmp_path):
    draw_pictures(tmp_path, 2)
    for number in range(40):
        write(tmp_path / f"deep{number}.{name}", numpy.full((40, 40), greatest - number, "u2"))
    if message:
        with pytest.warns(UserWarning, match=f"greatest value in 20 of 40 images .* {message}"):
            IMAGES.make(tmp_path).find(tmp_path)
    else:
        IMAGES.make(tmp_path).find(tmp_path)
    assert not IMAGES.make(tmp_path, white=65535).find(tmp_path).skipped
    assert IMAGES.make(tmp_path, white=65535).predict_hash() != IMAGES.make(tmp_path, white=65534).predict_hash()


def test_larger_images_than_max_pixels_are_left_out_with_the_name_of_the_setting(tmp_path):
    draw_pictures(tmp_path, 3)
    photo(tmp_path / "large.png", size=(100, 100))
    for limit, left_out in ((9999, True), (10000, False)):
        skipped = IMAGES.make(tmp_path, max_pixels=limit).find(tmp_path).skipped
        assert bool(skipped) == left_out
    with pytest.raises(ValueError, match="more than max_pixels=5000 pixels: raise it"):
        pictures.read(tmp_path / "large.png", shorter_side=9, max_pixels=5000)


def test_an_image_that_was_replaced_since_the_scan_is_not_used(tmp_path):
    draw_pictures(tmp_path, 12)
    images = IMAGES.make(tmp_path, cache_bytes=0)
    images.setup("fit")
    changed = images.initialization_dataloader().dataset.store.files[0].name
    photo(tmp_path / changed, size=(90, 50))
    with pytest.warns(UserWarning, match="no longer the image of 40x36 pixels"):
        _, seen = stream(images, "image", 6)
    assert changed not in seen


def test_transparent_pixels_become_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "a.png")
    Image.new("LA", (4, 4), (0, 255)).save(tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") == 255).all()
    assert (pixels(tmp_path / "b.png") == 0).all()
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.save(tmp_path / "c.png", transparency=1)
    assert (pixels(tmp_path / "c.png") == 255).all()


def test_first_frame_of_an_animation_is_the_picture(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])  # Pillow turns TIFF files by itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = numpy.zeros((40, 60, 3), numpy.uint8)
    upright[:20, :30] = 255  # the upper left quarter is white
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[pictures.ORIENTATION_TAG] = orientation
    Image.fromarray(numpy.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert numpy.array_equal(pixels(tmp_path / f"a.{suffix}"), upright)
    found = files.scan(tmp_path, min_size=1).files[0]
    assert (found.height, found.width) == (40, 60)


def test_large_jpeg_is_shrunk_to_the_same_picture(tmp_path):
    path = photo(tmp_path / "a.jpg", size=(1600, 1200), quality=95)
    shrunk = pixels(path, shorter_side=60)
    with Image.open(path) as image:
        expected = numpy.asarray(image.resize((80, 60), Image.Resampling.BICUBIC))
    assert shrunk.shape == (60, 80, 3)
    assert numpy.abs(shrunk.astype(float) - expected).mean() < 1.5


# ---- what is skipped


def test_unusable_files_are_skipped_counted_and_named(tmp_path):
    draw_pictures(tmp_path, 12)
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    photo(tmp_path / "tiny.png", size=(31, 90))
    whole = photo(tmp_path / "whole.jpg", size=(300, 200), quality=95).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    whole = photo(tmp_path / "whole.png", size=(300, 200)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    images = IMAGES.make(tmp_path)
    with pytest.warns(UserWarning) as caught:
        images.setup("fit")
    text = images.describe()
    reasons = {Path(path).name: reason for path, reason in images.skipped.items()}
    assert set(reasons) == {"text.jpg", "empty.png", "tiny.png", "half.jpg", "half.png"}
    assert reasons["tiny.png"] == "too small: 31x90 pixels, min_size is 32"
    assert reasons["text.jpg"] == "not an image that Pillow can identify"
    assert "14 images" in text
    assert all(any(name in str(warning.message) for warning in caught) for name in reasons)


# ---- samples


def test_crops_differ_between_passes_repeats_and_seeds(tmp_path):
    draw_pictures(tmp_path, 12, width=200, height=150)
    images = IMAGES.ready(tmp_path, repeats=3, batch_size=1)
    assert len(images.train_dataloader()) == 3 * len(images.train_dataloader().dataset.store.files)
    taken, seen = stream(images, "image", 2 * len(images.train_dataloader()))
    of_one = taken[[name == seen[0] for name in seen]]
    assert len(of_one) == 6
    assert len(torch.unique(of_one.flatten(1), dim=0)) == 6
    other, _ = stream(IMAGES.ready(tmp_path, repeats=3, batch_size=1, seed=1), "image", 6)
    assert not torch.equal(other, taken[:6])


def test_crop_sides_stay_in_the_range_and_above_the_resolution():
    sides = [
        files.crop_side(uniform, shorter_side=400, resolution=100, scale=(0.5, 0.8))
        for uniform in numpy.linspace(0, 1, 50)
    ]
    assert (min(sides), max(sides)) == (200, 320)
    assert files.crop_side(0.0, shorter_side=120, resolution=100, scale=(0.5, 1.0)) == 100
    assert files.crop_side(0.7, shorter_side=60, resolution=100, scale=(0.5, 1.0)) == 60


def test_flips_are_half_of_the_crops_or_none(tmp_path):
    ramp = numpy.repeat(numpy.linspace(0, 255, 64)[None, :, None], 48, 0).repeat(3, 2).astype(numpy.uint8)
    for number in range(3):
        Image.fromarray(ramp // (number + 1)).save(tmp_path / f"{number}.png")

    def rising(**options) -> float:
        taken, _ = stream(IMAGES.ready(tmp_path, batch_size=1, repeats=50, **options), "image", 80)
        return float((taken[:, 0, 0, 0, -1] > taken[:, 0, 0, 0, 0]).float().mean())

    assert 0.3 < rising() < 0.7
    assert rising(horizontal_flip=False) == 1.0


def test_validation_is_the_resized_centre(tmp_path):
    photo(tmp_path / "validation" / "a.png", size=(96, 64))
    draw_pictures(tmp_path / "training", 4)
    images = IMAGES.ready(tmp_path / "training", validation_root=str(tmp_path / "validation"))
    batch = next(iter(images.val_dataloader()))
    with Image.open(tmp_path / "validation" / "a.png") as image:
        expected = numpy.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]
    assert numpy.abs((batch["image"][0].permute(1, 2, 0).numpy() + 1) * 127.5 - expected).max() < 3
    assert torch.equal(batch["image"], next(iter(images.test_dataloader()))["image"])


def test_small_images_are_enlarged_where_min_size_allows_it(tmp_path):
    draw_pictures(tmp_path, 12, width=20, height=24)
    images = IMAGES.ready(tmp_path, min_size=16)
    assert next(iter(images.train_dataloader()))["image"].shape == (4, 3, 32, 32)
    assert next(iter(images.val_dataloader()))["image"].shape[1:] == (3, 32, 32)


test_arguments_out_of_range_are_refused = refused(
    ({"random_scale": (0.8, 0.5)}, r"random_scale must be \(least, greatest\)"),
    ({"white": 0}, "white must be a positive value"),
    ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
    by=lambda options: IMAGES.make(Path(), **options),
)
