"""What a convolution sees before the first and behind the last sample of a recording."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PaddingMode = Literal["zeros", "reflect", "replicate"]
"""Silence, the recording mirrored at its first and its last sample (each of which is there once), or these repeated."""

PADDING_MODES = ("zeros", "reflect", "replicate")


def padded(x: Tensor, before: int, after: int, mode: PaddingMode = "zeros", *, dim: int = -1) -> Tensor:
    """A recording with what stands at its ends.

    Where a recording is too short to be mirrored, zeros behind it are mirrored with it, as in EnCodec.

    Args:
        x: (B, C, T); with zeros any shape.
        before: time steps in front.
        after: time steps behind.
        mode: what they hold.
        dim: the axis of time, counted from the end; the last one but for zeros.

    Returns:
        before + T + after time steps.
    """
    if mode == "zeros":
        # `F.pad` writes zeros everywhere first, and the recording over them.
        shapes = ([*x.shape[:dim], steps, *x.shape[x.ndim + dim + 1 :]] for steps in (before, after))
        front, back = (x.new_zeros(shape) for shape in shapes)
        return torch.cat([front, x, back], dim)
    if mode == "replicate":
        return F.pad(x, (before, after), mode="replicate")
    missing = max(before, after) + 1 - x.shape[-1]
    if missing <= 0:
        return F.pad(x, (before, after), mode="reflect")
    return F.pad(F.pad(x, (0, missing)), (before, after), mode="reflect")[..., : before + x.shape[-1] + after]


def beginning(x: Tensor, steps: int, mode: PaddingMode = "zeros", *, dim: int = -1) -> Tensor:
    """What stands before the first chunk of a stream, the first `steps` of `padded`.

    Raises:
        ValueError: if the chunk is too short to be mirrored.
    """
    if mode == "reflect" and x.shape[dim] <= steps:
        raise ValueError(
            f"the stream begins with {x.shape[dim]} time steps at a layer that mirrors {steps} of them in front of the"
            f" first (padding_mode='reflect'), which takes {steps + 1}: begin with a longer chunk; later ones may have"
            " any length"
        )
    return padded(x, steps, 0, mode, dim=dim).narrow(dim, 0, steps)
