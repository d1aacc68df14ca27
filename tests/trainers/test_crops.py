"""Crops and filters of pictures beside Pillow, torchvision and the published equations."""

import math
import re
from pathlib import Path

import numpy
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from lightning import Callback
from PIL import Image
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize
from torchvision.transforms import functional as on_pillow
from torchvision.transforms.v2 import functional as on_tensors

from tests.refusals import refused
from tests.trainers.conftest import ROOT, examples_of
from tests.trainers.pictures import draw_pictures
from tests.trainers.test_folder_data import IMAGES, names, stream
from tests.trainers.tiny import LIGHTNING_REMARKS, make_image_task, make_trainer
from trainers import image as trainers_image
from trainers.data.order import sample_generator
from trainers.image import (
    ADMCentreCrop,
    ADMRandomCrop,
    BicubicFilter,
    BilinearFilter,
    CentreCrop,
    FastBicubicFilter,
    ImageFolderData,
    LanczosFilter,
    NativeCrop,
    NativePadding,
    RandomCrop,
    RandomScaleCrop,
)
from trainers.image.files import crop_side
from vqkit.media.pictures import read

PILLOW = {
    InterpolationMode.BILINEAR: BilinearFilter(),
    InterpolationMode.BICUBIC: BicubicFilter(),
    InterpolationMode.LANCZOS: LanczosFilter(),
}
SIZES = [(90, 41), (41, 90), (33, 32), (200, 150), (20, 24), (32, 32)]


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=numpy.uint8))


