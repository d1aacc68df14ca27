"""scripts/fetch_data.py: the archive reader, the filter, the split, resuming, and what is said when something is wrong.

Nothing here touches the network: packages are replaced by folders that a test writes.
"""

import io
import json
import shutil
import struct
import sys
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import fetch_data  # noqa: E402
from fetching import debian, folders, photo_set, photo_sources, photographs, sound_set, sounds  # noqa: E402
from fetching.debian import FetchError, PackageFile  # noqa: E402
from fetching.files import sha256_of, write_atomically  # noqa: E402
from fetching.photo_sources import PhotoSource  # noqa: E402
from fetching.qt_resources import DamagedResourceFile, read_resources  # noqa: E402
from fetching.sound_sources import SoundSource, sound_sources  # noqa: E402


@cache
def scene(seed: int, size: tuple[int, int] = (300, 280)) -> Image.Image:
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


def resource_file(files: dict[str, bytes], *, version: int, compressed: bool) -> bytes:
    """Packs files of one folder, "folder/<name>", in the layout of Qt resource files."""
    names, data, entries = b"", b"", []

    def name(text: str) -> int:
        nonlocal names
        offset = len(names)
        names += struct.pack(">HI", len(text), 0) + text.encode("utf-16-be")
        return offset

    def entry(name_offset: int, flags: int, third: int, fourth: int) -> bytes:
        return struct.pack(">IHII", name_offset, flags, third, fourth) + (b"" if version == 1 else bytes(8))

    entries.append(entry(0, 2, 1, 1))  # the root has one child, entry 1
    entries.append(entry(name("folder"), 2, len(files), 2))
    for file_name, content in files.items():
        packed = struct.pack(">I", len(content)) + zlib.compress(content) if compressed else content
        entries.append(entry(name(file_name), 1 if compressed else 0, 0, len(data)))
        data += struct.pack(">I", len(packed)) + packed
    header_size = 20 if version < 3 else 24
    tree = b"".join(entries)
    data_offset = header_size + len(tree)
    header = struct.pack(">4sIIII", b"qres", version, header_size, data_offset, data_offset + len(data))
    return header + (b"" if version < 3 else bytes(4)) + tree + data + names


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("compressed", [False, True])
def test_resource_files_of_every_version_are_read(tmp_path, version, compressed):
    files = {"stork.webp": b"a" * 1000, "été.png": b"\x00\xff", "empty.txt": b""}
    path = tmp_path / "some.rcc"
    path.write_bytes(resource_file(files, version=version, compressed=compressed))
    assert dict(read_resources(path)) == {f"folder/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("compressed", [False, True])
def test_a_resource_file_cut_anywhere_is_refused(tmp_path, compressed):
    whole = resource_file({"a.png": bytes(range(256))}, version=2, compressed=compressed)
    path = tmp_path / "some.rcc"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedResourceFile):
            list(read_resources(path))


def test_a_resource_that_unpacks_to_another_size_is_refused(tmp_path):
    blob = resource_file({"a.png": b"a" * 77}, version=2, compressed=True)
    assert blob.count(struct.pack(">I", 77)) == 1
    path = tmp_path / "some.rcc"
    path.write_bytes(blob.replace(struct.pack(">I", 77), struct.pack(">I", 78)))
    with pytest.raises(DamagedResourceFile, match="unpacks to 77 bytes, but 78 were promised"):
        list(read_resources(path))


def test_a_resource_file_whose_tree_runs_in_a_circle_is_refused(tmp_path):
    blob = bytearray(resource_file({"a.png": b"a"}, version=2, compressed=False))
    struct.pack_into(">I", blob, 20 + 22 + 10, 0)  # the first child of "folder" is the root
    path = tmp_path / "some.rcc"
    path.write_bytes(bytes(blob))
    with pytest.raises(DamagedResourceFile, match="reached twice"):
        list(read_resources(path))


