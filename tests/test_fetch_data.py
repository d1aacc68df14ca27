"""scripts/fetch_data.py: hashes, resuming, whole packages or none, hostile archives, and what is left out.

Nothing here touches the network: packages are replaced by folders that a test writes.
"""

import io
import json
import shutil
import struct
import sys
import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import fetch_data
import numpy as np
import pytest
import soundfile
from fetching import collection, debian, photographs, sounds, tables
from fetching.debian import FetchError, PackageFile, sha256_of
from fetching.qt_resources import DamagedResourceFile, read_resources
from fetching.sources import Source, sources
from PIL import Image

from vqkit.saving.files import write_whole


@cache
def scene(seed: int, size: tuple[int, int] = (160, 140)) -> Image.Image:
    """A colourful picture with detail at several scales, different for every seed."""
    generator = np.random.default_rng(seed)
    layers = []
    for cells in (5, 20, 80, 200):
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layers.append(np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.float32))
    return Image.fromarray(np.clip(sum(layers) / 4, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form, **options)
    return buffer.getvalue()


def resource_file(files: dict[str, bytes], *, version: int = 2, compressed: bool = True) -> bytes:
    """Packs files of one folder, "folder/<name>", in the layout of Qt resource files."""
    names, data, entries = b"", b"", []

    def entry(name: str, flags: int, third: int, fourth: int) -> None:
        nonlocal names
        entries.append(struct.pack(">IHII", len(names), flags, third, fourth) + (b"" if version == 1 else bytes(8)))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")

    entry("", 2, 1, 1)  # the root has one child, entry 1
    entry("folder", 2, len(files), 2)
    for name, content in files.items():
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        entry(name, 1 if compressed else 0, 0, len(data))
        data += struct.pack(">I", len(packed)) + packed
    header_size, tree = 20 if version < 3 else 24, b"".join(entries)
    start = header_size + len(tree)
    header = struct.pack(">4sIIII", b"qres", version, header_size, start, start + len(data))
    return header.ljust(header_size, b"\0") + tree + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_resource_files_are_read_whole_or_refused(tmp_path, version, compressed):
    files = {"stork.webp": b"a" * 77, "été.png": b"\x00\xff", "empty.txt": b""}
    whole, path = resource_file(files, version=version, compressed=compressed), tmp_path / "some.rcc"
    path.write_bytes(whole)
    assert dict(read_resources(path)) == {f"folder/{name}": content for name, content in files.items()}
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedResourceFile):
            list(read_resources(path))


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, 0x504B0304, "is not a Qt resource file"),
        (20 + 22 + 10, 0, "reached twice"),  # the first child of "folder" is the root
        (20 + 22 + 6, 2**31, "claims 2147483648 children"),
        (20 + 3 * 22 + 4, 78, "unpacks to 77 bytes, but 78 were promised"),
    ],
)
def test_a_hostile_resource_file_is_refused(tmp_path, offset, value, words):
    blob, path = bytearray(resource_file({"a.png": b"a" * 77})), tmp_path / "some.rcc"
    struct.pack_into(">I", blob, offset, value)
    path.write_bytes(bytes(blob))
    with pytest.raises(DamagedResourceFile, match=words):
        list(read_resources(path))


def test_a_photograph_passes_upright_and_a_large_one_is_reduced():
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by a quarter
    assert photographs.read_photograph(encoded(scene(0), "JPEG", exif=exif)).size == (140, 160)
    assert photographs.read_photograph(encoded(scene(1, (1000, 800)), "JPEG")).size == (960, 768)
    assert photographs.read_photograph(encoded(scene(0).convert("RGBA"))).mode == "RGB"  # nothing is transparent


def transparent() -> Image.Image:
    image = scene(0).convert("RGBA")
    image.putpixel((5, 5), (1, 2, 3, 0))
    return image


def slope() -> Image.Image:
    ramp = np.linspace(0, 255, 300, dtype=np.float32)[None, :, None] * np.ones((280, 1, 1)) * np.array([1.0, 0.6, 0.2])
    return Image.fromarray(ramp.astype(np.uint8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(scene(0, (127, 500))), "small"),
        (encoded(transparent()), "transparent"),
        (encoded(scene(0).convert("L")), "gray"),
        (encoded(Image.new("RGB", (300, 300), "orange")), "flat"),
        (encoded(slope()), "no detail"),
        (encoded(scene(0))[:9000], "unreadable"),
    ],
    ids=["small", "transparent", "gray", "one colour", "slope", "cut short"],
)
def test_what_is_no_photograph_is_left_out_with_its_reason(content, reason):
    with pytest.raises(photographs.NotAPhotograph, match=f"^{reason}$"):
        photographs.read_photograph(content)