def seen(batch: dict) -> Tensor:
    """(B, H, W, 3) uint8, the pixels of a batch."""
    return ((batch["image"].permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8)


def sampled(crop, pixels: Image.Image, resolution: int, count: int) -> list[numpy.ndarray]:
    prepared = crop.prepare(numpy.array(pixels), resolution)
    assert prepared.shape[:2] == crop.prepared_size(pixels.height, pixels.width, resolution)
    taken = (crop.cut(prepared, resolution, sample_generator(0, 0, index)) for index in range(count))
    return [sample.permute(1, 2, 0).numpy() for sample in taken]


def windows(pixels: numpy.ndarray, side: int) -> dict[bytes, tuple[int, int]]:
    """All squares of a picture, by their bytes."""
    places = numpy.ndindex(pixels.shape[0] - side + 1, pixels.shape[1] - side + 1)
    return {pixels[y : y + side, x : x + side].tobytes(): (y, x) for y, x in places}


# ---- beside what is published


@pytest.mark.parametrize("ratio", [1.0, 1.125])
@pytest.mark.parametrize("mode", PILLOW, ids=lambda mode: mode.value)
def test_a_centre_crop_is_that_of_torchvision_on_the_same_files(mode, ratio, tmp_path):
    for number, size in enumerate(SIZES):
        noise(*size, seed=number).save(tmp_path / f"{number}.png")
    images = IMAGES.make(tmp_path, min_size=1, evaluation_crop=CentreCrop(PILLOW[mode], resize_ratio=ratio))
    transform = Compose([Resize(round(32 * ratio), mode), CenterCrop(32)])
    (taken,) = (torch.cat([seen(batch) for batch in loader]) for loader in [images.predict_dataloader()])
    for number, size in enumerate(SIZES):
        assert numpy.array_equal(taken[number], transform(noise(*size, seed=number)))


def adm(image: Image.Image, side: int) -> numpy.ndarray:
    """ADM's resize, written out."""
    while min(*image.size) >= 2 * side:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = side / min(*image.size)
    return numpy.array(image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [*SIZES, (129, 260)])
def test_adm_crops_are_the_published_ones(size):
    image = noise(*size)
    whole = adm(image, 16)
    top, left = (whole.shape[0] - 16) // 2, (whole.shape[1] - 16) // 2
    (centre,) = sampled(ADMCentreCrop(), image, 16, 1)
    assert numpy.array_equal(centre, whole[top : top + 16, left : left + 16])
    least, greatest = math.ceil(16 / 1.0), math.ceil(16 / 0.8)
    places = {side: windows(adm(image, side), 16) for side in range(least, greatest + 1)}
    found = [
        [side for side, squares in places.items() if sample.tobytes() in squares]
        for sample in sampled(ADMRandomCrop(), image, 16, 60)
    ]
    assert all(found) and {side for sides in found for side in sides} == set(places)


def test_a_random_crop_is_any_square_of_the_resized_picture():
    image = noise(44, 40)
    resized = numpy.array(on_pillow.resize(image, 18, InterpolationMode.BICUBIC))
    squares = windows(resized, 16)
    found = [
        squares[sample.tobytes()] for sample in sampled(RandomCrop(BicubicFilter(), resize_ratio=1.125), image, 16, 200)
    ]
    assert resized.shape == (18, 19, 3) and set(found) == set(squares.values())


class FromTorch:
    """Draws as torchvision does."""

    def uniform(self, least: float, greatest: float) -> float:
        return torch.empty(1).uniform_(least, greatest).item()

    def integers(self, least: int, end: int) -> int:
        return int(torch.randint(least, end, (1,)))


@pytest.mark.parametrize("size", [(64, 48), (300, 20), (20, 300)], ids=str)
def test_a_random_resized_crop_is_that_of_torchvision(size):
    image, crop = noise(*size), trainers_image.RandomResizedCrop(BilinearFilter(), scale=(0.3, 0.9))
    for seed in range(40):
        torch.manual_seed(seed)
        box = RandomResizedCrop.get_params(image, [0.3, 0.9], [3 / 4, 4 / 3])
        torch.manual_seed(seed)
        mine = crop.cut(numpy.array(image), 16, FromTorch())
        expected = on_pillow.resized_crop(image, *box, [16, 16], InterpolationMode.BILINEAR)
        assert numpy.array_equal(mine.permute(1, 2, 0), expected)


def cubic(x: float) -> float:
    """Keys' kernel of OpenCV and torch, a = -0.75."""
    x, a = abs(x), -0.75
    near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
    return near if x <= 1 else far if x < 2 else 0.0


@pytest.mark.parametrize(
    ("kind", "kernel", "reach"), [(BilinearFilter, lambda x: max(0.0, 1 - abs(x)), 1), (BicubicFilter, cubic, 2)]
)
def test_without_antialiasing_a_pixel_is_made_of_its_neighbours_alone(kind, kernel, reach):
    pixels = numpy.array(noise(37, 50))

    def weights(old: int, new: int) -> numpy.ndarray:
        matrix = numpy.zeros((new, old))
        for row in range(new):
            place = (row + 0.5) * old / new - 0.5
            for tap in range(math.floor(place) - reach + 1, math.floor(place) + reach + 1):
                matrix[row, min(max(tap, 0), old - 1)] += kernel(place - tap)
        return matrix

    expected = numpy.einsum("yh,hwc,xw->yxc", weights(50, 17), pixels, weights(37, 13)).clip(0, 255)
    taken = kind(antialias=False).resize(pixels, 17, 13)
    assert numpy.abs(taken - expected).max() <= 0.5 + 1e-3  # rounded to whole numbers, from float32


def test_the_crop_without_a_name_is_four_uniform_numbers(tmp_path):
    """As runs of earlier versions drew it: side, place across, place down, mirror."""
    noise(90, 70).save(tmp_path / "a.png")
    noise(90, 70, seed=1).save(tmp_path / "b.png")
    images = IMAGES.ready(tmp_path, batch_size=1, repeats=4)
    dataset = images.train_dataloader().dataset
    (file,) = dataset.store.files
    pixels = torch.from_numpy(read(tmp_path / file.name, shorter_side=64)).permute(2, 0, 1)
    for sample in range(4):
        size, across, down, coin = sample_generator(0, 3, sample).random(4)
        side = crop_side(size, shorter_side=64, resolution=32, scale=(0.5, 1.0))
        top, left = int(down * (64 - side + 1)), int(across * (pixels.shape[2] - side + 1))
        part = on_tensors.resized_crop(
            pixels, top, left, side, side, [32, 32], InterpolationMode.BICUBIC, antialias=True
        )
        expected = part.flip(-1) if coin < 0.5 else part
        assert torch.equal(seen({"image": dataset[3, sample]["sample"][None]})[0].permute(2, 0, 1), expected)


# ---- as data

RANDOM = {
    "ours": RandomScaleCrop((0.3, 0.6)),
    "shorter side": RandomCrop(LanczosFilter(), resize_ratio=1.125),
    "shorter side, fast": RandomCrop(FastBicubicFilter()),
    "ADM": ADMRandomCrop(),
    "area and aspect": trainers_image.RandomResizedCrop(BilinearFilter(antialias=False)),
    "fixed": CentreCrop(BicubicFilter()),
}


@pytest.mark.parametrize("name", RANDOM)
def test_every_crop_continues_exactly_whatever_the_workers_and_the_cache(name, tmp_path):
    draw_pictures(tmp_path, 9, width=70, height=60)
    draw_pictures(tmp_path / "small", 2, width=20, height=24, seed=50)
    options = {"crop": RANDOM[name], "min_size": 16, "batch_size": 2, "repeats": 2}
    taken, order = stream(IMAGES.ready(tmp_path, **options), "image", 12)
    assert taken.shape[1:] == (2, 3, 32, 32) and len(torch.unique(taken.flatten(0, 1).flatten(1), dim=0)) > 8
    images = IMAGES.ready(tmp_path, **options, cache_bytes=0, num_workers=2)
    images.load_state_dict(
        {"epoch": 0, "seen": 10, "samples": len(images.train_dataloader().dataset), "seed": images.seed}
    )
    rest, rest_order = stream(images, "image", 7)
    assert torch.equal(rest, taken[5:]) and rest_order == order[10:]


class Taken(Callback):
    """What training sees; a checkpoint is saved behind the fourth batch, two of which are a step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.batches: list[dict] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if len(self.batches) == 4:
            trainer.save_checkpoint(self.path)


@pytest.mark.slow
@pytest.mark.filterwarnings(
    *[mark.args[0] for mark in LIGHTNING_REMARKS],
    "ignore:.* files are left out",
    "ignore:.*is replaced by the next image",
    "ignore:You're resuming from a checkpoint that ended before the epoch ended",
)
@pytest.mark.parametrize("name", ["area and aspect", "ADM", "shorter side"])
def test_a_training_that_is_resumed_amid_an_epoch_sees_what_an_unbroken_one_does(name, tmp_path):
    """With workers that are ahead, filters, classes, accumulation, and a file that is found to be broken on the way."""
    draw_classes(tmp_path / "pictures", a=6, b=5)
    draw_pictures(tmp_path / "pictures/b/long", 2, width=90, height=40, seed=300)
    for number, size in enumerate([(70, 60), (20, 24), (64, 33)]):
        noise(*size, seed=number).save(tmp_path / f"pictures/a/noise{number}.png")
    broken = tmp_path / "pictures/a/broken.png"
    noise(50, 40, seed=9).save(broken)
    broken.write_bytes(broken.read_bytes()[:2000])
    seen = []
    for path in (None, tmp_path / "amid.ckpt"):
        crop = {"crop": RANDOM[name], "max_aspect_ratio": 2.0, "min_size": 16, "class_folders": True}
        data = IMAGES.make(tmp_path / "pictures", **crop, batch_size=2, num_workers=2, cache_bytes=0)
        taken = Taken(tmp_path / "amid.ckpt")
        options = {"accumulate_grad_batches": 2, "limit_val_batches": 0, "default_root_dir": tmp_path}
        trainer = make_trainer(max_steps=5, callbacks=[taken], **options)
        trainer.fit(make_image_task(), datamodule=data, ckpt_path=path, weights_only=path and True)
        seen.append(taken.batches)
        assert 4 < len(data.train_dataloader()) < 10
    assert len(seen[0]) == 10 and len(seen[1]) == 6
    for expected, found in zip(seen[0][4:], seen[1], strict=True):
        assert torch.equal(found["image"], expected["image"]) and torch.equal(found["label"], expected["label"])
        assert found["name"] == expected["name"]
    assert not any("broken" in name or "long" in name for batch in seen[0] for name in batch["name"])


test_wrong_crops_are_refused = refused(
    (lambda: {"crop": RandomCrop(BicubicFilter(), resize_ratio=0.9)}, "resize_ratio must be at least 1, .*got 0.9"),
    (lambda: {"crop": ADMRandomCrop((0.0, 1.0))}, r"scale must be \(least, greatest\), 0 < .*got \(0.0, 1.0\)"),
    (lambda: {"crop": RandomScaleCrop((0.5, 1.5))}, r"scale must be .*got \(0.5, 1.5\)"),
    (
        lambda: {"crop": trainers_image.RandomResizedCrop(BicubicFilter(), ratio=(2.0, 1.0))},
        r"ratio must be .*got \(2.0, 1.0\)",
    ),
    (
        lambda: {"crop": trainers_image.RandomResizedCrop(FastBicubicFilter())},
        r"filter=FastBicubicFilter\(\) shrinks whole files: give another",
    ),
    (
        lambda: {"crop": ADMRandomCrop(), "random_scale": (0.4, 1.0)},
        r"random_scale=\[0.4, 1.0\] is of the crop without a name: set it to null.*crop=ADMRandomCrop",
    ),
    (lambda: {"crop": NativeCrop(8)}, r"crop=NativeCrop\(multiple=8\) has no one size"),
    (lambda: {"evaluation_crop": ADMRandomCrop()}, r"evaluation_crop=ADMRandomCrop.* draws: expected a crop without"),
    (lambda: {"evaluation_crop": NativePadding(8)}, "would measure what is padded: give NativeCrop"),
    (lambda: {"prediction_crop": NativeCrop(64)}, r"min_size=32 lets in images .*expected at least 64"),
    (lambda: {"prediction_crop": NativeCrop(0)}, "multiple must be at least 1 pixel"),
    (lambda: {"max_aspect_ratio": 0.5}, "max_aspect_ratio must be at least 1, such as 2, or null, got 0.5"),
    by=lambda options: IMAGES.make(Path(), **options()),
)


def test_long_and_small_images_are_skipped_counted_and_named(tmp_path):
    draw_pictures(tmp_path, 9)
    for name, size in {"long": (101, 50), "double": (100, 50), "high": (40, 81), "small": (60, 31)}.items():
        noise(*size).save(tmp_path / f"{name}.png")
    images = IMAGES.make(tmp_path, max_aspect_ratio=2)
    with pytest.warns(UserWarning, match="3 files are left out"):
        images.setup("fit")
    assert {Path(path).name: reason for path, reason in images.skipped.items()} == {
        "long.png": "too long: 101x50 pixels, max_aspect_ratio is 2",
        "high.png": "too long: 40x81 pixels, max_aspect_ratio is 2",
        "small.png": "too small: 60x31 pixels, min_size is 32",
    }
    assert "10 images" in images.describe()


def test_the_record_says_what_is_measured(tmp_path):
    draw_pictures(tmp_path, 3)
    crops = [None, CentreCrop(LanczosFilter(), resize_ratio=1.125), ADMCentreCrop(), NativeCrop(4)]
    crops.append(CentreCrop(BilinearFilter(antialias=False)))
    records = [IMAGES.make(tmp_path, evaluation_crop=crop).preprocessing() for crop in crops]
    assert [record["filter"] for record in records] == [
        "bicubic",
        "lanczos",
        "box to less than twice the side, then bicubic",
        None,
        "bilinear",
    ]
    assert [record["antialias"] for record in records] == [True, True, True, None, False]
    assert [record["resize"] for record in records[:4]] == [
        "shorter side to 32 px",
        "shorter side to 36 px",
        "shorter side to 32 px",
        "none",
    ]
    assert [record["resolution"] for record in records[2:4]] == [32, "native"]
    assert len({frozenset(record) for record in records}) == 1


def test_one_setting_has_one_hash_however_its_numbers_are_written(tmp_path):
    draw_pictures(tmp_path, 3)
    crops = [None, CentreCrop(FastBicubicFilter(), resize_ratio=1), CentreCrop(FastBicubicFilter(), resize_ratio=1.5)]
    first, same, other = (IMAGES.make(tmp_path, prediction_crop=crop).predict_hash() for crop in crops)
    assert first == same != other


# ---- classes


def draw_classes(folder: Path, **counts: int) -> None:
    for number, (name, count) in enumerate(counts.items()):
        draw_pictures(folder / name, count, seed=100 * number)


def test_labels_are_those_of_image_folder(tmp_path):
    draw_classes(tmp_path, b=4, a=5, Z=3)
    draw_pictures(tmp_path / "a" / "deeper", 2, seed=900)
    (tmp_path / ".hidden").mkdir()
    expected = ImageFolder(str(tmp_path), allow_empty=True)
    classes = [name for name in expected.classes if name != ".hidden"]
    numbers = {
        str(Path(path).relative_to(tmp_path)): classes.index(Path(path).relative_to(tmp_path).parts[0])
        for path, _ in expected.samples
    }
    images = IMAGES.ready(tmp_path, class_folders=True, batch_size=2)
    assert images.class_names == classes == ["Z", "a", "b"] and images.facts()["classes"] == 3
    for loader in (images.train_dataloader(), images.val_dataloader(), images.predict_dataloader()):
        for batch in loader:
            assert batch["label"].dtype == torch.int64
            assert batch["label"].tolist() == [numbers[name] for name in batch["name"]]
    assert "label" not in next(iter(IMAGES.make(tmp_path).predict_dataloader()))
    assert IMAGES.make(tmp_path, class_folders=True).predict_hash() != IMAGES.make(tmp_path).predict_hash()


def test_files_outside_of_class_folders_are_named(tmp_path):
    draw_classes(tmp_path, a=4, b=4)
    (tmp_path / "aa").mkdir()
    draw_pictures(tmp_path, 2, seed=900)
    images = IMAGES.make(tmp_path, class_folders=True)
    with (
        pytest.warns(UserWarning, match="2 files are left out"),
        pytest.warns(UserWarning, match="1 of 3 .*, aa first"),
    ):
        images.setup("predict")
    assert images.class_names == ["a", "aa", "b"]
    assert set(images.skipped.values()) == {"lies outside of the class folders"}
    assert len(names(images.predict_dataloader())) == 8


def test_folders_that_are_no_classes_are_refused(tmp_path):
    draw_classes(tmp_path / "train", a=4, b=4)
    draw_classes(tmp_path / "other", a=2, c=2)
    with pytest.raises(ValueError, match=r"other.* has a folder 'c', which is not among the 2 classes \(a, b"):
        IMAGES.make(tmp_path / "train", validation_root=str(tmp_path / "other"), class_folders=True).setup("fit")
    with pytest.raises(ValueError, match=r"a holds 0 folder\(s\) \(\), but class_folders needs one for each"):
        IMAGES.make(tmp_path / "train" / "a", class_folders=True).setup("fit")
    (tmp_path / "one").mkdir()
    draw_classes(tmp_path / "one", only=4)
    with pytest.raises(ValueError, match=r"one holds 1 folder\(s\) \(only\)"):
        IMAGES.make(tmp_path / "one", class_folders=True).setup("fit")


# ---- the guide


def test_the_examples_of_the_guide_are_built(tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ImageFolderData)
    built = []
    for block in examples_of("image_data"):
        asked = yaml.safe_load(block)["data"]["init_args"]
        config = parser.parse_object(
            {"data": {"class_path": "trainers.image.ImageFolderData", "init_args": {"root": str(tmp_path), **asked}}}
        )
        data = parser.instantiate(config).data
        built += [type(getattr(data, name)).__name__ for name in asked]
    assert {"RandomCrop", "CentreCrop", "ADMRandomCrop", "ADMCentreCrop", "NativePadding", "Tiles"} <= set(built)
    for row in re.findall(r"`(\w+(?:Crop|Filter|Padding))`", (ROOT / "docs/image_data.md").read_text()):
        assert hasattr(trainers_image, row), row