def test_a_photograph_passes_and_a_large_one_is_reduced():
    assert photographs.read_photograph(encoded(scene(0))).size == (300, 280)
    large = photographs.read_photograph(encoded(scene(1, (1000, 800)), "JPEG"))
    assert large.size == (960, 768)
    assert large.mode == "RGB"


def transparent() -> Image.Image:
    image = scene(0).convert("RGBA")
    image.putpixel((5, 5), (1, 2, 3, 0))
    return image


def half_white() -> Image.Image:
    image = Image.new("RGB", (300, 280), "white")
    image.paste(scene(0).crop((0, 0, 300, 120)), (0, 0))
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
        (encoded(half_white()), "flat"),
        (encoded(slope()), "no detail"),
        (b"this is no picture", "unreadable"),
        (encoded(scene(0))[:9000], "unreadable"),
    ],
    ids=["small", "transparent", "gray", "one colour", "half white", "slope", "text", "cut short"],
)
def test_what_is_no_photograph_is_left_out_with_its_reason(content, reason):
    with pytest.raises(photographs.NotAPhotograph, match=f"^{reason}$"):
        photographs.read_photograph(content)


def test_copies_are_found_and_other_pictures_are_not():
    known = [photographs.difference_hash(scene(seed)) for seed in range(20)]
    copy = Image.open(io.BytesIO(encoded(scene(7).resize((190, 170), Image.Resampling.LANCZOS), "JPEG", quality=60)))
    assert photographs.is_duplicate(photographs.difference_hash(copy), known)
    assert not photographs.is_duplicate(photographs.difference_hash(scene(99)), known)


