"""Checks of indices, and of any tensor that a user gives."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vqkit.runtime import transformed


def check_plain(name: str, tensor: Tensor, device: torch.device | None = None) -> None:
    """Refuse what is no tensor, or one that does not hold its numbers one by one; looks at nothing while tracing.

    Args:
        name: what the caller calls it.
        tensor: whatever a user gave.
        device: where it has to be; None for anywhere.

    Raises:
        ValueError: not a tensor; sparse, nested, distributed, with names, or elsewhere.
    """
    if torch.compiler.is_compiling():
        return
    kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {kind}: expected a torch.Tensor; use torch.as_tensor({name})")
    if tensor.is_nested:
        raise ValueError(f"{name} is nested: expected one size for all; use {name}.to_padded_tensor(0.0), and a mask")
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} has the layout {tensor.layout}: expected torch.strided; use {name}.to_dense()")
    if hasattr(tensor, "to_local"):
        raise ValueError(f"{name} is a {kind}, a part on each rank: expected a torch.Tensor; use {name}.to_local()")
    if tensor.has_names():
        raise ValueError(f"{name} has the names {tensor.names}: expected none; use {name}.rename(None)")
    if device is not None and tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}: expected {device}, where the module is; use {name}.to({str(device)!r})"
        )


def check_indices(indices: Tensor, codebook_sizes: Sequence[int], *, level_axis: bool) -> None:
    """Refuse what no quantizer returned; waits for the device, and looks at no values while a compiler traces, under
    `torch.func`, or on the meta device.

    Args:
        indices: integers, -1 for what was left out; any shape, with `level_axis` (..., levels).
        codebook_sizes: K of each level; of the only one without `level_axis`.
        level_axis: whether the last axis holds levels, coarse first: all of them or the first ones.

    Raises:
        ValueError: not integers, no or too many levels, or outside -1 ... K - 1.
    """
    check_plain("indices", indices)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise ValueError(f"indices has dtype {indices.dtype}: expected integers, as encode returns them")
    if level_axis and not (indices.ndim and 1 <= indices.shape[-1] <= len(codebook_sizes)):
        raise ValueError(
            f"indices has shape {tuple(indices.shape)}: its last axis holds 1 to {len(codebook_sizes)} levels, coarse "
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
            raise ValueError(f"indices lie in {low} ... {high}{where}: expected -1 (left out) or 0 ... {size - 1}")
