"""Files of vectors: rows (N, D) or series (N, T, D) in npy, safetensors or Parquet, and the ids of their items.

Files of npy and safetensors are mapped, not read: only the rows that are asked for come into memory. Parquet, which is
compressed, is read as a whole, one column and the ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

INSTALL_PYARROW = "reading and writing Parquet needs pyarrow: pip install pyarrow, or the extra vectors"


@dataclass(frozen=True)
class VectorFile:
    """One file.

    Attributes:
        name: relative to the root, with forward slashes.
        vectors: (N, D) or (N, T, D), of any real dtype.
        ids: of the rows, as the file has them; None where it has none.
    """

    name: str
    vectors: Tensor
    ids: Sequence[Any] | None = None


def find_files(root: Path) -> list[Path]:
    """The file itself, or those below a folder that can be read, ordered by name.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the file has another format, or the folder holds none.
    """
    known = ", ".join(READERS)
    if root.is_file():
        if root.suffix.lower() not in READERS:
            raise ValueError(f"{root} must end in one of {known}; save the vectors in one of these formats.")
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist: give a file ({known}) or a folder of such files.")
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in READERS and path.is_file())
    if not found:
        raise ValueError(f"{root} holds no file of vectors: expected {known}.")
    return found


def read(path: Path, root: Path, *, column: str | None = None, id_column: str | None = None) -> VectorFile:
    """A file of vectors.

    Args:
        path: of the file.
        root: the folder, or the file itself.
        column: name of the column (Parquet) or tensor (safetensors) of the vectors; None is the only one that can be.
        id_column: the same of the ids; None reads none.

    Raises:
        ValueError: the file is damaged, has no such column, or what it holds is neither (N, D) nor (N, T, D).
        ImportError: it is a Parquet file and pyarrow is not installed.
    """
    vectors, ids = READERS[path.suffix.lower()](path, column, id_column)
    if vectors.ndim not in (2, 3) or 0 in vectors.shape or vectors.is_complex() or vectors.dtype == torch.bool:
        raise ValueError(
            f"{path} holds {tuple(vectors.shape)} of {vectors.dtype}, expected real vectors (N, D) or series (N, T, D)."
        )
    if ids is not None and len(ids) != len(vectors):
        raise ValueError(f"{path} has {len(vectors)} vectors and {len(ids)} ids: expected an id for each.")
    name = path.name if path == root else path.relative_to(root).as_posix()
    return VectorFile(name, vectors, ids)


def _read_npy(path: Path, column: str | None, id_column: str | None) -> tuple[Tensor, None]:
    for argument, value in (("column", column), ("id_column", id_column)):
        if value is not None:
            raise ValueError(
                f"{path} has no columns, and {argument}={value!r} names one: leave it out, or use Parquet."
            )
    try:
        array = numpy.load(path, mmap_mode="c", allow_pickle=False)  # torch wants it writable; the file stays
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no readable npy file: {error}") from error
    if array.dtype.kind not in "fiu":
        raise ValueError(f"{path} holds {array.dtype}, expected numbers.")
    native = array.dtype.newbyteorder("=")
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        native = numpy.dtype(numpy.int64)  # torch has no arithmetic of these
    return torch.from_numpy(array if array.dtype == native else array.astype(native)), None


def _read_safetensors(path: Path, column: str | None, id_column: str | None) -> tuple[Tensor, list[int] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            many_axes = [name for name in names if len(file.get_slice(name).get_shape()) > 1]
            name = _named(path, "column", column, many_axes)
            ids = None if id_column is None else file.get_tensor(_named(path, "id_column", id_column, names))
            vectors = file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    return vectors, None if ids is None else ids.tolist()


def _read_parquet(path: Path, column: str | None, id_column: str | None) -> tuple[Tensor, Sequence[Any] | None]:
    pyarrow, parquet = load_pyarrow()
    try:
        schema = parquet.read_schema(path)
        lists = [field.name for field in schema if _is_list(pyarrow, field.type)]
        name = _named(path, "column", column, lists)
        wanted = [name] if id_column is None else [name, _named(path, "id_column", id_column, schema.names)]
        table = parquet.read_table(path, columns=list(dict.fromkeys(wanted)))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no readable Parquet file: {error}") from error
    vectors = _stacked(pyarrow, path, name, table.column(name))
    return vectors, None if id_column is None else table.column(id_column).to_pylist()


def _stacked(pyarrow: Any, path: Path, name: str, column: Any) -> Tensor:
    """A column of lists of one length, or of lists of such lists, as (N, D) or (N, T, D)."""
    sizes = [len(column)]
    while _is_list(pyarrow, column.type):
        if column.null_count:
            row = next(number for number, value in enumerate(column) if not value.is_valid)
            raise ValueError(f"{path}: row {row} of {name!r} is empty; leave such items out.")
        lengths = pyarrow.compute.list_value_length(column).unique().to_pylist()
        if len(lengths) != 1:
            raise ValueError(
                f"{path}: lists of {name!r} have {len(lengths)} lengths, such as {sorted(lengths)[:3]}, expected one: "
                "the vectors of all items have the same number of dimensions."
            )
        sizes.append(lengths[0])
        column = pyarrow.compute.list_flatten(column)
    if column.null_count or not (pyarrow.types.is_floating(column.type) or pyarrow.types.is_integer(column.type)):
        raise ValueError(
            f"{path}: {name!r} holds {column.type}, {column.null_count} of them missing; expected numbers."
        )
    values = column.to_numpy()
    return torch.from_numpy(values if values.flags.writeable else values.copy()).view(sizes)


def _is_list(pyarrow: Any, kind: Any) -> bool:
    types = pyarrow.types
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _named(path: Path, argument: str, wanted: str | None, there: Sequence[str]) -> str:
    """The name that was asked for, or the only one that there is."""
    if wanted is None and len(there) == 1:
        return there[0]
    if wanted is None or wanted not in there:
        fix = "name one of them" if there else "there is none that could hold vectors"
        raise ValueError(f"{path}: {argument}={wanted!r}, and there are {', '.join(there) or 'no columns'}: {fix}.")
    return wanted


def load_pyarrow() -> tuple[Any, Any]:
    """The package and its module for Parquet.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(INSTALL_PYARROW) from error
    return pyarrow, pyarrow.parquet


READERS: dict[str, Callable[[Path, str | None, str | None], tuple[Tensor, Sequence[Any] | None]]] = {
    ".npy": _read_npy,
    ".safetensors": _read_safetensors,
    ".parquet": _read_parquet,
}
"""By the end of a file's name."""