def test_the_last_tenth_of_the_hashes_is_validation():
    assert photo_set.split_of("0" * 64) == "train"
    assert photo_set.split_of("e665" + "f" * 60) == "train"  # the hexadecimal fraction 0.e666... is nine tenths
    assert photo_set.split_of("e667" + "0" * 60) == "validation"
    assert photo_set.split_of("f" * 64) == "validation"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages made of folders: the first has loose pictures, the second an archive with a new one and a copy."""
    trees = {"first": tmp_path / "trees/first", "second": tmp_path / "trees/second"}
    for tree in trees.values():
        (tree / "pictures").mkdir(parents=True)
    for seed in range(6):
        (trees["first"] / f"pictures/scene {seed}.png").write_bytes(encoded(scene(seed, (160, 140))))
    (trees["first"] / "pictures/icon.png").write_bytes(encoded(scene(0, (16, 16))))
    (trees["first"] / "pictures/drawing.png").write_bytes(encoded(scene(50)))
    (trees["first"] / "pictures/link.png").symlink_to("scene 0.png")
    notice = trees["first"] / "usr/share/doc/first/copyright"
    notice.parent.mkdir(parents=True)
    notice.write_text("License: CC0-1.0")
    archive = {
        "copy.jpg": encoded(scene(3, (160, 140)), "JPEG"),
        "new.webp": encoded(scene(30, (160, 140)), "WEBP"),
        "notes.txt": b"text",
    }
    (trees["second"] / "pictures/all.rcc").write_bytes(resource_file(archive, version=2, compressed=True))

    sources = {
        name: PhotoSource(
            package=name,
            version="1.0",
            sha256="0" * 64,
            licence="CC0-1.0",
            include=("pictures/*",),
            exclude=("*/drawing.png",),
        )
        for name in trees
    }
    obtained = []

    def obtain(package, *, downloads, known_sha256, say):
        obtained.append(package)
        return PackageFile(package=package, version="1.0", sha256=known_sha256, path=trees[package])

    def unpack(deb, destination):
        shutil.copytree(deb.path, destination, symlinks=True)

    monkeypatch.setattr(photo_set, "photo_sources", lambda: sources)
    monkeypatch.setattr(photo_set, "obtain", obtain)
    monkeypatch.setattr(photo_set, "unpack", unpack)
    return obtained


def build(destination: Path, names=("first", "second")) -> tuple[list, list[str]]:
    lines: list[str] = []
    records = photo_set.build(list(names), destination=destination, downloads=destination / "unused", say=lines.append)
    return records, lines


def files_of(destination: Path) -> dict[str, str]:
    return {path.relative_to(destination).as_posix(): sha256_of(path) for path in destination.rglob("*.jpg")}


def test_the_photographs_and_the_manifest_agree(packages, tmp_path):
    destination = tmp_path / "photos"
    _, lines = build(destination)
    manifest = json.loads((destination / "manifest.json").read_text())
    photos = manifest["photographs"]
    assert {photo["file"]: photo["sha256"] for photo in photos} == files_of(destination)
    # Six scenes of the first package; of the second one picture is new and one a copy.
    assert [sum(photo["package"] == name for photo in photos) for name in ("first", "second")] == [6, 1]
    assert manifest["packages"][0]["left_out"] == {"small": 1}
    assert manifest["packages"][1]["left_out"] == {"duplicate": 1}
    assert manifest["totals"]["train"] + manifest["totals"]["validation"] == 7
    for photo in photos:
        assert photo["split"] == photo["file"].split("/")[0] == photo_set.split_of(photo["source_sha256"])
        with Image.open(destination / photo["file"]) as image:
            assert image.size == (photo["width"], photo["height"]) == (160, 140)
        assert (destination / photo["file"]).stat().st_size == photo["bytes"]
        assert photo["licence"] == "CC0-1.0"
    assert photos[-1]["inside"].startswith("pictures/")
    assert (destination / "licences/first.txt").read_text() == "License: CC0-1.0"
    assert lines[-1] == "[2/2] second: 1 photographs (left out: 1 duplicate)"


def test_a_second_run_fetches_nothing_and_changes_nothing(packages, tmp_path):
    destination = tmp_path / "photos"
    build(destination)
    before = files_of(destination)
    packages.clear()
    _, lines = build(destination)
    assert packages == []
    assert files_of(destination) == before
    assert lines == ["[1/2] first: already there, 6 photographs", "[2/2] second: already there, 1 photographs"]


@pytest.mark.parametrize(
    "harm", [Path.unlink, lambda path: path.write_bytes(b"something else")], ids=["gone", "changed"]
)
def test_only_a_package_with_a_missing_or_changed_file_is_built_again(packages, tmp_path, harm):
    destination = tmp_path / "photos"
    build(destination)
    before = files_of(destination)
    harm(next(destination.glob("*/first/*.jpg")))
    packages.clear()
    build(destination)
    assert packages == ["first"]
    assert files_of(destination) == before


@pytest.mark.parametrize("moment", [1, 6, 7])
def test_a_run_that_was_interrupted_leaves_nothing_half_written(packages, tmp_path, monkeypatch, moment):
    build(tmp_path / "whole")
    destination = tmp_path / "photos"
    count = 0

    def interrupted(path, content):
        nonlocal count
        count += 1
        if count == moment:
            raise KeyboardInterrupt
        write_atomically(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(photo_set, "write_atomically", interrupted)
        build(destination)
    # Six pictures, then the licence text, are written before the package is vouched for by its record.
    assert not list((destination / folders.RECORDS).glob("*.json"))
    if moment <= 6:
        assert files_of(destination) == {}
    build(destination)
    assert files_of(destination) == files_of(tmp_path / "whole")
    assert not list(destination.glob(".partial-*"))


def test_what_a_killed_run_left_is_cleared_away(packages, tmp_path):
    destination = tmp_path / "photos"
    build(destination, ["first"])
    (destination / ".partial-abc/unpacked").mkdir(parents=True)
    (destination / "train/second").mkdir(parents=True)
    (destination / "train/second/half.jpg").write_bytes(b"half")
    build(destination)
    assert not (destination / ".partial-abc").exists()
    assert not (destination / "train/second/half.jpg").exists()


def test_a_package_that_fails_does_not_stop_the_others(packages, tmp_path, monkeypatch):
    whole = photo_set.obtain

    def obtain(package, **options):
        if package == "first":
            raise FetchError("apt does not know it")
        return whole(package, **options)

    monkeypatch.setattr(photo_set, "obtain", obtain)
    with pytest.raises(FetchError, match=r"1 of 2 packages could not be fetched \(first\)"):
        build(tmp_path / "photos")
    assert len(files_of(tmp_path / "photos")) == 2  # without the first package, the copy is none


def test_another_version_is_taken_and_said(packages, tmp_path, monkeypatch):
    whole = photo_set.obtain

    def obtain(package, **options):
        found = whole(package, **options)
        return PackageFile(package=package, version="2.0", sha256="1" * 64, path=found.path)

    monkeypatch.setattr(photo_set, "obtain", obtain)
    records, lines = build(tmp_path / "photos", ["second"])
    assert any("2.0 is not the file that was measured (1.0)" in line for line in lines)
    assert (records[0].version, records[0].as_measured) == ("2.0", False)


def test_a_folder_with_other_things_is_left_alone(packages, tmp_path):
    (tmp_path / "mine/train/first").mkdir(parents=True)
    with pytest.raises(FetchError, match="holds files that this command did not write"):
        build(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(FetchError, match="is a file; name a folder"):
        build(tmp_path / "file")


@pytest.fixture
def apt(tmp_path, monkeypatch):
    """Puts stand-ins for apt-cache, apt-get and dpkg-deb first on the path; apt offers a file with content "deb"."""
    programs = tmp_path / "programs"
    programs.mkdir()
    log = tmp_path / "log"

    def program(name: str, body: str) -> None:
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n{body}\n')
        (programs / name).chmod(0o755)

    content = tmp_path / "content"
    content.write_text("deb")
    sha256 = sha256_of(content)
    fields = ["Package: krank", "Version: 1:2-3", "Size: 3", f"SHA256: {sha256}", "Description: a game", " with: words"]
    program("apt-cache", f"printf '%s\\n' {' '.join(map(repr, fields))}")
    program("apt-get", "printf deb > krank_1%3a2-3_all.deb")
    program("dpkg-deb", "echo 1:2-3")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    log.write_text("")
    return program, log, sha256


def test_a_package_is_downloaded_once_and_checked(apt, tmp_path):
    _, log, sha256 = apt
    lines: list[str] = []
    deb = debian.obtain("krank", downloads=tmp_path / "downloads", known_sha256="0" * 64, say=lines.append)
    assert (deb.version, deb.sha256, deb.path.name) == ("1:2-3", sha256, "krank_1%3a2-3_all.deb")
    assert "apt-get download krank=1:2-3" in log.read_text()
    assert lines == ["downloading version 1:2-3, 0.0 MB"]
    log.write_text("")
    assert debian.obtain("krank", downloads=tmp_path / "downloads", known_sha256="0" * 64) == deb
    assert "apt-get" not in log.read_text()
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == [deb.path.name]


def test_a_damaged_file_in_the_downloads_is_fetched_again(apt, tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads/krank_1%3a2-3_all.deb").write_text("de")
    debian.obtain("krank", downloads=tmp_path / "downloads", known_sha256="0" * 64, say=lambda line: None)
    assert (tmp_path / "downloads/krank_1%3a2-3_all.deb").read_text() == "deb"


def test_a_download_with_another_hash_is_thrown_away(apt, tmp_path):
    program, _, sha256 = apt
    program("apt-get", "printf bad > krank_1%3a2-3_all.deb")
    with pytest.raises(FetchError, match=f"lists say {sha256}; it was thrown away"):
        debian.obtain("krank", downloads=tmp_path / "downloads", known_sha256="0" * 64, say=lambda line: None)
    assert list((tmp_path / "downloads").iterdir()) == []


def test_missing_package_lists_are_explained(apt, tmp_path):
    program, _, _ = apt
    program("apt-cache", 'echo "E: No packages found" >&2; exit 100')
    with pytest.raises(FetchError, match=r"apt does not know the package 'krank'.*sudo apt-get update.*--packages"):
        debian.obtain("krank", downloads=tmp_path / "downloads", known_sha256="0" * 64)


def test_the_table_of_sources_is_complete():
    sources = photo_sources.photo_sources()
    assert {"gcompris-qt-data", "krank"} <= set(sources)
    for source in sources.values():
        assert source.version
        assert source.licence
        assert source.include
        assert len(bytes.fromhex(source.sha256)) == 32


def test_the_command_fails_with_words_and_can_be_interrupted(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("")
    assert fetch_data.main(["photos", "--destination", str(tmp_path / "mine")]) == 1
    assert "fetch_data: error: --destination" in capsys.readouterr().err

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(photo_set, "build", interrupt)
    assert fetch_data.main(["photos"]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def wave(seed: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, (800, channels), dtype=np.int16)


def sound(path: Path, seed: int, channels: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave(seed, channels), 16000)


SPEAKERS = {
    "numbered": SoundSource(
        package="numbered",
        version="1",
        sha256="1" * 64,
        licence="free",
        base="usr/wav",
        include=("*.wav",),
        exclude=("beep*",),
        number=r"^ru_(\d+)$",
        transcripts="etc/done",
        transcript_line=r'^\( (?P<name>\S+) "(?P<text>.*)" \)$',
        no_text="+",
    ),
    "hashed": SoundSource(
        package="hashed", version="1", sha256="2" * 64, licence="free", base="usr/sounds", include=("*.flac", "*.g722")
    ),
}


def fill_numbered(folder: Path) -> None:
    for number in (1, 2, 10, 20):
        sound(folder / "usr/wav" / f"ru_{number:04d}.wav", number)
    sound(folder / "usr/wav" / "ru_0003.wav", 2)  # a duplicate
    sound(folder / "usr/wav" / "beep.wav", 99)
    (folder / "usr/wav" / "ru_0004.wav").write_bytes(b"noise")
    soundfile.write(folder / "usr/wav" / "ru_0005.wav", np.zeros((0, 1), np.int16), 16000)
    (folder / "etc").mkdir()
    lines = [f'( ru_{number:04d} "сл+ово {number}" )' for number in (1, 2, 10)]
    (folder / "etc/done").write_text("\n".join(lines), encoding="utf-8")
    (folder / "usr/share/doc/numbered").mkdir(parents=True)
    (folder / "usr/share/doc/numbered/copyright").write_text("keep this")


def fill_hashed(folder: Path) -> None:
    for number in range(30):
        sound(folder / "usr/sounds" / f"deep/{number}.flac", 100 + number, channels=2)


@pytest.fixture
def speakers(monkeypatch):
    fetched = []

    def obtain(package, *, downloads, known_sha256, say=print):
        fetched.append(package)
        return PackageFile(package=package, version="1", sha256=known_sha256, path=Path(package))

    def unpack(deb, destination):
        destination.mkdir(parents=True)
        {"numbered": fill_numbered, "hashed": fill_hashed}[deb.package](destination)

    monkeypatch.setattr(sound_set, "sound_sources", lambda _: SPEAKERS)
    monkeypatch.setattr(sound_set, "obtain", obtain)
    monkeypatch.setattr(sound_set, "unpack", unpack)
    return fetched


def build_speech(destination: Path, names=("numbered", "hashed")) -> tuple[list, list[str]]:
    lines = []
    records = sound_set.build(
        "speech", list(names), destination=destination, downloads=destination / "unused", say=lines.append
    )
    return records, lines


def test_recordings_are_written_sample_for_sample_and_divided(speakers, tmp_path):
    (numbered, hashed), lines = build_speech(tmp_path / "speech")
    assert numbered.left_out == {"duplicate": 1, "unreadable": 1, "empty": 1}
    assert lines[0] == "[1/2] numbered: 4 recordings, 0.0 min (left out: 1 duplicate, 1 empty, 1 unreadable)"
    found = {each["file"]: each for record in (numbered, hashed) for each in record.recordings}
    assert {file for file in found if "numbered" in file} == {
        "train/numbered/ru_0001.flac",
        "train/numbered/ru_0002.flac",
        "validation/numbered/ru_0010.flac",
        "validation/numbered/ru_0020.flac",
    }
    assert {"train", "validation"} == {each["split"] for each in hashed.recordings}
    for each in hashed.recordings:
        assert each["split"] == photo_set.split_of(each["source_sha256"])
    for file, each in found.items():
        seed = int(Path(file).stem.split("_")[-1].split("-")[-1]) + 100 * ("hashed" in file)
        samples, sample_rate = soundfile.read(tmp_path / "speech" / file, dtype="int16", always_2d=True)
        assert sample_rate == each["sample_rate"] == 16000
        assert np.array_equal(samples, wave(seed, each["channels"]))
        assert sounds.samples_sha256(samples) == each["samples_sha256"]
        assert sha256_of(tmp_path / "speech" / file) == each["sha256"]


def test_transcripts_lie_beside_the_recordings(speakers, tmp_path):
    build_speech(tmp_path / "speech")
    train, validation = (tmp_path / "speech" / split / "numbered/transcripts.tsv" for split in ("train", "validation"))
    assert train.read_text(encoding="utf-8") == "name\ttext\nru_0001.flac\tслово 1\nru_0002.flac\tслово 2\n"
    assert validation.read_text(encoding="utf-8") == "name\ttext\nru_0010.flac\tслово 10\n"
    assert not list((tmp_path / "speech").glob("*/hashed/transcripts.tsv"))
    assert (tmp_path / "speech" / "licences" / "numbered.txt").read_text() == "keep this"


@pytest.mark.parametrize("harmed", ["train/numbered/ru_0001.flac", "validation/numbered/transcripts.tsv"])
def test_only_the_package_with_a_harmed_file_is_built_again(speakers, tmp_path, harmed):
    build_speech(tmp_path / "speech")
    whole = (tmp_path / "speech" / harmed).read_bytes()
    (tmp_path / "speech" / harmed).write_bytes(b"harm")
    speakers.clear()
    build_speech(tmp_path / "speech")
    assert speakers == ["numbered"]
    assert (tmp_path / "speech" / harmed).read_bytes() == whole


@pytest.mark.parametrize("moment", [1, 7])
def test_an_interrupted_run_for_recordings_leaves_no_package_half(speakers, tmp_path, monkeypatch, moment):
    encode, calls = sound_set.encode_flac, []

    def interrupt(samples, sample_rate):
        calls.append(1)
        if len(calls) == moment:
            raise KeyboardInterrupt
        return encode(samples, sample_rate)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sound_set, "encode_flac", interrupt)
        build_speech(tmp_path / "speech")
    whole = ["numbered"] if moment > 4 else []
    assert sorted({path.parent.name for path in (tmp_path / "speech").rglob("*.flac")}) == whole
    assert not list((tmp_path / "speech").glob(".partial-*"))
    build_speech(tmp_path / "speech")
    assert len(list((tmp_path / "speech").rglob("*.flac"))) == 34


def test_g722_is_read_as_sixteen_bits_at_16_khz(monkeypatch):
    class Decoder:
        def __init__(self, sample_rate, bits_per_second):
            assert (sample_rate, bits_per_second) == (16000, 64000)

        def decode(self, content):
            return [value - 100 for value in content]

    monkeypatch.setitem(sys.modules, "G722", type("G722", (), {"G722": Decoder}))
    samples, sample_rate = sounds.read_sound(bytes([0, 100, 255]), "digits/1.g722")
    assert sample_rate == 16000
    assert samples.dtype == np.int16
    assert samples.tolist() == [[-100], [0], [155]]
    with pytest.raises(sounds.NotASound, match="empty"):
        sounds.read_sound(b"", "a.g722")


@pytest.mark.parametrize("collection", ["speech", "music"])
def test_the_table_of_sound_sources_is_complete(collection):
    for name, source in sound_sources(collection).items():
        assert source.package == name
        assert len(source.sha256) == 64
        assert source.licence
        assert source.include
        assert bool(source.transcripts) == bool(source.transcript_line)
