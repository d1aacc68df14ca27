"""assets/: every picture is listed with its source, is what the list says, and opens."""

import hashlib
import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"
sys.path.insert(0, str(ROOT / "scripts"))

from fetching import photographs, sample_assets  # noqa: E402
from fetching.debian import FetchError  # noqa: E402

ROW = re.compile(r"^\| `(?P<file>[^`]+)` \| `(?P<sha256>[0-9a-f]{64})` \| (?P<licence>[^|]+) \|", re.MULTILINE)


def listed() -> dict[str, tuple[str, str]]:
    page = (ASSETS / "SOURCES.md").read_text(encoding="utf-8")
    return {row["file"]: (row["sha256"], row["licence"]) for row in ROW.finditer(page)}


def pictures(folder: str) -> list[Path]:
    return sorted(path for path in (ASSETS / "images" / folder).rglob("*") if path.is_file())


def test_every_file_is_listed_and_every_listed_file_is_there():
    on_disk = {path.relative_to(ASSETS).as_posix() for path in (ASSETS / "images").rglob("*") if path.is_file()}
    assert on_disk == set(listed()) == {asset.file for asset in sample_assets.assets()}


def test_every_file_has_the_listed_hash():
    for file, (sha256, _) in listed().items():
        assert hashlib.sha256((ASSETS / file).read_bytes()).hexdigest() == sha256, file


def test_every_licence_is_free_of_conditions():
    assert {licence for _, licence in listed().values()} == {"public domain", "CC0-1.0"}


def test_the_sample_set_has_the_planned_size():
    assert len(pictures("train")) == 16
    classics = {"astronaut", "chelsea", "coffee", "rocket"}
    others = [path for path in pictures("train") + pictures("eval") if path.stem not in classics]
    others.sort(key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
    assert {path.stem for path in pictures("eval")} == classics | {path.stem for path in others[-4:]}
    assert sum(path.stat().st_size for path in (ASSETS / "images").rglob("*") if path.is_file()) < 5_000_000


def test_every_picture_opens_in_colour_and_is_large_enough():
    for path in pictures("train") + pictures("eval"):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) >= 128, path
        assert pixels.std() > photographs.MIN_DEVIATION, path


def test_training_pictures_are_written_as_the_page_says():
    reference = Image.new("RGB", (600, 300), "orange")
    buffer = io.BytesIO()
    reference.save(buffer, format="PNG")
    with Image.open(io.BytesIO(sample_assets.reduced(buffer.getvalue()))) as made:
        assert made.size == (512, 256)
        for path in pictures("train"):
            with Image.open(path) as image:
                assert image.quantization == made.quantization, path
                assert max(image.size) <= 512, path
                assert JpegImagePlugin.get_sampling(image) == 0, path  # 4:4:4
                assert not image.getexif(), path
    buffer = io.BytesIO()
    reference.save(buffer, format="JPEG", quality=92)
    with Image.open(buffer) as quality_92:
        assert made.quantization == quality_92.quantization


def test_training_and_evaluation_share_no_picture():
    train = [photographs.difference_hash(Image.open(path).convert("RGB")) for path in pictures("train")]
    for path in pictures("eval"):
        with Image.open(path) as image:
            assert not photographs.is_duplicate(photographs.difference_hash(image.convert("RGB")), train), path


def test_evaluation_pictures_are_the_originals():
    originals = {asset.file: asset.source_sha256 for asset in sample_assets.assets() if asset.source == "scikit-image"}
    assert {file: sha256 for file, (sha256, _) in listed().items() if file in originals} == originals


def test_the_page_of_sources_is_the_one_that_the_script_writes():
    rows = [(asset, listed()[asset.file][0]) for asset in sample_assets.assets()]
    written, committed = sample_assets.sources_page(rows), (ASSETS / "SOURCES.md").read_text(encoding="utf-8")
    # The version of Pillow is the one that encoded the committed files, not the one that is installed here.
    without_version = [re.sub(r"Pillow [\d.]+\d", "Pillow", page) for page in (written, committed)]
    assert without_version[0] == without_version[1]


def test_a_picture_that_is_not_the_recorded_one_is_refused():
    asset = sample_assets.assets()[0]
    with pytest.raises(FetchError, match=rf"{re.escape(asset.inside)} has sha256 .* version 0\.26\.0 holds it with"):
        sample_assets._checked(asset, {asset.inside: b"another picture"}, "0.26.0")
    with pytest.raises(FetchError, match="is missing in the package scikit-image"):
        sample_assets._checked(asset, {}, "0.26.0")
