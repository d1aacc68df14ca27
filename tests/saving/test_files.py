"""Files are written whole or not at all, whatever the system says."""

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.saving.failing import failing
from vqkit.saving.files import NotWritten, whole, write_whole

OLD, NEW = b"old", b"new" * 10_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_whole(tmp_path / "folder" / "file.bin", OLD)
    return tmp_path / "folder" / "file.bin"


def unchanged(path: Path) -> bool:
    return [(found.name, found.read_bytes()) for found in path.parent.iterdir()] == [(path.name, OLD)]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errno.ENOSPC, "No space left on device): free some space, or write to another disk"),
        (errno.EDQUOT, "Disk quota exceeded): free some space"),
        (errno.EFBIG, "File too large): raise the limit on the size of files (ulimit -f)"),
        (errno.EACCES, "Permission denied): write to a folder that is yours"),
        (errno.EIO, "Input/output error): see to it that it can be written there"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_the_old_file(
    path: Path, call: str, error: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context, pytest.raises(NotWritten) as caught:
        context.setattr(os, call, failing(getattr(os, call), after=0, error=error))
        write_whole(path, NEW)
    assert caught.value.errno == error
    assert str(caught.value).startswith(f"{path} was not written ({words}")
    assert "\n" not in str(caught.value)
    assert unchanged(path)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interruption_leaves_the_old_file(path: Path, interruption: type[BaseException]) -> None:
    with pytest.raises(interruption), whole(path) as partial:
        partial.write_bytes(b"half of it")
        raise interruption
    assert unchanged(path)


def test_errors_of_other_files_are_not_blamed_on_this_one(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), whole(path):
        Path("nowhere").read_bytes()
    assert unchanged(path)


def test_a_folder_that_cannot_be_made_is_named(path: Path) -> None:
    with pytest.raises(NotWritten, match=r"more.bin was not written \(Not a directory\)"):
        write_whole(path / "below" / "more.bin", NEW)
    assert unchanged(path)


def test_what_a_killed_process_left_is_deleted(path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    running, left = (path.with_name(f".{path.name}.{number}.partial") for number in (os.getppid(), ended.pid))
    running.touch()
    left.touch()
    write_whole(path, NEW)
    assert path.read_bytes() == NEW
    assert running.exists() and not left.exists()


def test_a_limit_on_the_size_of_files(path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from vqkit.saving.files import write_whole
try:
    write_whole(Path({str(path)!r}), bytes(5000))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], preexec_fn=limit, capture_output=True, text=True)
    assert f"{path} was not written (File too large)" in done.stdout, done.stderr
    assert unchanged(path)
