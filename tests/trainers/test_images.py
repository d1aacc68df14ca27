import shutil
from pathlib import Path

import lightning
import numpy
import pytest
import torch
from PIL import Image

from trainers.data import sampler
from trainers.data.files import split
from trainers.image import pictures
from trainers.image.data import ImageFolderData
from trainers.image.pictures import Picture


def photo(path: Path, *, size=(64, 48), mode="RGB", seed=0, **options) -> Path:
    """A smooth picture of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = numpy.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=numpy.uint8)
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path, **options)
    return path


def folder(root: Path, number: int = 12, **options) -> Path:
    for seed in range(number):
        photo(root / f"{seed:03d}.png", seed=seed, **options)
    return root


def data(root: Path, **options) -> ImageFolderData:
    return ImageFolderData(str(root), **({"resolution": 32, "batch_size": 4, "num_workers": 0} | options))


def names(loader) -> list[str]:
    return [name for batch in loader for name in batch["name"]]


# ---- formats


def test_every_kind_of_picture_is_read_as_rgb(tmp_path):
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
    (tmp_path / "notes.txt").write_text("not a picture, and not meant to be one")
    images = data(tmp_path)
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
    exif[pictures.ORIENTATION_TAG] = orientation
    Image.fromarray(numpy.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    assert numpy.array_equal(pixels(tmp_path / "a.png"), upright)
    found = pictures.scan(tmp_path, min_size=1).files[0]
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
    folder(tmp_path)
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.png").touch()
    photo(tmp_path / "tiny.png", size=(31, 90))
    whole = photo(tmp_path / "whole.jpg", size=(300, 200), quality=95).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    whole = photo(tmp_path / "whole.png", size=(300, 200)).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    images = data(tmp_path)
    with pytest.warns(UserWarning) as caught:
        images.setup("fit")
    text = images.describe()
    reasons = {Path(path).name: reason for path, reason in images.skipped.items()}
    assert set(reasons) == {"text.jpg", "empty.png", "tiny.png", "half.jpg", "half.png"}
    assert reasons["tiny.png"] == "too small: 31x90 pixels, min_size is 32"
    assert reasons["text.jpg"] == "not a picture that Pillow can identify"
    assert "14 pictures" in text
    assert "5 files skipped" in text
    assert all(any(name in str(warning.message) for warning in caught) for name in reasons)


def broken(path: Path) -> None:
    whole = photo(path, size=(300, 200), quality=95).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_file_beyond_the_cache_is_replaced_in_training_and_named_once(tmp_path, workers):
    folder(tmp_path, 9)
    broken(tmp_path / "004.jpg")
    images = data(tmp_path, cache_bytes=0, num_workers=workers, batch_size=2, seed=1)
    images.validation_root = folder(tmp_path.with_name("validation"), 2, size=(50, 40))
    images.setup("fit")
    with pytest.warns(UserWarning, match=r"004\.jpg is left out or replaced") as caught:
        seen = [names([batch]) for _ in range(3) for batch in images.train_dataloader()]
    assert len(caught) == 1
    assert list(images.skipped) == [str(tmp_path / "004.jpg")]
    assert {len(batch) for batch in seen} == {2}
    assert "004.jpg" not in str(seen)
    again = data(tmp_path, cache_bytes=0, batch_size=2, seed=1)
    again.validation_root = images.validation_root
    again.setup("fit")
    with pytest.warns(UserWarning):
        assert [names([batch]) for _ in range(3) for batch in again.train_dataloader()] == seen


def test_broken_file_is_left_out_of_prediction(tmp_path):
    folder(tmp_path, 3)
    broken(tmp_path / "0015.jpg")
    images = data(tmp_path, batch_size=1)
    with pytest.warns(UserWarning, match=r"0015\.jpg"):
        assert names(images.predict_dataloader()) == ["000.png", "001.png", "002.png"]


# ---- split


def test_split_ignores_names_and_order_and_keeps_sides_when_files_are_added(tmp_path):
    first = data(folder(tmp_path / "first", 40), validation_fraction=0.3)
    first.setup("fit")
    chosen = set(names(first.val_dataloader()))
    assert 4 <= len(chosen) <= 20
    for number, name in enumerate(sorted(chosen)):
        photo(tmp_path / "second" / "moved" / f"z{number}.png", seed=int(Path(name).stem))
    for seed in range(39, -1, -1):
        if f"{seed:03d}.png" not in chosen:
            photo(tmp_path / "second" / f"{50 - seed}.png", seed=seed)
    second = data(tmp_path / "second", validation_fraction=0.3)
    second.setup("fit")
    assert {name.startswith("moved/") for name in names(second.val_dataloader())} == {True}
    assert len(names(second.val_dataloader())) == len(chosen)
    for seed in range(40, 80):
        photo(tmp_path / "first" / f"{seed:03d}.png", seed=seed)
    grown = data(tmp_path / "first", validation_fraction=0.3)
    grown.setup("fit")
    assert {name for name in names(grown.val_dataloader()) if int(Path(name).stem) < 40} == chosen


def test_identical_files_are_on_one_side(tmp_path):
    folder(tmp_path, 20)
    for path in list(tmp_path.glob("*.png")):
        shutil.copy(path, path.with_name("copy-" + path.name))
    images = data(tmp_path, validation_fraction=0.4)
    images.setup("fit")
    validation = set(names(images.val_dataloader()))
    assert 0 < len(validation) < 40
    assert {name.removeprefix("copy-") for name in validation if name.startswith("copy-")} == {
        name for name in validation if not name.startswith("copy-")
    }


@pytest.mark.parametrize(("contents", "expected"), [("fe", "e"), ("01", "0")])
def test_each_side_has_a_picture(contents, expected):
    files = [Picture(f"{number}.png", 1, 1, 16 * content) for number, content in enumerate(contents)]
    training, validation = split(files, 0.2, Path("photos"), noun="picture")
    assert [picture.content for picture in validation] == [16 * expected]
    assert len(training) == 1


def test_pictures_in_both_folders_are_announced(tmp_path):
    folder(tmp_path / "a", 5)
    folder(tmp_path / "b", 2)
    images = data(tmp_path / "a", validation_root=str(tmp_path / "b"))
    with pytest.warns(UserWarning, match=r"2 of 2 validation pictures are training pictures too, 000\.png first"):
        images.setup("fit")
    assert names(images.val_dataloader()) == ["000.png", "001.png"]


# ---- samples


def stream(images: ImageFolderData, batches: int) -> tuple[torch.Tensor, list[str]]:
    taken, seen = [], []
    while len(taken) < batches:
        for batch in images.train_dataloader():
            taken.append(batch["image"])
            seen += batch["name"]
            if len(taken) == batches:
                break
    return torch.stack(taken), seen


def ready(root: Path, **options) -> ImageFolderData:
    images = data(root, **options)
    images.setup("fit")
    return images


def test_crops_do_not_depend_on_workers_cache_or_global_seeds(tmp_path):
    folder(tmp_path)
    expected, seen = stream(ready(tmp_path), 7)
    for seed, options in enumerate([{"num_workers": 2}, {"cache_bytes": 0}, {"cache_bytes": 3 * 32 * 43 * 5}]):
        torch.manual_seed(seed)
        numpy.random.seed(seed)
        other, other_names = stream(ready(tmp_path, **options), 7)
        assert torch.equal(other, expected)
        assert other_names == seen


def test_crops_differ_between_passes_repeats_and_seeds(tmp_path):
    folder(tmp_path, size=(200, 150))
    images = ready(tmp_path, repeats=3, batch_size=1)
    assert len(images.train_dataloader()) == 3 * len(images.train_dataloader().dataset.store.files)
    taken, seen = stream(images, 2 * len(images.train_dataloader()))
    of_one = taken[[name == seen[0] for name in seen]]
    assert len(of_one) == 6
    assert len(torch.unique(of_one.flatten(1), dim=0)) == 6
    other, _ = stream(ready(tmp_path, repeats=3, batch_size=1, seed=1), 6)
    assert not torch.equal(other, taken[:6])


def test_crop_sides_stay_in_the_range_and_above_the_resolution():
    sides = [
        pictures.crop_side(uniform, shorter_side=400, resolution=100, scale=(0.5, 0.8))
        for uniform in numpy.linspace(0, 1, 50)
    ]
    assert (min(sides), max(sides)) == (200, 320)
    assert pictures.crop_side(0.0, shorter_side=120, resolution=100, scale=(0.5, 1.0)) == 100
    assert pictures.crop_side(0.7, shorter_side=60, resolution=100, scale=(0.5, 1.0)) == 60


def test_flips_are_half_of_the_crops_or_none(tmp_path):
    ramp = numpy.repeat(numpy.linspace(0, 255, 64)[None, :, None], 48, 0).repeat(3, 2).astype(numpy.uint8)
    for number in range(3):
        Image.fromarray(ramp // (number + 1)).save(tmp_path / f"{number}.png")

    def rising(**options) -> float:
        taken, _ = stream(ready(tmp_path, batch_size=1, repeats=50, **options), 80)
        return float((taken[:, 0, 0, 0, -1] > taken[:, 0, 0, 0, 0]).float().mean())

    assert 0.3 < rising() < 0.7
    assert rising(horizontal_flip=False) == 1.0


def test_validation_is_the_resized_centre(tmp_path):
    photo(tmp_path / "validation" / "a.png", size=(96, 64))
    folder(tmp_path / "training", 4)
    images = ready(tmp_path / "training", validation_root=str(tmp_path / "validation"))
    batch = next(iter(images.val_dataloader()))
    with Image.open(tmp_path / "validation" / "a.png") as image:
        expected = numpy.asarray(image.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]
    assert numpy.abs((batch["image"][0].permute(1, 2, 0).numpy() + 1) * 127.5 - expected).max() < 3
    assert torch.equal(batch["image"], next(iter(images.test_dataloader()))["image"])


def test_small_pictures_are_enlarged_where_min_size_allows_it(tmp_path):
    folder(tmp_path, size=(20, 24))
    images = ready(tmp_path, min_size=16)
    assert next(iter(images.train_dataloader()))["image"].shape == (4, 3, 32, 32)
    assert next(iter(images.val_dataloader()))["image"].shape[1:] == (3, 32, 32)


def test_predicted_names_are_left_out(tmp_path):
    images = data(folder(tmp_path, 5))
    images.leave_out_predicted(lambda: {"001.png", "004.png"})
    assert names(images.predict_dataloader()) == ["000.png", "002.png", "003.png"]
    images.leave_out_predicted(lambda: {f"{number:03d}.png" for number in range(5)})
    assert len(images.predict_dataloader()) == 0


def test_prediction_hash_follows_the_data(tmp_path):
    folder(tmp_path, 3)
    before = data(tmp_path).predict_hash()
    assert data(tmp_path).predict_hash() == before
    assert data(tmp_path, resolution=31).predict_hash() != before
    photo(tmp_path / "002.png", seed=77)
    assert data(tmp_path).predict_hash() != before


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_root": "nowhere"}, r"validation_root='nowhere' is not a folder"),
        ({"batch_size": 0}, r"batch_size must be at least 1, got 0"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie between 0 and 1, got 1.0"),
        ({"random_scale": (0.8, 0.5)}, r"random_scale must be \(least, greatest\)"),
    ],
)
def test_wrong_arguments_stop_at_construction(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        data(tmp_path, **options)


def test_missing_and_empty_folders_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"root='.*missing' is not a folder"):
        data(tmp_path / "missing")
    (tmp_path / "readme.txt").touch()
    with pytest.raises(ValueError, match=r"There is no usable picture under .*1 other files.*at least 32 pixels"):
        data(tmp_path).setup("fit")


def test_too_few_pictures_stop_setup(tmp_path, monkeypatch):
    folder(tmp_path, 1)
    with pytest.raises(ValueError, match="1 different usable picture"):
        data(tmp_path).setup("fit")
    folder(tmp_path, 4)
    with pytest.raises(ValueError, match=r"do not fill a batch of 16 .*raise repeats \(now 1\)"):
        data(tmp_path, batch_size=16).setup("fit")
    data(tmp_path, batch_size=16, repeats=16).setup("fit")
    monkeypatch.setattr(sampler, "ranks", lambda: (0, 9))
    monkeypatch.setattr("trainers.data.folder.ranks", lambda: (0, 9))
    with pytest.raises(ValueError, match=r"validation picture\(s\) cannot be divided among 9 ranks"):
        data(tmp_path, batch_size=1, repeats=16).setup("fit")


# ---- under Lightning


class Sums(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.sums: list[float] = []

    def training_step(self, batch):
        self.sums.append(float(batch["image"].sum()))
        return (self.weight - batch["image"].mean()).square()

    def validation_step(self, batch):
        self.log("validation", batch["image"].mean(), batch_size=len(batch["image"]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_fit_continues_with_the_same_crops(tmp_path):
    folder(tmp_path / "photos")

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Sums, lightning.Trainer]:
        task = Sums()
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            max_steps=steps,
        )
        trainer.fit(task, datamodule=data(tmp_path / "photos"), ckpt_path=checkpoint)
        return task, trainer

    whole, _ = fit(7)
    first, trainer = fit(3)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(7, tmp_path / "last.ckpt")
    assert first.sums + second.sums == whole.sums
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_overfit_batches_is_refused(tmp_path):
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        overfit_batches=1,
        max_steps=1,
    )
    with pytest.raises(ValueError, match="overfit_batches=1 repeats the same batches"):
        trainer.fit(Sums(), datamodule=data(folder(tmp_path)))
