"""Checks of the sizes of backbones."""


def check_positive(**sizes: int) -> None:
    """Refuse sizes below 1.

    Args:
        sizes: by the name of the argument.

    Raises:
        ValueError: one is below 1; the message names it.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: expected a positive number")