def wave(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, (800, 1), dtype=np.int16)


def fill_pictures(folder: Path) -> None:
    for seed in range(6):
        (folder / f"pictures/scene {seed}.png").write_bytes(encoded(scene(seed)))
    (folder / "pictures/icon.png").write_bytes(encoded(scene(0, (16, 16))))
    (folder / "pictures/drawing.png").write_bytes(encoded(scene(50)))
    (folder / "pictures/link.png").symlink_to("scene 0.png")


def fill_archive(folder: Path) -> None:
    copy = scene(3).resize((130, 128), Image.Resampling.LANCZOS)
    archive = {"copy.jpg": encoded(copy, "JPEG"), "new.webp": encoded(scene(30), "WEBP"), "notes.txt": b"text"}
    (folder / "pictures/all.rcc").write_bytes(resource_file(archive))


def fill_speech(folder: Path) -> None:
    for name, seed in {"ru_0001": 1, "ru_0002": 2, "ru_0003": 2, "ru_0010": 10}.items():
        soundfile.write(folder / f"pictures/{name}.wav", wave(seed), 16000)
    (folder / "pictures/ru_0004.wav").write_bytes(b"noise")
    (folder / "pictures/done").write_text('( ru_0001 "сл+ово" )\n( ru_0010 "два" )', encoding="utf-8")


FILL = {"first": fill_pictures, "second": fill_archive, "spoken": fill_speech}
SPOKEN = {
    "number": r"^ru_(\d+)$",
    "transcripts": "pictures/done",
    "transcript_line": r'^\( (?P<name>\S+) "(?P<text>.*)" \)$',
    "no_text": "+",
}
KNOWN = {
    name: Source(name, "1.0", "0" * 64, "CC0-1.0", ("*",), ("*drawing.png",), base="pictures", **extra)
    for name, extra in {"first": {}, "second": {}, "spoken": SPOKEN}.items()
}
COLLECTIONS = {"photos": {name: KNOWN[name] for name in ("first", "second")}, "speech": {"spoken": KNOWN["spoken"]}}


@pytest.fixture
def packages(tmp_path, monkeypatch) -> list[str]:
    """Packages made of folders; the names of those that were obtained."""
    obtained = []

    def obtain(package, **_):
        obtained.append(package)
        return PackageFile(package, "1.0", "0" * 64, tmp_path / "trees" / package)

    for name, fill in FILL.items():
        (tmp_path / "trees" / name / "pictures").mkdir(parents=True)
        fill(tmp_path / "trees" / name)
        notice = tmp_path / "trees" / name / "usr/share/doc" / name / "copyright"
        notice.parent.mkdir(parents=True)
        notice.write_text("License: CC0-1.0")
    monkeypatch.setattr(collection, "sources", COLLECTIONS.get)
    monkeypatch.setattr(collection, "obtain", obtain)
    monkeypatch.setattr(collection, "unpack", lambda deb, to: shutil.copytree(deb.path, to, symlinks=True))
    return obtained


def build(destination: Path, *names: str, of: str = "photos") -> list[str]:
    lines: list[str] = []
    collection.build(of, names or [*KNOWN], destination=destination, downloads=destination, say=lines.append)
    return lines


def files_of(destination: Path) -> dict[str, str]:
    return {path.relative_to(destination).as_posix(): sha256_of(path) for path in destination.glob("*/*/*.jpg")}


