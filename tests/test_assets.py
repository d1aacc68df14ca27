"""assets/: every picture and recording is listed with its source, is what the list says, and opens."""

import hashlib
import re
from pathlib import Path

import pytest
import soundfile
from fetching import photographs, sample_assets
from fetching.debian import FetchError
from fetching.sounds import samples_sha256
from fetching.sources import sources
from PIL import Image

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "assets"
ROW = re.compile(r"^\| `(?P<file>[^`]+)` \| `(?P<sha256>[0-9a-f]{64})` \| (?P<licence>[^|]+) \|", re.MULTILINE)


def listed() -> dict[str, tuple[str, str]]:
    page = (ASSETS / "SOURCES.md").read_text(encoding="utf-8")
    return {row["file"]: (row["sha256"], row["licence"]) for row in ROW.finditer(page)}


def pictures(folder: str) -> list[Path]:
    return sorted(path for path in (ASSETS / "images" / folder).rglob("*") if path.is_file())


def recordings(folder: str) -> list[Path]:
    return sorted((ASSETS / "audio" / folder).glob("*.flac"))


def test_every_file_is_listed_and_every_listed_file_is_there():
    on_disk = {
        path.relative_to(ASSETS).as_posix()
        for folder in ("images", "audio")
        for path in (ASSETS / folder).rglob("*")
        if path.is_file()
    }
    assert on_disk - set(sample_assets.transcripts()) == set(listed())
    assert set(listed()) == {asset.file for asset in sample_assets.assets()}


def test_every_file_has_the_listed_hash():
    for file, (sha256, _) in listed().items():
        if file.endswith(".flac"):
            samples, _ = soundfile.read(ASSETS / file, dtype="int16", always_2d=True)
            assert samples_sha256(samples) == sha256, file
        else:
            assert hashlib.sha256((ASSETS / file).read_bytes()).hexdigest() == sha256, file


def test_every_licence_allows_all_use_and_its_text_is_kept():
    pictures_and_music = {licence for file, (_, licence) in listed().items() if not is_speech(file)}
    assert pictures_and_music == {"public domain", "CC0-1.0"}
    assert {licence for file, (_, licence) in listed().items() if is_speech(file)} == {
        "BSD-like (below)",
        "BSD-2-Clause (below)",
    }
    page = (ASSETS / "SOURCES.md").read_text(encoding="utf-8")
    for words in (
        "Nickolay V. Shmyrev  Copyright (c) 2005",
        "2. Any modifications must be clearly marked as such.",
        "THE AUTHOR AND THE CONTRIBUTORS TO THIS WORK",
        "Copyright (c) 1995-2014 Carnegie Mellon University.",
        "1. Redistributions of source code must retain the above copyright",
        "THIS SOFTWARE IS PROVIDED BY CARNEGIE MELLON UNIVERSITY",
    ):
        assert words in page


def is_speech(file: str) -> bool:
    return file.startswith(("audio/train/", "audio/eval/"))


def test_the_sample_set_has_the_planned_size():
    assert len(pictures("train")) == 16
    classics = {"astronaut", "chelsea", "coffee", "rocket"}
    others = [path for path in pictures("train") + pictures("eval") if path.stem not in classics]
    others.sort(key=lambda path: hashlib.sha256(path.read_bytes()).hexdigest())
    assert {path.stem for path in pictures("eval")} == classics | {path.stem for path in others[-4:]}
    assert sum(path.stat().st_size for path in (ASSETS / "images").rglob("*") if path.is_file()) < 5_000_000


def test_training_and_evaluation_share_no_picture():
    train = [photographs.difference_hash(Image.open(path).convert("RGB")) for path in pictures("train")]
    for path in pictures("eval"):
        with Image.open(path) as image:
            assert not photographs.is_duplicate(photographs.difference_hash(image.convert("RGB")), train), path


def test_evaluation_pictures_are_the_originals():
    originals = {asset.file: asset.source_sha256 for asset in sample_assets.assets() if asset.source == "scikit-image"}
    assert {file: sha256 for file, (sha256, _) in listed().items() if file in originals} == originals


def test_evaluation_hears_prompts_and_a_speaker_that_training_does_not():
    numbers = {folder: [path.stem for path in recordings(folder)] for folder in ("train", "eval")}
    assert all(re.fullmatch(r"ru_\d{3}[1-9]", stem) for stem in numbers["train"])
    assert all(re.fullmatch(r"ru_\d{3}0|librivox_\d{4}", stem) for stem in numbers["eval"])
    assert sum(stem.startswith("librivox") for stem in numbers["eval"]) == 5


def test_every_utterance_has_its_transcript():
    assert set(sample_assets.transcripts()) == {"audio/train/transcripts.tsv", "audio/eval/transcripts.tsv"}
    for file, page in sample_assets.transcripts().items():
        assert (ASSETS / file).read_text(encoding="utf-8") == page
        header, *rows = (line.split("\t") for line in page.splitlines())
        assert header == ["name", "text"]
        assert [name for name, _ in rows] == [path.name for path in recordings(Path(file).parent.name)]
        assert all(
            re.fullmatch(r"[a-z ]+" if name.startswith("librivox") else r"[а-яА-ЯёЁ \-.,:;!?]+", text)
            for name, text in rows
        )


def test_packages_have_one_hash_everywhere():
    known = sources("photos") | sources("speech") | sources("music")
    for name, source in sample_assets.sources().items():
        assert (source.kind == "debian") == (len(source.sha256) == 64), name
        if name in known:
            assert (source.version, source.sha256) == (known[name].version, known[name].sha256), name


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
