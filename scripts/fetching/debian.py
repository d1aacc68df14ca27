"""Debian packages without root: fetched by name with apt, checked by sha256, unpacked with dpkg-deb."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path


class FetchError(RuntimeError):
    """Something outside this program (apt, a package, a folder) is not as it must be; the message says what to do."""


@dataclass(frozen=True)
class PackageFile:
    """One .deb file on disk whose content was checked.

    Attributes:
        package: name of the package.
        version: its version, as the file itself states it.
        sha256: hash of the file, 64 hexadecimal digits.
        path: where the file lies.
    """

    package: str
    version: str
    sha256: str
    path: Path


def obtain(package: str, *, downloads: Path, known_sha256: str, say=print) -> PackageFile:
    """Returns the checked .deb file of a package, and downloads it only when it is not there.

    A file in ``downloads`` with the known hash is taken without asking apt, so a folder filled by hand works offline.

    Args:
        package: name of the package.
        downloads: folder where .deb files are kept between runs; created if missing.
        known_sha256: hash of the file as it was when ``sources.toml`` was written; another version of apt's is allowed.
        say: receives one line before a download begins.

    Raises:
        FetchError: apt or dpkg-deb is missing, the package lists are missing, the download failed or does not match its
            hash.
    """
    _require("dpkg-deb", "It is part of every Debian and Ubuntu system (package dpkg).")
    downloads.mkdir(parents=True, exist_ok=True)
    kept = {sha256_of(path): path for path in sorted(downloads.glob(f"{package}_*.deb"))}
    if known_sha256 in kept:
        return _described(package, kept[known_sha256], known_sha256)
    version, sha256 = _offer(package, downloads)
    if sha256 not in kept:
        say(f"downloading {package} {version}")
        kept[sha256] = _download(package, version, sha256, downloads)
    return _described(package, kept[sha256], sha256)


def unpack(deb: PackageFile, destination: Path) -> None:
    """Unpacks the files of a package into a folder, which is created; nothing is installed and no script is run."""
    destination.mkdir(parents=True, exist_ok=True)
    _run(["dpkg-deb", "-x", str(deb.path), str(destination)], why=f"unpacking {deb.path}")


def sha256_of(path: Path) -> str:
    """Returns the sha256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _offer(package: str, downloads: Path) -> tuple[str, str]:
    """The version that apt would install, and the sha256 of its file."""
    by_hand = f"Without apt, put the file {package}_*.deb into {downloads} by hand and run this again."
    for program in ("apt-get", "apt-cache"):
        _require(program, f"This command reads Debian packages. {by_hand}")
    answer = _run_quietly(["apt-cache", "show", "--no-all-versions", package])
    # Only the first paragraph: it is the candidate that `apt-get download` takes.
    paragraph = answer.stdout.strip().split("\n\n")[0]
    fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
    if answer.returncode != 0 or "Version" not in fields:
        raise FetchError(
            f"apt does not know the package {package!r}. On a fresh machine the package lists are missing: run "
            "`apt-get update` as root once (`sudo apt-get update`), then this again. If it stays unknown, your "
            f"distribution does not have it: name the others with --packages. {by_hand}"
        )
    if "SHA256" not in fields:
        raise FetchError(f"apt's lists give no SHA256 for {package!r}, so it cannot be checked. {by_hand}")
    return fields["Version"], fields["SHA256"]


def _download(package: str, version: str, sha256: str, downloads: Path) -> Path:
    # apt writes into a folder of its own: what an interrupted run leaves there is never taken for a whole file.
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=downloads) as partial:
        command = ["apt-get", "download", f"{package}={version}"]
        _run(command, why=f"downloading {package}", folder=Path(partial))
        found = sorted(Path(partial).glob("*.deb"))
        if len(found) != 1:
            raise FetchError(f"`{' '.join(command)}` left {len(found)} .deb files, not one. Run it by hand to see why.")
        actual = sha256_of(found[0])
        if actual != sha256:
            raise FetchError(
                f"{found[0].name} has sha256 {actual}, but apt's lists say {sha256}; it was thrown away. "
                "Run `apt-get update` as root and this again."
            )
        return found[0].rename(downloads / found[0].name)


def _described(package: str, path: Path, sha256: str) -> PackageFile:
    version = _run(["dpkg-deb", "--field", str(path), "Version"], why=f"reading {path}").strip()
    return PackageFile(package=package, version=version, sha256=sha256, path=path)


def _require(program: str, hint: str) -> None:
    if shutil.which(program) is None:
        raise FetchError(f"The program {program} was not found. {hint}")


def _run_quietly(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace", check=False
    )


def _run(command: list[str], *, why: str, folder: Path | None = None) -> str:
    answer = _run_quietly(command, folder)
    if answer.returncode != 0:
        words = answer.stderr.strip()[-800:] or "it gave no reason"
        raise FetchError(f"{why} failed (`{' '.join(command)}` ended with {answer.returncode}): {words}")
    return answer.stdout
