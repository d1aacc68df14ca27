"""A stand-in for huggingface_hub: repositories in memory, and a cache in the form of its client's."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

MAIN = "c0ffee" * 6 + "0123"
"""A commit."""


class Hub:
    """Stands for the module huggingface_hub.

    Args:
        cache: folder.
        repositories: name -> path in the repository -> content of the file.
    """

    def __init__(self, cache: Path, repositories: dict[str, dict[str, bytes]]) -> None:
        self.cache = cache
        self.repositories = repositories
        self.commits = {"main": MAIN}
        self.lock = Lock()
        self.calls: list[tuple[str, str | None, tuple[str, ...]]] = []

    def snapshot_download(self, repo_id: str, *, revision: str | None, allow_patterns: Sequence[str]) -> str:
        self.calls.append((repo_id, revision, tuple(allow_patterns)))
        if repo_id not in self.repositories:
            raise OSError("404: no such repository\nlong")
        commit = self.commits.get(revision or "main", revision or "")
        home = self.home(repo_id)
        folder = home / "snapshots" / commit
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in self.repositories[repo_id].items():
            if any(fnmatch.fnmatch(path, pattern) for pattern in allow_patterns):
                blob = home / "blobs" / f"{hash(content):x}"
                link = folder / path
                link.parent.mkdir(parents=True, exist_ok=True)
                with self.lock:
                    if not link.is_symlink():
                        blob.parent.mkdir(exist_ok=True)
                        blob.write_bytes(content)
                        link.symlink_to(blob)
        return str(folder)

    def home(self, repo_id: str) -> Path:
        return self.cache / f"models--{repo_id.replace('/', '--')}"
