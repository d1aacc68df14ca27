"""Builds a folder of training and validation photographs out of Debian packages.

``<destination>/train/<package>/*.jpg`` and ``<destination>/validation/<package>/*.jpg`` hold the pictures,
``manifest.json`` says where each comes from, ``licences/<package>.txt`` is the package's own copyright file. A package
is written aside and moved into place when it is whole (see ``folders``).
"""

import hashlib
import json
import re
import shutil
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from fetching.debian import FetchError, PackageFile, obtain, unpack
from fetching.files import sha256_of, write_atomically
from fetching.folders import RECORDS, claimed, clear, complain, fill, move_into_place
from fetching.photo_sources import PhotoSource, photo_sources, pictures_in
from fetching.photographs import (
    NotAPhotograph,
    difference_hash,
    encode_jpeg,
    is_duplicate,
    lively_crops,
    read_photograph,
)
from fetching.qt_resources import DamagedResourceFile

# Raise this number when the filter or the way of writing changes: packages written before are then built again.
RECIPE = 1
JPEG_QUALITY = 95
VALIDATION_SHARE = 0.1
SPLITS = ("train", "validation")


@dataclass
class PackageRecord:
    """What was made of one package; the done marker, and the part of the manifest that concerns it."""

    package: str
    version: str
    deb_sha256: str
    as_measured: bool
    licence: str
    recipe: str
    left_out: dict[str, int] = field(default_factory=dict)
    photographs: list[dict] = field(default_factory=list)


def split_of(source_sha256: str) -> str:
    """Returns "train" or "validation" for a picture: the last tenth of the hashes, in their order, is validation.

    The hash is that of the picture as it lies in the package, so the answer depends neither on the version of the JPEG
    encoder nor on which other packages are there: a picture never changes sides when more are fetched.
    """
    return SPLITS[int(source_sha256, 16) >= int(2**256 * (1 - VALIDATION_SHARE))]


def recipe_of(source: PhotoSource) -> str:
    """Returns a fingerprint of the rules by which the pictures of a package are chosen and written."""
    return hashlib.sha256(repr((RECIPE, source.include, source.exclude)).encode()).hexdigest()[:16]


def build(packages: list[str], *, destination: Path, downloads: Path, say=print) -> list[PackageRecord]:
    """Fetches the packages that are not there yet and writes their photographs and the manifest.

    Args:
        packages: names of packages in ``sources.toml``.
        destination: folder of the photographs; it must be new, empty, or made by this function.
        downloads: folder where .deb files are kept.
        say: receives one line of progress at a time.

    Returns:
        The records of all packages in the folder, those of earlier runs included, in the order of ``sources.toml``.

    Raises:
        FetchError: the destination holds something else, or at least one package could not be fetched; the others are
            then complete.
    """
    with claimed(destination):
        return _build(packages, destination, downloads, say)


def _build(packages: list[str], destination: Path, downloads: Path, say) -> list[PackageRecord]:
    sources = photo_sources()
    records = {name: record for name in sources if (record := _finished(sources[name], destination)) is not None}
    # In the order of sources.toml, whatever order was asked for: the choice among duplicates is always the same.
    wanted = [name for name in sources if name in packages]
    failed = fill(
        wanted,
        records,
        lambda name, progress: _build_package(sources[name], records, destination, downloads, progress),
        counted=lambda record: f"{len(record.photographs)} photographs",
        failures=(FetchError, DamagedResourceFile),
        say=say,
    )
    ordered = [records[name] for name in sources if name in records]
    write_atomically(destination / "manifest.json", _manifest(ordered))
    complain(failed, wanted)
    return ordered


def _finished(source: PhotoSource, destination: Path) -> PackageRecord | None:
    marker = destination / RECORDS / f"{source.package}.json"
    if not marker.is_file():
        return None
    try:
        record = PackageRecord(**json.loads(marker.read_text(encoding="utf-8")))
        whole = record.recipe == recipe_of(source) and all(
            (destination / photo["file"]).is_file() and sha256_of(destination / photo["file"]) == photo["sha256"]
            for photo in record.photographs
        )
    except (ValueError, TypeError, KeyError):
        return None  # written by an older form of this command
    return record if whole else None


