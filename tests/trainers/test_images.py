"""Image files as data: which are used, what a crop is, and what evaluation sees."""

from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from tests.trainers.pictures import draw_pictures
from tests.trainers.test_folder_data import IMAGES, names, stream
from trainers.image import files


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
    return files.read(path, shorter_side=shorter_side)


def test_sixteen_bits_keep_their_range(tmp_path):
    values = numpy.array([[0, 257, 32768, 65535]] * 4, dtype=numpy.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0, :, 0].tolist() == [0, 1, 128, 255]


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
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
    exif[files.ORIENTATION_TAG] = orientation
    Image.fromarray(numpy.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert numpy.array_equal(pixels(tmp_path / "a.png"), upright)
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


def test_a_scale_out_of_order_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"random_scale must be \(least, greatest\)"):
        IMAGES.make(tmp_path, random_scale=(0.8, 0.5))
