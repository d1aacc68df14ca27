"""Corpora: where recordings come from, how each is divided, and what share of the training each has."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path

from trainers.audio.files import AudioFile
from trainers.data.files import Folder, split
from trainers.data.manifests import SIDES, ListedFile, read_manifest
from vqkit.tokens.names import escaped, unescaped

Scan = Callable[[Path, list[Path] | None], Folder[AudioFile]]
"""Finds the usable recordings under a folder, or among those that are given."""


@dataclass(frozen=True)
class Corpus:
    """Recordings of one kind: a folder or a list of them.

    Attributes:
        root: Folder of the recordings; None with `manifest`.
        manifest: List of the recordings instead of a folder (`trainers.data.manifests`).
        validation_root: Folder of its validation recordings; None divides it by content or by the manifest.
        weight: Its share of the training segments, relative to the weights of the others; None for all corpora lets
            every second of sound be as likely as every other.

    Raises:
        ValueError: Not just one of `root` and `manifest` is given, one of the paths is not there, a line of the
            manifest is bad, or the weight is not positive.
    """

    root: str | None = None
    manifest: str | None = None
    validation_root: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if (self.root is None) == (self.manifest is None):
            raise ValueError(f"Give either root or manifest, got root={self.root!r} and manifest={self.manifest!r}.")
        for name, folder in (("root", self.root), ("validation_root", self.validation_root)):
            if folder is not None and not Path(folder).expanduser().is_dir():
                raise ValueError(f"{name}={folder!r} is not a folder. Give the folder that holds the recordings.")
        if self.manifest is not None and not Path(self.manifest).expanduser().is_file():
            raise ValueError(f"manifest={self.manifest!r} is not a file. Give the list of the recordings.")
        if any(listed.side for listed in self.listed) and self.validation_root is not None:
            raise ValueError(
                f"{self.manifest} gives a split, and validation_root={self.validation_root!r} another: leave one."
            )
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight} of {self.name}: expected a positive number, or not to list it")

    @property
    def name(self) -> str:
        """As it was given."""
        return str(self.root if self.manifest is None else self.manifest)

    @property
    def folder(self) -> Path:
        """The root, or the folder of the list."""
        return Path(self.name).expanduser() if self.manifest is None else Path(self.name).expanduser().parent

    @cached_property
    def listed(self) -> list[ListedFile]:
        """What the manifest lists; empty without one."""
        return [] if self.manifest is None else read_manifest(Path(self.manifest).expanduser())

    @property
    def paths(self) -> list[Path] | None:
        """The recordings of the manifest, None without one."""
        return None if self.manifest is None else [listed.path for listed in self.listed]

    def divide(self, files: list[AudioFile], root: Path, fraction: float) -> tuple[list[AudioFile], list[AudioFile]]:
        """Its training and validation recordings, where it has no folder of its own for these.

        Args:
            files: All of them.
            root: To which their names are relative.
            fraction: Share that validates where the manifest does not say.

        Raises:
            ValueError: One side would be empty.
        """
        if not any(listed.side for listed in self.listed):
            return split(files, [file.content for file in files], fraction, self.folder, noun="recording")
        sides = {_absolute(listed.path): listed.side for listed in self.listed}
        training, validation = (
            [file for file in files if sides[_absolute(root / unescaped(file.name))] == side] for side in SIDES
        )
        for side, found in zip(SIDES, (training, validation), strict=True):
            if not found:
                raise ValueError(f"The manifest in {self.folder} has no usable recording with split={side!r}.")
        return training, validation


class Corpora:
    """Several corpora under the folder that holds them all; names of files are relative to it.

    Args:
        corpora: At least one, none within another; all with a weight, or none.

    Attributes:
        root: The folder that holds them all.

    Raises:
        ValueError: A corpus is within another, or only some have a weight.
    """

    def __init__(self, corpora: Sequence[Corpus]) -> None:
        if not corpora:
            raise ValueError("corpora is empty: list at least one, such as {root: speech, weight: 1.0}")
        self.corpora = list(corpora)
        without = [corpus.name for corpus in corpora if corpus.weight is None]
        if 0 < len(without) < len(corpora):
            raise ValueError(f"{', '.join(without)} have no weight, others do: give all corpora a weight, or none")
        roots = [corpus.folder for corpus in corpora if corpus.manifest is None]
        roots += [Path(corpus.validation_root).expanduser() for corpus in corpora if corpus.validation_root is not None]
        for one, other in combinations(map(_absolute, roots), 2):
            if one.is_relative_to(other) or other.is_relative_to(one):
                raise ValueError(f"{one} and {other} are one within the other: give each recording to one corpus")
        self.root = Path(os.path.commonpath(map(_absolute, [*roots, *(corpus.folder for corpus in corpora)])))

    @property
    def weights(self) -> list[float] | None:
        """The weights; None where there are none."""
        found = [corpus.weight for corpus in self.corpora if corpus.weight is not None]
        return found or None

    def find(self, scan: Scan) -> Folder[AudioFile]:
        """All recordings but those of the folders for validation, corpus after corpus."""
        joined: Folder[AudioFile] = Folder(self.root, [])
        seen: dict[str, int] = {}
        for number, corpus in enumerate(self.corpora):
            found = self._scanned(number, corpus.folder, corpus.paths, scan)
            for file in found.files:
                if file.name in seen:
                    raise ValueError(
                        f"{self.root / file.name} is in two corpora, {self.corpora[seen[file.name]].name} and "
                        f"{corpus.name}: leave it in one"
                    )
                seen[file.name] = number
            if not found.files:
                raise ValueError(f"There is no usable recording in {corpus.name}: {len(found.skipped)} left out.")
            joined.files += found.files
            joined.skipped |= found.skipped
            joined.other_files += found.other_files
        return joined

    def divide(
        self, files: list[AudioFile], fraction: float, scan: Scan
    ) -> tuple[list[AudioFile], list[AudioFile], dict[str, str]]:
        """Training and validation recordings, each corpus divided by itself, and what was left out for validation."""
        training: list[AudioFile] = []
        validation: list[AudioFile] = []
        skipped: dict[str, str] = {}
        for number, corpus in enumerate(self.corpora):
            mine = [file for file in files if file.corpus == number]
            if corpus.validation_root is None:
                ours, theirs = corpus.divide(mine, self.root, fraction)
            else:
                found = self._scanned(number, Path(corpus.validation_root).expanduser(), None, scan)
                ours, theirs = mine, found.files
                skipped |= found.skipped
                if not theirs:
                    raise ValueError(f"There is no usable recording in validation_root={corpus.validation_root!r}.")
            training += ours
            validation += theirs
        return training, validation, skipped

    def _scanned(self, number: int, folder: Path, paths: list[Path] | None, scan: Scan) -> Folder[AudioFile]:
        found = scan(folder, paths)
        for place, file in enumerate(found.files):
            path = _absolute(folder / unescaped(file.name))
            name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()
            found.files[place] = replace(file, name=escaped(name), corpus=number)
        return found


def _absolute(path: Path) -> Path:
    """Without symbolic links being followed, so that names stay those that were given."""
    return Path(os.path.abspath(path))
