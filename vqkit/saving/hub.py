"""The Hugging Face hub, through its own client."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


def import_hub(purpose: str) -> ModuleType:
    """The client, which the extra `hub` installs.

    Args:
        purpose: what needs it, for the message.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ImportError(f'{purpose} needs huggingface_hub: pip install "vqkit[hub]"') from error
    return huggingface_hub


def snapshot(repository: str, files: Sequence[str], *, revision: str | None, asked: str) -> Path:
    """The folder in the client's cache that files of a repository are fetched into; its name is their commit.

    Args:
        repository: `"user/name"`.
        files: their paths in it, or patterns of them; those that it does not have are not there afterwards.
        revision: branch, tag or commit; None means the default branch.
        asked: what was looked for elsewhere before, for the message.

    Raises:
        FileNotFoundError: the hub has no such repository or revision, or cannot be reached; in a line.
        ImportError: huggingface_hub is not installed.
    """
    hub = import_hub(f"{asked}, and looking for it on the hub")
    try:
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError) as error:  # what huggingface_hub raises where it finds none or reaches no server
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(f"{asked}, and the hub gave no such model: {type(error).__name__}: {reason}") from error
