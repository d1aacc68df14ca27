"""Checks of indices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqkit.runtime import check_plain, transformed


def check_indices(indices: Tensor, codebook_sizes: Sequence[int], *, level_axis: bool, name: str = "indices") -> None:
    """Refuse what no quantizer returned; waits for the device, and looks at no values while a compiler traces, under
    `torch.func`, or on the meta device.

    Args:
        indices: integers, -1 for what was left out; any shape, with `level_axis` (..., levels).
        codebook_sizes: K of each level; of the only one without `level_axis`.
        level_axis: whether the last axis holds levels, coarse first: all of them or the first ones.
        name: of the argument, for messages.

    Raises:
        ValueError: not integers, no or too many levels, or outside -1 ... K - 1.
    """
    check_plain(name, indices)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"{name} has dtype {indices.dtype}: expected integers, as encode returns them")
    if indices.dtype in (torch.uint16, torch.uint32, torch.uint64):
        raise ValueError(f"{name} has dtype {indices.dtype}, which torch calculates little with: give {name}.long()")
    if level_axis and not (indices.ndim and 1 <= indices.shape[-1] <= len(codebook_sizes)):
        raise ValueError(
            f"{name} has shape {tuple(indices.shape)}: its last axis holds 1 to {len(codebook_sizes)} levels, coarse "
            "first"
        )
    # Reading values would break tracing; a traced decode trusts its caller.
    if torch.compiler.is_compiling() or transformed() or indices.is_meta or not indices.numel():
        return
    levels = indices.unbind(-1) if len(set(codebook_sizes)) > 1 else [indices]
    for number, (level, size) in enumerate(zip(levels, codebook_sizes, strict=False)):
        low, high = map(int, level.aminmax())
        if low < -1 or high >= size:
            where = f" at level {number}" if len(levels) > 1 else ""
            raise ValueError(f"{name} lie in {low} ... {high}{where}: expected -1 (left out) or 0 ... {size - 1}")
