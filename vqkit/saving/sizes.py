"""Sizes that a configuration asks for, compared with those of a weights file before memory or time is spent."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FREE_NUMBERS = 2**24
"""Numbers in a tensor that a constructor may make for itself, whatever the weights are: a table, a window."""

FREE_TENSORS, TENSORS_PER_ENTRY = 1024, 16
"""Tensors that a constructor may make for itself, and for each entry of its state."""

FLOATING = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Bounded(TorchDispatchMode):
    """Mode for building a module on the meta device: refuses what a state cannot hold as soon as it is asked for.

    Args:
        state: what will be loaded, by name.

    Raises:
        ValueError: inside of the mode, where a tensor has more numbers than any entry and than `FREE_NUMBERS`, or where
            more tensors are made than the entries can account for.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.largest, self.name = max(((value.numel(), name) for name, value in state.items()), default=(0, "none"))
        self.entries = len(state)
        self.made = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run and look at what came out; on the meta device it has a shape and no memory."""
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.numel() > max(self.largest, FREE_NUMBERS):
                raise ValueError(
                    f"asks for a tensor of shape {tuple(tensor.shape)}, {tensor.numel()} numbers: expected at most "
                    f"{max(self.largest, FREE_NUMBERS)}, since the largest entry of the weights, {self.name!r}, has "
                    f"{self.largest}"
                )
        self.made += not any(isinstance(value, Tensor) for value in tree_leaves((args, kwargs)))
        if self.made > FREE_TENSORS + TENSORS_PER_ENTRY * self.entries:
            raise ValueError(
                f"asks for more than {self.made - 1} tensors: expected what the {self.entries} entries of the weights "
                "can fill"
            )
        return result


def check_entries(state: Mapping[str, Tensor], built: nn.Module) -> None:
    """Refuse weights that are not those of a module; no value is read.

    Args:
        state: what was read from a file, by name.
        built: the module that they are for, on any device.

    Raises:
        ValueError: an entry is missing, unexpected, of another shape, or of another kind of number.
    """
    own = {name: value for name, value in built.state_dict().items() if isinstance(value, Tensor)}
    for name in sorted(own.keys() | state.keys()):
        if name not in state:
            raise ValueError(f"entry {name!r} is missing: config.json asks for shape {tuple(own[name].shape)}")
        if name not in own:
            raise ValueError(f"entry {name!r} of shape {tuple(state[name].shape)} is unexpected: config.json has none")
        found, wanted = state[name], own[name]
        if found.shape != wanted.shape:
            raise ValueError(
                f"entry {name!r} has shape {tuple(found.shape)}: config.json asks for {tuple(wanted.shape)}"
            )
        kinds = FLOATING if wanted.is_floating_point() else (wanted.dtype,)
        if found.dtype not in kinds:
            raise ValueError(f"entry {name!r} holds {found.dtype}: expected {' or '.join(map(str, kinds))}")


def check_finite(state: Mapping[str, Tensor], built: nn.Module | None = None) -> None:
    """Refuse weights with NaN or infinity.

    Args:
        state: by name.
        built: a module whose own constants, such as a mask of -inf or a NaN for "not yet", are allowed.

    Raises:
        ValueError: an entry is not finite; the message names it.
    """
    own = {} if built is None else built.state_dict()
    for name, value in state.items():
        if not value.is_floating_point() or value.isfinite().all():
            continue
        if name not in own or not _equal(own[name].to(value.dtype), value):
            count = int((~value.isfinite()).sum())
            raise ValueError(
                f"entry {name!r} holds NaN or infinity in {count} of {value.numel()} numbers: expected finite weights"
            )


def _equal(first: Tensor, second: Tensor) -> bool:
    """Whether shapes and values are equal; NaN equals NaN."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
