"""Which file becomes which, and a run over many of them: batches, progress, what failed."""

import errno
import sys
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from vqkit.media.files import found_under, open_plain
from vqkit.saving.files import named
from vqkit.tokens.names import escaped

ENDING = ".vqk"
EVERYWHERE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EPIPE)
"""What a system says against one file and would say against the others too."""

FAILURES = (ValueError, OSError, RuntimeError, MemoryError)
"""What a file may lead readers, models and writers to; a GPU that is full is a RuntimeError."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True)
class Job:
    """A file that shall become another one.

    Attributes:
        source: of the command, or a file in it.
        target: where it goes.
    """

    source: Path
    target: Path

    @property
    def name(self) -> str:
        """The source, for people."""
        return escaped(str(self.source))


def found(source: Path, suffixes: Collection[str]) -> tuple[list[Path], dict[str, str]]:
    """The files of a command: the source itself, or those with these suffixes in a folder.

    Returns:
        The files, and why others are left out, by their escaped paths.

    Raises:
        ValueError: there are none.
    """
    if not source.is_dir():
        if not source.exists():
            raise ValueError(f"{escaped(str(source))}: there is no such file or folder")
        return [source], {}
    walked = found_under(source, suffixes)
    if not walked.files and not walked.skipped:
        raise ValueError(
            f"{escaped(str(source))} holds no file that can be used, and {walked.other_files} others: expected names "
            f"that end in one of {', '.join(sorted(suffixes)[:8])}, ..."
        )
    return walked.files, walked.skipped


def planned(
    source: Path, target: Path, suffixes: Collection[str], ending: str, failed: Callable[[str, str], None]
) -> list[Job]:
    """One file to one file, or the files of a folder to a folder, with the names and sub-folders that they have.

    Args:
        source: a file or a folder.
        target: a file, or a folder that is made.
        suffixes: of the files in a folder that count.
        ending: of what they become.
        failed: is told name and reason of what cannot be used.

    Raises:
        ValueError: there are no such files, or the target does not go with the source.
    """
    files, skipped = found(source, suffixes)
    shown = escaped(str(target))
    if not source.is_dir():
        if target.is_dir() or not target.parent.is_dir():
            raise ValueError(f"{shown}: expected a file in a folder that is there, since {source.name} is a file")
        if target.exists() and target.samefile(source):
            raise ValueError(f"{shown}: source and target are one file; give another target")
        return [Job(source, target)]
    if target.exists() and not target.is_dir():
        raise ValueError(f"{shown}: expected a folder, since {escaped(str(source))} is a folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{shown} lies in {escaped(str(source))}: give a folder outside of it")
    for name, reason in skipped.items():
        failed(name, reason)
    jobs: dict[Path, Job] = {}
    for path in files:
        job = Job(path, target / path.relative_to(source).with_suffix(ending))
        first = jobs.setdefault(job.target, job)
        if first is not job:
            failed(job.name, f"would become {escaped(job.target.name)}, as {escaped(first.source.name)}: rename one")
    return list(jobs.values())


@dataclass
class Run:
    """What became of the files of a command, told on stderr while it works.

    Attributes:
        total: files.
        done: of them.
        left_out: that were there already.
        failures: reasons by name.
    """

    total: int = 0
    done: int = 0
    left_out: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    _told: float = field(default_factory=time.monotonic)
    _width: int = 0

    def failed(self, name: str, reason: str) -> None:
        """Name a file that cannot be used."""
        self.failures[name] = reason
        self.say(reason if reason.startswith(name) else f"{name}: {reason}")

    def say(self, line: str) -> None:
        """A line for people."""
        self.clear()
        sys.stderr.write(f"{line}\n")

    def clear(self) -> None:
        """Take the line away that changes."""
        if self._width:
            sys.stderr.write(f"\r{'':{self._width}}\r")
            self._width = 0

    def finished(self, name: str) -> None:
        """Count a file: on a terminal one line changes, elsewhere there is one every ten seconds."""
        self.done += 1
        terminal, now = sys.stderr.isatty(), time.monotonic()
        if now - self._told < (0.1 if terminal else 10):
            return
        self._told = now
        line = f"{self.done + self.left_out} of {self.total} files: {name}"
        if terminal:
            self.clear()
            self._width = len(line)
        sys.stderr.write(line if terminal else f"{line}\n")
        sys.stderr.flush()

    def summary(self) -> str:
        """How many files became what, in words."""
        words = [f"{self.done} of {self.total} files"]
        if self.left_out:
            words.append(f"{self.left_out} were there already")
        if self.failures:
            words.append(f"{len(self.failures)} could not be used")
        return ", ".join(words)

    @property
    def status(self) -> int:
        """Of the process: 1 where a file failed."""
        return 1 if self.failures else 0


class Batches(Generic[Loaded]):
    """Files that are loaded and worked on in batches of the same kind; what fails is named, and the rest goes on.

    Args:
        run: is told of each file.
        load: reads a file; one of `FAILURES` where that cannot be.
        alike: equal for what can be in one batch.
        size: of a batch, at most.
    """

    def __init__(
        self, run: Run, load: Callable[[Path], Loaded], alike: Callable[[Loaded], Hashable], size: int
    ) -> None:
        self.run, self.load, self.alike, self.size = run, load, alike, size

    def each(self, jobs: Sequence[Job], work: Callable[[list[Job], list[Loaded]], Iterator[Job]]) -> None:
        """Do the work, which gives each job back that is done; a batch that fails is tried again one by one."""
        held: list[tuple[Job, Loaded]] = []
        for job in jobs:
            try:
                loaded = self.load(job.source)
            except FAILURES as error:
                self._failed(job, error)
                continue
            if held and (len(held) == self.size or self.alike(held[0][1]) != self.alike(loaded)):
                self._do(held, work)
                held = []
            held.append((job, loaded))
        if held:
            self._do(held, work)

    def _do(self, batch: list[tuple[Job, Loaded]], work: Callable[[list[Job], list[Loaded]], Iterator[Job]]) -> None:
        left = dict(batch)
        try:
            for job in work([job for job, _ in batch], [loaded for _, loaded in batch]):
                self.run.finished(job.name)
                del left[job]
        except FAILURES as error:
            if len(batch) == 1:
                self._failed(batch[0][0], error)
                return
            for pair in left.items():
                self._do([pair], work)

    def _failed(self, job: Job, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in EVERYWHERE:
            raise error
        self.run.failed(job.name, reason(job.source, error))


def reason(path: Path, error: Exception) -> str:
    """An error as a line, without the name of the file, which may hold anything."""
    return " ".join(str(error).removeprefix(f"{path}: ").split())


def read_file(path: Path) -> bytes:
    """All of a plain file; ValueError or OSError with its name."""
    with named(path), open_plain(path) as file:
        return file.read()
