"""Images that belong together: squares of one photograph stay on one side of a split, and in one half of a measure."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainers.pictures import draw_pictures
from tests.trainers.test_folder_data import IMAGES
from tests.trainers.test_image_measures import SINGULAR, frechet_by_scipy, mmd_by_pairs
from tests.trainers.tiny import LIGHTNING_REMARKS, make_frozen, make_image_task, make_trainer
from trainers.data.files import split
from trainers.image import FeatureMeasure, FrechetDistance, ImageFolderData, KernelDistance
from trainers.image.files import ImageFile
from trainers.run.table import table

pytestmark = [*LIGHTNING_REMARKS, SINGULAR]
PHOTOGRAPHS = 5


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Eight squares of each photograph, named as `scripts/cut_tiles.py` does."""
    folder = tmp_path / "squares"
    for photograph in range(PHOTOGRAPHS):
        draw_pictures(tmp_path / "one", 8, seed=100 * photograph)
        folder.mkdir(exist_ok=True)
        for square in sorted((tmp_path / "one").iterdir()):
            square.rename(folder / f"{photograph:04}_0{square.name}")
    return folder


def photograph(name: str) -> str:
    return name.partition("_")[0]


def test_a_group_is_on_one_side_whatever_its_names(squares: Path) -> None:
    sides = []
    for rename in (lambda name: name, lambda name: f"renamed_{name}"):
        for path in sorted(squares.iterdir()):
            path.rename(squares / rename(path.name))
        data = IMAGES.ready(squares, group_by=".*_", validation_fraction=0.4)
        validating = [name for batch in data.val_dataloader() for name in batch["name"]]
        training = {name for batch in data.train_dataloader() for name in batch["name"]}
        assert {name.rpartition("_")[0] for name in training}.isdisjoint(name.rpartition("_")[0] for name in validating)
        assert data.preprocessing()["split"] == "by groups of files, '.*_'"
        sides.append([name.removeprefix("renamed_") for name in validating])
    assert sides[0] == sides[1] and len(sides[0]) % 8 == 0 and 0 < len(sides[0]) < 8 * PHOTOGRAPHS


def test_the_share_that_validates_is_asked_of_groups_however_large_they_are(tmp_path: Path) -> None:
    """Of 400 groups of 16 squares, 0.1 plus or minus four standard deviations."""
    squares = [
        ImageFile(f"{group}_{square}.png", 8, 8, hashlib.sha256(f"{group} {square}".encode()).hexdigest()[:16])
        for group in range(400)
        for square in range(16)
    ]
    units = ImageFolderData(str(tmp_path), resolution=8, group_by="[0-9]+_").units(squares)
    _, validating = split(squares, units, 0.1, tmp_path, noun="image")
    assert len(validating) / len(squares) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 400) ** 0.5)


def test_a_file_in_groups_of_both_sides_is_told(squares: Path) -> None:
    shared = min(squares.iterdir())
    for number in range(1, PHOTOGRAPHS):
        shutil.copyfile(shared, squares / f"{number:04}_copy.png")
    with pytest.warns(UserWarning, match=r"\d of \d+ validation images are training images too, 000\d_"):
        IMAGES.ready(squares, group_by="[0-9]+_", validation_fraction=0.4)


def features(images: Tensor) -> Tensor:
    with torch.no_grad():
        return make_frozen(layers=["5"])(images)[0]


def test_halves_are_of_whole_groups_and_the_record_says_so(squares: Path, tmp_path: Path) -> None:
    draw_pictures(tmp_path / "training", 4, seed=900)
    records = {}
    for pattern in (None, "[0-9]+_", ".*"):
        measure = FeatureMeasure(make_frozen(layers=["5"]), [FrechetDistance(), KernelDistance()], name="tiny")
        task = make_image_task(test_measures=[measure])
        run = tmp_path / f"run{len(records)}"
        data = IMAGES.make(
            tmp_path / "training", validation_root=str(squares), group_by=pattern, evaluation_crop=None, batch_size=3
        )
        make_trainer(default_root_dir=run).test(task, datamodule=data, verbose=False)
        records[pattern] = json.loads((run / "metrics.json").read_text())
        if pattern == "[0-9]+_":
            batches = list(data.test_dataloader())
    plain, grouped = records[None], records["[0-9]+_"]
    for name in ("tiny_frechet_distance", "tiny_kernel_distance", "psnr"):
        # Sums over both halves are added up in another order, and products of 27 numbers in float32, before them, are
        # added up as a processor likes where a tensor lies; a square more or less makes a percent.
        assert grouped[name] == pytest.approx(plain[name], rel=100 * 27 * 2.0**-24, abs=0)
    assert plain["protocol"]["measures"]["tiny"]["frechet_distance"]["split"] == "by a hash of the pixels"
    record = grouped["protocol"]["measures"]["tiny"]["frechet_distance"]
    assert record["split"] == "by a hash of the group; 5 groups, each of equal matches of '[0-9]+_' in the names"
    assert [count % 8 for count in record["halves"]] == [0, 0]
    # Which photographs are where follows from the numbers: only one division into whole photographs has both figures.
    names = [name for batch in batches for name in batch["name"]]
    numbers = dict(zip(names, torch.cat([batch["group"] for batch in batches]).tolist(), strict=True))
    assert len({(photograph(name), number) for name, number in numbers.items()}) == PHOTOGRAPHS
    rows = features(torch.cat([batch["image"] for batch in batches]))
    owners = torch.tensor([int(photograph(name)) for name in numbers])
    found = [
        bits
        for bits in range(1, 2**PHOTOGRAPHS - 1)
        if (bits >> owners & 1).sum() == record["halves"][1]
        and mmd_by_pairs(*(rows[bits >> owners & 1 == half] for half in (0, 1)))
        == pytest.approx(grouped["tiny_kernel_halves"], rel=1e-6)
    ]
    assert len(found) == 1
    first, second = (rows[found[0] >> owners & 1 == half] for half in (0, 1))
    assert grouped["tiny_frechet_halves"] == pytest.approx(frechet_by_scipy(first, second), rel=1e-3)
    with pytest.raises(ValueError, match=r"frechet_distance.split is 'by a hash of the pixels' in .* 'by a hash of th"):
        table([str(tmp_path / "run0"), str(tmp_path / "run1")])
    with pytest.raises(ValueError, match=r"kernel_distance.split is .*5 groups.* and .*40 groups"):
        table([str(tmp_path / "run1"), str(tmp_path / "run2")])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", r"group_by='\(' is no regular expression"),
        ("[a-z]+", r"group_by='\[a-z\]\+' does not match the beginning of 0000_0000\.png: expected .*'\.\*_'"),
        (
            "0",
            "group_by='0' matches the same of all 40 names, such as 0000_0000.png: expected an expression that tells",
        ),
    ],
)
def test_expressions_that_make_no_groups_are_refused(pattern: str, message: str, squares: Path) -> None:
    with pytest.raises(ValueError, match=message):
        IMAGES.make(squares, group_by=pattern).setup("fit")