def test_photographs_and_manifest_agree_in_any_order_of_fetching(packages, tmp_path):
    lines = build(tmp_path / "photos")
    manifest = json.loads((tmp_path / "photos/manifest.json").read_text())
    assert {photo["file"]: photo["sha256"] for photo in manifest["files"]} == files_of(tmp_path / "photos")
    # Six scenes of the first package; of the second one picture is new and one a copy.
    assert lines == ["[1/2] first: 6 files (left out: 1 small)", "[2/2] second: 1 files (left out: 1 duplicate)"]
    for photo in manifest["files"]:
        assert photo["split"] == photo["file"].split("/")[0]
        assert photo["split"] == ("validation" if photo["source_sha256"] >= "e666" + "6" * 60 else "train")
        with Image.open(tmp_path / "photos" / photo["file"]) as image:
            assert image.size == (photo["width"], photo["height"]) == (160, 140)
    assert (tmp_path / "photos/licences/first.txt").read_text() == "License: CC0-1.0"
    build(tmp_path / "turned", "second", "first")
    build(tmp_path / "in_steps", "first")
    build(tmp_path / "in_steps", "second")
    assert files_of(tmp_path / "turned") == files_of(tmp_path / "in_steps") == files_of(tmp_path / "photos")


@pytest.mark.parametrize(
    ("harm", "rebuilt"),
    [(lambda path: None, []), (Path.unlink, ["first"]), (lambda path: path.write_bytes(b"else"), ["first"])],
    ids=["none", "gone", "changed"],
)
def test_a_second_run_builds_only_a_package_with_a_harmed_file(packages, tmp_path, harm, rebuilt):
    build(tmp_path / "photos")
    before = files_of(tmp_path / "photos")
    harm(next((tmp_path / "photos").glob("*/first/*.jpg")))
    packages.clear()
    build(tmp_path / "photos")
    assert packages == rebuilt
    assert files_of(tmp_path / "photos") == before


@pytest.mark.parametrize("moment", [1, 6, 7, 8])
def test_a_run_that_was_interrupted_leaves_nothing_half_written(packages, tmp_path, monkeypatch, moment):
    written = []

    def interrupted(path, content):
        written.append(path)
        if len(written) == moment:
            raise KeyboardInterrupt
        write_whole(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(collection, "write_whole", interrupted)
        build(tmp_path / "photos")
    # Six pictures, then the licence text, are written before the package is vouched for by its record.
    assert not list((tmp_path / "photos" / collection.RECORDS).glob("*.json"))
    assert bool(files_of(tmp_path / "photos")) == (moment > 6)
    (tmp_path / "photos/.partial-abc/unpacked").mkdir(parents=True)  # of a run that was killed
    build(tmp_path / "photos")
    build(tmp_path / "whole")
    assert files_of(tmp_path / "photos") == files_of(tmp_path / "whole")
    assert not list((tmp_path / "photos").glob(".partial-*"))


def test_a_package_that_fails_does_not_stop_the_others_and_another_version_is_said(packages, tmp_path, monkeypatch):
    def obtain(package, **_):
        if package == "first":
            raise FetchError("apt does not know it")
        return PackageFile(package, "2.0", "1" * 64, tmp_path / "trees" / package)

    monkeypatch.setattr(collection, "obtain", obtain)
    lines: list[str] = []
    with pytest.raises(FetchError, match=r"1 of 2 packages could not be fetched \(first\)"):
        collection.build("photos", [*KNOWN], destination=tmp_path / "p", downloads=tmp_path, say=lines.append)
    assert len(files_of(tmp_path / "p")) == 2  # without the first package, the copy is none
    assert "2.0 is not the file that was measured (1.0)" in lines[-1]


def test_a_folder_of_others_is_left_alone(packages, tmp_path, capsys, monkeypatch):
    (tmp_path / "mine/train/first").mkdir(parents=True)
    assert fetch_data.main(["photos", "--destination", str(tmp_path / "mine")]) == 1
    assert "holds files that this command did not write" in capsys.readouterr().err
    with collection._claimed(tmp_path / "new"), pytest.raises(FetchError, match="Another run is writing"):
        build(tmp_path / "new")


def test_recordings_are_written_sample_for_sample_with_their_transcripts(packages, tmp_path):
    lines = build(tmp_path / "speech", of="speech")
    assert lines == ["[1/1] spoken: 3 files, 0.0 min (left out: 1 duplicate, 1 unreadable)"]
    for file, seed in {"train/ru_0001": 1, "train/ru_0002": 2, "validation/ru_0010": 10}.items():
        split, name = file.split("/")
        samples, rate = soundfile.read(tmp_path / f"speech/{split}/spoken/{name}.flac", dtype="int16", always_2d=True)
        assert rate == 16000
        assert np.array_equal(samples, wave(seed))
    tables = [(tmp_path / f"speech/{split}/spoken/transcripts.tsv") for split in collection.SPLITS]
    assert tables[0].read_text(encoding="utf-8") == "name\ttext\nru_0001.flac\tслово\n"
    assert tables[1].read_text(encoding="utf-8") == "name\ttext\nru_0010.flac\tдва\n"
    tables[0].write_text("harmed")
    build(tmp_path / "speech", of="speech")
    assert packages == ["spoken", "spoken"]
    assert tables[0].read_text(encoding="utf-8") == "name\ttext\nru_0001.flac\tслово\n"


def test_g722_without_its_decoder_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "G722", None)
    with pytest.raises(FetchError, match="Run `pip install G722`"):
        sounds.read_sound(bytes(100), "digits/1.g722")


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Stand-ins for apt-cache, apt-get and dpkg-deb, first on the path; apt offers a file with the content "deb"."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "downloads").mkdir()

    def program(name: str, body: str) -> None:
        (programs / name).write_text(f"#!/bin/sh\necho {name} >> {tmp_path}/log\n{body}\n")
        (programs / name).chmod(0o755)

    (tmp_path / "content").write_text("deb")
    fields = ["Package: krank", "Version: 1:2-3", f"SHA256: {sha256_of(tmp_path / 'content')}", "Description: a game"]
    program("apt-cache", f"printf '%s\\n' {' '.join(map(repr, fields))}")
    program("apt-get", "printf deb > krank_1%3a2-3_all.deb")
    program("dpkg-deb", "echo 1:2-3")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return program