def _build_package(
    source: PhotoSource, records: dict[str, PackageRecord], destination: Path, downloads: Path, say
) -> PackageRecord:
    deb = obtain(source.package, downloads=downloads, known_sha256=source.sha256, say=say)
    as_measured = deb.sha256 == source.sha256
    if not as_measured:
        say(f"{deb.version} is not the file that was measured ({source.version}); the number of photographs may differ")
    clear(destination, source.package, SPLITS)
    known = [int(photo["hash"], 16) for record in records.values() for photo in record.photographs]
    record = PackageRecord(
        package=source.package,
        version=deb.version,
        deb_sha256=deb.sha256,
        as_measured=as_measured,
        licence=source.licence,
        recipe=recipe_of(source),
    )
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=destination) as partial:
        staged = Path(partial)
        _stage(deb, source, known, record, staged, say)
        move_into_place(staged, destination, source.package, SPLITS)
        if (staged / "copyright").is_file():
            write_atomically(destination / "licences" / f"{source.package}.txt", (staged / "copyright").read_bytes())
    write_atomically(destination / RECORDS / f"{source.package}.json", json.dumps(asdict(record), indent=1).encode())
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(record.left_out.items())) or "none"
    say(f"{len(record.photographs)} photographs (left out: {left_out})")
    return record


def _stage(deb: PackageFile, source: PhotoSource, known: list[int], record: PackageRecord, staged: Path, say) -> None:
    unpacked = staged / "unpacked"
    unpack(deb, unpacked)
    candidates = [(*_judged(content), inside, content) for inside, content in pictures_in(unpacked, source)]
    say(f"{len(candidates)} pictures to look at")
    left_out = Counter(reason for image, reason, _, _ in candidates if image is None)
    # The largest of several copies comes first and is the one that stays.
    kept = [(image, inside, content) for image, _, inside, content in candidates if image is not None]
    for image, inside, content in sorted(kept, key=lambda item: (-item[0].width * item[0].height, item[1])):
        picture_hash = difference_hash(image)
        if is_duplicate(picture_hash, known):
            left_out["duplicate"] += 1
            continue
        known.append(picture_hash)
        record.photographs.append(_write(image, inside, content, picture_hash, record, staged))
    record.left_out = dict(left_out)
    notice = unpacked / "usr/share/doc" / source.package / "copyright"
    if notice.is_file():
        shutil.copyfile(notice, staged / "copyright")


def _judged(content: bytes) -> tuple[Image.Image | None, str]:
    try:
        return read_photograph(content), ""
    except NotAPhotograph as reason:
        return None, str(reason)


def _write(
    image: Image.Image, inside: str, content: bytes, picture_hash: int, record: PackageRecord, staged: Path
) -> dict:
    source_sha256 = hashlib.sha256(content).hexdigest()
    split = split_of(source_sha256)
    stem = re.sub(r"[^a-z0-9]+", "-", Path(inside).stem.lower()).strip("-")
    name = f"{stem}-{source_sha256[:8]}.jpg"  # the hash keeps two pictures of one name apart
    encoded = encode_jpeg(image, quality=JPEG_QUALITY)
    write_atomically(staged / split / name, encoded)
    return {
        "file": f"{split}/{record.package}/{name}",
        "package": record.package,
        "version": record.version,
        "inside": inside,
        "licence": record.licence,
        "split": split,
        "width": image.width,
        "height": image.height,
        "bytes": len(encoded),
        "crops": lively_crops(image),
        "hash": f"{picture_hash:064x}",
        "source_sha256": source_sha256,
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }


def _manifest(records: list[PackageRecord]) -> bytes:
    photos = sorted((photo for record in records for photo in record.photographs), key=lambda photo: photo["file"])
    packages = [{key: value for key, value in asdict(record).items() if key != "photographs"} for record in records]
    totals = {split: sum(photo["split"] == split for photo in photos) for split in SPLITS}
    return json.dumps({"totals": totals, "packages": packages, "photographs": photos}, indent=1).encode()
