"""Files of `torch.save`, read without running what is in them."""

import pickle
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vqkit.saving.files import named


class Unused:
    """Stands for a class that a file names and nobody needs: it has no behaviour, and takes no arguments."""


def read_pickle(path: Path, *, unused: Sequence[str] = ()) -> Any:
    """What `torch.save` wrote: tensors, plain values and containers of them; tensors stay in the file until used.

    Only torch's reader without code (`weights_only`) opens the file. It takes files with flipped bytes, and of other
    damage it says what pickle tripped over: here the checksums are compared first.

    Args:
        path: of the file.
        unused: full names of classes that may be named in the file; `Unused` stands in for each.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a byte is not what was written, the file is not of torch 1.6 or later, its entries are compressed,
            or it holds what only code could make; the message names the file.
    """
    with named(path), path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(
                "is no checkpoint, or ends too early: take another one; one that torch before 1.6 wrote, save again"
            )
        with zipfile.ZipFile(file) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
            broken = packed[0] if packed else archive.testzip()
        if broken:
            raise ValueError(f"entry {broken!r} is damaged: take another checkpoint")
        try:
            stand_ins: list[Any] = [(Unused, name) for name in unused]
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError as error:  # whose text advises to load it nevertheless
            name = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise ValueError(
                "holds more than tensors and plain values, which only code could make"
                + (f": {name[1]}" if name else "")
            ) from error