def obtain(downloads: Path, known_sha256: str = "0" * 64) -> PackageFile:
    return debian.obtain("krank", downloads=downloads, known_sha256=known_sha256, say=lambda line: None)


def test_a_package_is_downloaded_once_checked_and_again_if_damaged(apt, tmp_path):
    downloads, log = tmp_path / "downloads", tmp_path / "log"
    (downloads / "krank_1%3a2-3_all.deb").write_text("de")
    deb = obtain(downloads)
    assert (deb.version, deb.sha256, deb.path.read_text()) == ("1:2-3", sha256_of(tmp_path / "content"), "deb")
    assert obtain(downloads) == deb
    assert log.read_text().count("apt-get") == 1
    log.write_text("")
    assert obtain(downloads, deb.sha256) == deb  # the recorded file needs no apt at all
    assert "apt" not in log.read_text()


@pytest.mark.parametrize(
    ("program", "body", "words"),
    [
        ("apt-get", "printf bad > krank_1%3a2-3_all.deb", "it was thrown away"),
        ("apt-cache", "exit 100", r"apt does not know the package 'krank'.*sudo apt-get update.*--packages"),
        ("apt-get", 'echo "E: Failed to fetch" >&2; exit 100', r"downloading krank failed.*E: Failed"),
    ],
    ids=["another hash", "no lists", "no network"],
)
def test_what_apt_cannot_give_is_explained_and_leaves_no_file(apt, tmp_path, program, body, words):
    apt(program, body)
    with pytest.raises(FetchError, match=words):
        obtain(tmp_path / "downloads")
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.mark.parametrize("name", ["photos", "drawings", "speech", "unheard", "music", "fashion-mnist"])
def test_the_table_of_sources_is_complete(name):
    for source in sources(name).values():
        assert source.version and source.licence and source.include
        assert len(bytes.fromhex(source.sha256)) == 32
        assert bool(source.transcripts) == bool(source.transcript_line)


def test_a_package_with_a_split_of_its_own_keeps_it_and_its_bytes():
    source = Source("digits", "1", "0" * 64, "MIT", ("*.gz",), validation=("t10k-*",))
    splits = [collection.split_of(source, f"{name}.gz", digit * 64) for name in ("t10k-a", "train-a") for digit in "0f"]
    assert splits == ["validation", "validation", "train", "train"]
    ((path, _, name, content, facts),) = tables.choose([("share/t10k-a.gz", b"12")], [], Counter())
    assert (path, name, content, facts) == ("share/t10k-a.gz", "t10k-a.gz", b"12", {})


def test_an_interrupted_command_says_that_it_goes_on(monkeypatch, capsys):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(collection, "build", interrupt)
    assert fetch_data.main(["photos"]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
