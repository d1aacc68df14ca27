"""Vectors that a codebook starts from, read from a file; `scripts/build_codebook.py` writes such files."""

import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from vqkit.saving.config import weights_will_follow
from vqkit.saving.files import named


def read_vectors(path: str | os.PathLike[str], codebook_size: int, dim: int, *, dim_name: str) -> Tensor:
    """The one tensor of a safetensors file, as float32.

    Where the state of the module is loaded right afterwards (`weights_follow`), the file is not needed and an empty
    tensor of the same shape is returned.

    Args:
        path: of the file.
        codebook_size: K, the expected number of rows.
        dim: the expected size of a row.
        dim_name: the argument that gave `dim`, for messages.

    Returns:
        (codebook_size, dim), finite.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a safetensors file, or holds something else than one tensor of these sizes.
    """
    if weights_will_follow():
        return torch.empty(codebook_size, dim, dtype=torch.float32)
    if not Path(path).is_file():
        raise FileNotFoundError(f"base_path={str(path)!r}: there is no such file; scripts/build_codebook.py makes one")
    with named(Path(path)), safe_open(path, framework="pt") as file:
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        _check_shape(shapes, codebook_size, dim, dim_name)
        vectors = file.get_tensor(names[0])
        if not vectors.is_floating_point():
            raise ValueError(f"holds {vectors.dtype}: expected floating point")
        vectors = vectors.to(torch.float32)
        if not vectors.isfinite().all():
            raise ValueError("holds NaN or infinity (in float32): drop such features and rebuild")
    return vectors


def _check_shape(shapes: dict[str, tuple[int, ...]], codebook_size: int, dim: int, dim_name: str) -> None:
    if len(shapes) != 1:
        raise ValueError(f"holds {len(shapes)} tensors {sorted(shapes)}: expected one")
    shape = next(iter(shapes.values()))
    if len(shape) != 2:
        raise ValueError(f"holds a tensor of shape {shape}: expected ({codebook_size}, {dim})")
    if shape[0] != codebook_size:
        raise ValueError(
            f"holds {shape[0]} vectors: expected codebook_size={codebook_size}; build a file "
            "of that size with scripts/build_codebook.py, or change codebook_size"
        )
    if shape[1] != dim:
        raise ValueError(f"holds vectors of {shape[1]} numbers: expected {dim_name}={dim}")
