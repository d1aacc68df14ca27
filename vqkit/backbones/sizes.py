"""Checks of the sizes of backbones."""

from collections.abc import Sequence

from torch import Tensor

LARGEST_SIZE = 2**31 - 1
"""What fits the integers of kernels."""


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1, and those that no tensor has.

    Args:
        sizes: by the name of the argument.

    Raises:
        ValueError: one is below 1 or above `LARGEST_SIZE`; the message names it.
    """
    for name, size in sizes.items():
        if not 1 <= size <= LARGEST_SIZE:
            raise ValueError(f"{name}={size}: expected a positive number of at most {LARGEST_SIZE}")


def widths_of_levels(channels: int, multipliers: Sequence[int], norm_groups: int) -> list[int]:
    """Width of each level of a pyramid of maps, that of the image first.

    Args:
        channels: width that the multipliers count.
        multipliers: one for each level.
        norm_groups: groups of each group norm.

    Raises:
        ValueError: a size is not positive, or the groups do not divide a width; the message names it.
    """
    check_positive(channels=channels, norm_groups=norm_groups)
    if not multipliers or min(multipliers) < 1:
        raise ValueError(
            f"channel_multipliers={multipliers!r}: expected a positive number per level, such as (1, 2, 4)"
        )
    widths = [channels * multiplier for multiplier in multipliers]
    for width in widths:
        if width % norm_groups:
            raise ValueError(
                f"norm_groups={norm_groups} does not divide the width {width} of a level: choose channels={channels} as"
                " a multiple of it, or fewer groups"
            )
    return widths


def check_images(images: Tensor, in_channels: int, factor: int) -> None:
    """Refuse images that are not (B, in_channels, H, W) with multiples of the downsampling factor as H and W.

    Raises:
        ValueError: they are not.
    """
    if images.ndim != 4 or images.shape[1] != in_channels:
        raise ValueError(
            f"images has shape {tuple(images.shape)}: expected (B, {in_channels}, H, W); for one image add a"
            " batch axis with images[None], for another number of channels set in_channels"
        )
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(
            f"images of {height} x {width} pixels cannot be divided by the downsampling factor"
            f" {factor}: crop or pad both sides to a multiple of it"
        )


def check_latents(latents: Tensor, dim: int) -> None:
    """Refuse latents that are not (B, dim, h, w).

    Raises:
        ValueError: they are not.
    """
    if latents.ndim != 4 or latents.shape[1] != dim:
        raise ValueError(f"latents has shape {tuple(latents.shape)}: expected (B, {dim}, h, w)")
