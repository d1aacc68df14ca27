"""What is not used of a data set, and why: a line for people, and a file with all of it."""

import warnings
from collections import Counter
from pathlib import Path

from trainers.data.files import named
from vqkit import distributed
from vqkit.saving.files import write_json


def by_reason(skipped: dict[str, str]) -> str:
    """How many files have which reason, and the first few of them, in words."""
    counted = Counter(reason.partition(":")[0] for reason in skipped.values())
    return f"{', '.join(f'{count} {reason}' for reason, count in counted.most_common())}: {named(skipped)}"


class LeftOut:
    """The files that are left out, and those that are replaced by another one where they should have been trained on.

    Attributes:
        skipped: Why each file is not used, by its path.
        replaced: Those among `skipped` that failed in training, where the next file took the place.
        path: Where all of it is written, whole, by rank 0, which knows what all ranks found at the start and what
            itself found later; None writes nothing.
    """

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}
        self.replaced: set[str] = set()
        self.path: Path | None = None

    def write(self) -> None:
        """Writes the file anew, or removes that of an earlier run where nothing is left out.

        Training does without it: where it cannot be written, a warning says so, and no further one is tried.
        """
        if self.path is None or distributed.rank() != 0:
            return
        try:
            if self.skipped:
                kept = {path: reason for path, reason in self.skipped.items() if path not in self.replaced}
                replaced = {path: self.skipped[path] for path in sorted(self.replaced)}
                write_json(self.path, {"left_out": kept, "replaced": replaced})
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            self.path = None
            warnings.warn(f"what is left out is not listed: {error}", stacklevel=2)
