"""Checks of the sizes of backbones."""

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
